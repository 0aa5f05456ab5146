"""SLURM: its commands, and what their answers mean."""
