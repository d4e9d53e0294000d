"""Tests of launch/slurm/*.sbatch on a real SLURM cluster of two nodes on this machine."""
