"""This machine as a place for jobs."""

from prefect.blocks.core import Block
from pydantic import Field

from autoexp.machines import LocalMachine as LocalSettings
from autoexp.schedulers.local import LocalScheduler


class LocalMachine(Block):
    """Runs jobs as processes on this machine, through submitit's local executor."""

    _block_type_name = "autoexp local machine"
    _block_type_slug = "autoexp-local-machine"

    settings: LocalSettings = Field(
        default_factory=LocalSettings, description="limits and ticks for jobs on this machine"
    )

    def scheduler(self) -> LocalScheduler:
        """What submits, finds, looks at and cancels this machine's jobs."""
        return LocalScheduler()
