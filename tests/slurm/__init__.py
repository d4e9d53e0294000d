"""launch/slurm/*.sbatch on a real SLURM cluster of two nodes, thrown away at the end."""
