"""A SLURM cluster as a place for jobs."""

from typing import TYPE_CHECKING

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from autoexp.resources.machines import SlurmCluster as SlurmSettings

if TYPE_CHECKING:  # each Prefect server imports the blocks as it starts
    from autoexp.schedulers.slurm.scheduler import SlurmScheduler


class SlurmCluster(Block):
    """Runs each attempt of a job as one batch job of a SLURM cluster.

    Example:
        Where an experiment names the block, `slurm: {block: lumi}`, its jobs run there. In code:
        ```python
        from autoexp.blocks import SlurmCluster

        cluster = SlurmCluster.load("BLOCK_NAME")
        cluster.settings.partition
        ```
    """

    _block_type_name = "autoexp SLURM cluster"
    _block_type_slug = "autoexp-slurm-cluster"
    _documentation_url = HttpUrl("https://slurm.schedmd.com/sbatch.html")
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/"
        "420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/terminal.png"
    )

    settings: SlurmSettings = Field(
        default_factory=SlurmSettings,
        title="Settings",
        description="Partition, account, nodes, GPUs, time limits and any other option of sbatch.",
    )

    def scheduler(self) -> "SlurmScheduler":
        """The scheduler that submits, finds, polls and cancels jobs of this cluster."""
        from autoexp.schedulers.slurm.scheduler import SlurmScheduler

        return SlurmScheduler(self.settings)
