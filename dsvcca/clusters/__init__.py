"""Clusters that are started or joined: of this machine, of SLURM, of anybody by an address."""
