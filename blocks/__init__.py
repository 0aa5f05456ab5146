"""Where jobs run and how, as Prefect blocks: `prefect block register -m blocks`."""

from blocks.apptainer import ApptainerContainer
from blocks.local import LocalMachine
from blocks.slurm import SlurmCluster

__all__ = ["ApptainerContainer", "LocalMachine", "SlurmCluster"]
