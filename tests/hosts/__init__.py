"""Training on several hosts without SLURM; the hosts are namespaces of this machine."""
