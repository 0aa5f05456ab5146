"""Decides which checkpoints stay, why and until when, and which go. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.retention.uses import Hold, Place, Situation, uses
from autoexp.rules.durations import in_bytes
from autoexp.rules.events import CheckpointComplete
from autoexp.states import Verdict

KEPT_ONLY_AS = "are kept only as"
"""What a warning says of checkpoints that one reason alone keeps: without it, they would go."""


class Standing(NamedTuple):
    """A checkpoint, and all reasons why it stays."""

    checkpoint: CheckpointComplete
    holds: tuple[Hold, ...]

    @property
    def goes(self) -> bool:
        """True if it may be deleted now."""
        return not self.holds

    @property
    def why(self) -> str:
        """The reasons, those for good first."""
        ordered = sorted(self.holds, key=lambda hold: hold.until is not None)
        return "; ".join(dict.fromkeys(hold.why for hold in ordered))

    @property
    def until(self) -> str | None:
        """When it is deleted, in words; None: it stays for good."""
        if any(hold.until is None for hold in self.holds):
            return None
        return " and ".join(dict.fromkeys(str(hold.until) for hold in self.holds)) or "now"


def standings(situation: Situation) -> list[Standing]:
    """Every checkpoint with its reasons to stay, in the order in which they were seen."""
    holds: dict[Place, list[Hold]] = {}
    for place, hold in uses(situation):
        holds.setdefault(place, []).append(hold)
    by_job: dict[str, list[int]] = {}
    for event in situation.checkpoints:
        by_job.setdefault(event.job, []).append(event.iteration)
    for name, iterations in by_job.items():
        for place, hold in _of_job(name, sorted(iterations, reverse=True), situation):
            holds.setdefault(place, []).append(hold)
    return [
        Standing(event, tuple(holds.get((event.job, event.iteration), ())))
        for event in situation.checkpoints
    ]


def _of_job(
    name: str, newest_first: list[int], situation: Situation
) -> Iterator[tuple[Place, Hold]]:
    """What a job itself needs, and what `keep` says of its checkpoints."""
    job, retention = situation.jobs.get(name), situation.retention
    if job is None:
        return
    ends = job.is_over and not job.failed_by_itself
    for rank, iteration in enumerate(newest_first):
        if (foreign := _foreign(job, iteration)) is not None:
            yield (name, iteration), Hold(foreign)
        if rank < retention.last:
            more = retention.last - rank
            what = "the newest" if rank == 0 else f"last: {retention.last}"
            until = "a newer one is complete" if more == 1 else f"{more} newer ones are complete"
            yield (name, iteration), Hold(what, None if ends else until)
        for every in retention.every:
            if iteration % every == 0:
                yield (name, iteration), Hold(f"every: {every}")
        if job.restart is not None:
            yield (name, iteration), Hold(f"{name} restarts", "it has restarted")
    for iteration in _to_go_on_from(job, newest_first, rolls_back=name in situation.may_roll_back):
        hold = Hold(f"{name} may have to go on from it", f"{name} has come further, or ended")
        yield (name, iteration), hold


def _foreign(job: JobRecord, iteration: int) -> str | None:
    """Why a checkpoint may not be one that this session's own job has written."""
    if job.there_before is None:
        return "not known to be of this session's own job"
    return "was there before the job" if iteration in job.there_before else None


def _to_go_on_from(job: JobRecord, newest_first: list[int], *, rolls_back: bool) -> Iterator[int]:
    """The checkpoints that a job's current or next attempt may have to begin from.

    An attempt that turns out to have begun elsewhere is set back to where it had to begin. A rule
    that rolls back goes to the last checkpoint before the trouble: somewhere in the logged
    iterations that rules look at, before them, or before the attempt.
    """
    if job.verdict is Verdict.FINISHED or job.was_cancelled:
        return
    starts = {a.first_iteration for a in job.attempts if a.is_open or a is job.attempts[-1]}
    starts |= {a.earliest_start for a in job.attempts if a.is_open}
    known = [start for start in starts if start]
    yield from (iteration for iteration in newest_first if iteration in known)
    if not rolls_back:
        return
    yield from newest_first[:2]
    first_logged = job.tail[0].iteration if job.tail else None
    for iteration in newest_first if first_logged is not None else ():
        yield iteration
        if first_logged is not None and iteration <= first_logged:
            break
    limits = [start - 1 for start in known]
    limits += [job.validation_tail[0][0]] if job.validation_tail else []
    for limit in limits:
        yield from [iteration for iteration in newest_first if iteration <= limit][:1]


# Disk space


def used_bytes(jobs: Mapping[str, JobRecord]) -> int:
    """Bytes of all checkpoints, and of the starts of branches, as far as they were measured."""
    found = sum(sum(job.sizes.values()) for job in jobs.values())
    return found + sum(_start_bytes(job, jobs) for job in jobs.values())


def _start_bytes(job: JobRecord, jobs: Mapping[str, JobRecord]) -> int:
    """Bytes of a branch's own start, or of a merge's inputs, that are not counted elsewhere."""
    parent = jobs.get(job.spec.parent or "")
    if not job.launched or parent is None or job.spec.starts_at is None or not parent.sizes:
        return 0
    mean = sum(parent.sizes.values()) // len(parent.sizes)
    inputs = job.spec.merge.iterations if job.spec.merge else (job.spec.starts_at,)
    own = [at for at in inputs if at in parent.deleted or not job.spec.trainer.pins_by_links]
    return mean * len(own)


def over_budget(situation: Situation, found: Iterable[Standing]) -> str | None:
    """Say that checkpoints take more than the budget, and what would free space; else None."""
    budget, used = situation.retention.budget, used_bytes(situation.jobs)
    if budget is None or used <= budget:
        return None
    by_reason: dict[str, int] = {}
    for standing in found:
        event = standing.checkpoint
        size = situation.jobs[event.job].sizes.get(event.iteration, 0)
        for hold in standing.holds[:1] if len(standing.holds) == 1 else ():
            by_reason[hold.why] = by_reason.get(hold.why, 0) + size
    most = sorted(by_reason.items(), key=lambda each: -each[1])[:3]
    frees = ", ".join(f"{in_bytes(size)} {KEPT_ONLY_AS} `{why}`" for why, size in most if size)
    return (
        f"checkpoints take {in_bytes(used)}, above retention.budget ({in_bytes(budget)}); nothing "
        f"is deleted for that: {frees or 'each is kept for several reasons'}; "
        "`autoexp checkpoints` lists them"
    )


def branch_points(specs: Iterable[JobSpec], job: str) -> set[int]:
    """The iterations of a job that others start from."""
    found: set[int] = set()
    for spec in specs:
        if spec.parent == job and spec.starts_at is not None:
            found.update(spec.merge.iterations if spec.merge else (spec.starts_at,))
        found.update(a.checkpoint for a in spec.awaits if a.job == job and a.checkpoint is not None)
    return found
