"""The cluster, the sessions and the SLURM commands that benchmarks run in."""
