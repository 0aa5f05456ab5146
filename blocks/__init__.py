"""Machines and containers as Prefect blocks: `prefect block register -m autoexp.blocks`."""

from autoexp.blocks.apptainer import ApptainerContainer
from autoexp.blocks.local import LocalMachine
from autoexp.blocks.slurm import SlurmCluster

__all__ = ["ApptainerContainer", "LocalMachine", "SlurmCluster"]
