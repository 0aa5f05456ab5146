"""This machine as a place for jobs."""

from typing import TYPE_CHECKING

from prefect.blocks.core import Block
from pydantic import Field, HttpUrl

from autoexp.resources.machines import LocalMachine as LocalSettings

if TYPE_CHECKING:  # each Prefect server imports the blocks as it starts
    from autoexp.schedulers.local import LocalScheduler


class LocalMachine(Block):
    """Runs jobs as processes on the machine of the flow, through submitit's local executor.

    Example:
        Where an experiment names the block, `slurm: {block: workstation}`, its jobs run there. In
        code:
        ```python
        from autoexp.blocks import LocalMachine

        machine = LocalMachine.load("BLOCK_NAME")
        machine.settings.max_jobs
        ```
    """

    _block_type_name = "autoexp local machine"
    _block_type_slug = "autoexp-local-machine"
    _documentation_url = HttpUrl("https://github.com/facebookincubator/submitit")
    _logo_url = HttpUrl(
        "https://raw.githubusercontent.com/PrefectHQ/prefect/"
        "420d0d6a78bb6df1fc18bcf188fdad43c1d22ea9/assets/block-logos/filesystem.png"
    )

    settings: LocalSettings = Field(
        default_factory=LocalSettings,
        title="Settings",
        description="Limits and ticks for jobs on this machine.",
    )

    def scheduler(self) -> "LocalScheduler":
        """The scheduler that submits, finds, polls and cancels jobs of this machine."""
        from autoexp.schedulers.local import LocalScheduler

        return LocalScheduler()
