"""LLM training experiments on SLURM as Prefect flows, a session each."""

__version__ = "0.1.0"
