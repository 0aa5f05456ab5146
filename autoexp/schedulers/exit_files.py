"""Exit files: a payload's record of how its command ended, which SLURM may lack or contradict."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autoexp import sinks, states
from autoexp.schedulers.base import AttemptRef, JobStatus
from autoexp.storage import atomic

_Time = Annotated[float, Field(ge=0, lt=1 << 33, allow_inf_nan=False)]
"""Seconds since 1970, before the year 2242: what is beyond is no time."""
_LONGEST = 300


class ExitFile(BaseModel):
    """`exit.json`, as autoexp/payload.py writes it."""

    model_config = ConfigDict(frozen=True)

    job_id: str | None
    exit_code: int | None
    signal: int | None
    reason: str | None
    started_at: _Time
    ended_at: _Time
    warned: bool
    limit: bool
    superseded: bool
    sick_nodes: dict[str, str] = Field(default_factory=dict, max_length=10_000)

    def status(self, nodes: str | None = None) -> JobStatus:
        """How the job ended: COMPLETED, FAILED, or TIMEOUT."""
        state = "COMPLETED" if self.exit_code == 0 else "FAILED"
        own = JobStatus(
            state="TIMEOUT" if self.limit else state,
            reason=self.reason,
            exit_code=self.exit_code,
            signal=self.signal,
            nodes=nodes,
            started_at=datetime.fromtimestamp(self.started_at, UTC),
            ended_at=datetime.fromtimestamp(self.ended_at, UTC),
            warned=self.warned,
        )
        return self.given_back(own.at_its_limit())

    def given_back(self, status: JobStatus) -> JobStatus:
        """The end of a job whose nodes were found sick before its trainer, as a NODE_FAIL."""
        if not self.sick_nodes or status.state != "FAILED":
            return status
        named = "; ".join(f"{node}: {why}" for node, why in self.sick_nodes.items())
        reason = f"sick nodes: {sinks.line(named)[:_LONGEST]}"
        return status._replace(state="NODE_FAIL", reason=reason, sick_nodes=self.sick_nodes)


def read_exit_file(directory: Path) -> ExitFile | None:
    """Read `exit.json` of an attempt; None while it is missing or unreadable.

    Raises OSError for a reason that passes.
    """
    try:
        return ExitFile.model_validate_json(atomic.read(directory / "exit.json"))
    except (FileNotFoundError, atomic.WrongFile, ValidationError):
        return None


class _StartFile(BaseModel):
    """`started.json`: which process an attempt is (see payload.own_identity), and since when."""

    model_config = ConfigDict(extra="allow")

    host: str
    boot_id: str
    pid: int
    start_ticks: int
    started_at: _Time


def read_start_file(directory: Path) -> dict[str, Any] | None:
    """Read `started.json` of an attempt; None while it is missing or unreadable.

    Raises OSError for a reason that passes.
    """
    try:
        return _StartFile.model_validate_json(atomic.read(directory / "started.json")).model_dump()
    except (FileNotFoundError, atomic.WrongFile, ValidationError):
        return None


def _exit_file(ref: AttemptRef) -> ExitFile | None:
    """The exit file of the attempt, if this very job wrote it."""
    ended = read_exit_file(ref.directory)
    return ended if ended is not None and ended.job_id == ref.job_id else None


def from_exit_file(ref: AttemptRef) -> JobStatus | None:
    """The end of a job where accounting is off."""
    ended = _exit_file(ref)
    if ended is None:
        return None
    return ended.status()


def merge_exit_file(ref: AttemptRef, status: JobStatus) -> JobStatus:
    """Add what the payload knows better: the command's end, and the warning to save.

    SLURM sees the payload's exit code, which after a signal is 128 and more, and says 0 of jobs
    that were ended from outside.
    """
    if not states.is_terminal(status.state):
        return status
    ended = _exit_file(ref)
    if ended is None or ended.superseded:
        own_end = status.exit_code != 0 or status.state == "COMPLETED"
        return status if own_end else status._replace(exit_code=None)
    known = status._replace(exit_code=ended.exit_code, signal=ended.signal, warned=ended.warned)
    return ended.given_back(known.at_its_limit())
