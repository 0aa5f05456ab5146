"""The checkpoints of a session: how large, kept why, deleted when."""

from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel
from rich.table import Table

from autoexp.jobs.record import JobRecord
from autoexp.retention.decision import over_budget, used_bytes
from autoexp.rules.durations import in_bytes
from autoexp.rules.events import CheckpointComplete
from autoexp.session.checkpoint_uses import checkpoints_of, situation_of
from autoexp.session.session import Session
from autoexp.storage import removal


class CheckpointRow(BaseModel):
    """One checkpoint that is there."""

    job: str
    iteration: int
    path: str
    bytes: int | None
    """None: it cannot be read."""
    kept: str
    """Why; empty when it may go."""
    until: str | None
    """What has to happen before it is deleted; `now`; None: it stays for good."""


class CheckpointList(BaseModel):
    """`autoexp checkpoints --json`."""

    session: str
    checkpoints: list[CheckpointRow]
    deleted: dict[str, list[int]]
    """Iterations of deleted ones, by job."""
    bytes: int
    """Of all that were measured, and of the starts of branches."""
    budget: int | None
    dry_run: bool
    warning: str | None = None


def checkpoint_list(session: Session) -> CheckpointList:
    """Describe the checkpoints of a session, in its order of jobs."""
    retention = session.experiment.retention
    places = {name: place for place, name in enumerate(session.jobs)}
    found = checkpoints_of(session)
    found.sort(key=lambda each: (places[each.checkpoint.job], each.checkpoint.iteration))
    jobs = _measured(session, [each.checkpoint for each in found])
    rows = [
        CheckpointRow(
            job=each.checkpoint.job,
            iteration=each.checkpoint.iteration,
            path=each.checkpoint.path,
            bytes=jobs[each.checkpoint.job].sizes.get(each.checkpoint.iteration),
            kept=each.why if retention else "no `retention`",
            until=each.until if retention else None,
        )
        for each in found
    ]
    return CheckpointList(
        session=session.id,
        checkpoints=rows,
        deleted={name: job.deleted for name, job in session.jobs.items() if job.deleted},
        bytes=used_bytes(jobs),
        budget=retention.budget if retention else None,
        dry_run=retention.dry_run if retention else False,
        warning=over_budget(situation_of(session, retention), found) if retention else None,
    )


def _measured(session: Session, found: list[CheckpointComplete]) -> dict[str, JobRecord]:
    """The jobs with all sizes: the monitor measures them for `retention` alone."""
    sizes: dict[str, dict[int, int]] = {}
    for event in found:
        known = session.jobs[event.job].sizes.get(event.iteration)
        if known is None:
            with suppress(OSError):
                known = removal.size_of(Path(event.path)) or None
        if known is not None:
            sizes.setdefault(event.job, {})[event.iteration] = known
    return {
        name: job.model_copy(update={"sizes": {**job.sizes, **sizes.get(name, {})}})
        for name, job in session.jobs.items()
    }


def checkpoint_table(found: CheckpointList) -> Table:
    """A line for each checkpoint."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("job", "iteration", "size"):
        table.add_column(name, no_wrap=True, justify="left" if name == "job" else "right")
    table.add_column("kept")
    table.add_column("would be deleted" if found.dry_run else "deleted")
    for row in found.checkpoints:
        size = "?" if row.bytes is None else in_bytes(row.bytes)
        table.add_row(row.job, str(row.iteration), size, row.kept, _when(row.until))
    return table


def _when(until: str | None) -> str:
    if until is None:
        return "never"
    return until if until == "now" else f"once {until}"


def summary_lines(found: CheckpointList) -> list[str]:
    """What there is in all, and the warning above the budget."""
    of = "" if found.budget is None else f" of {in_bytes(found.budget)}"
    gone = sum(map(len, found.deleted.values()))
    lines = [f"{len(found.checkpoints)} checkpoints, {in_bytes(found.bytes)}{of}; {gone} deleted"]
    return [*lines, *([found.warning] if found.warning else [])]
