"""What held in a drill, from the session's records alone: pure functions of values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

from pydantic import BaseModel

from autoexp import states
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.operations.drill import setting
from autoexp.retention.decision import KEPT_ONLY_AS
from autoexp.states import Kind, Verdict

Result = Literal["held", "did not hold", "not tried"]


class Line(BaseModel):
    """A line of the table: an exercise of the drill."""

    exercise: str
    result: Result
    did: str
    """What was done; empty for what was not tried."""
    seen: str
    """What was seen then, or why it was not tried."""
    seconds: float | None
    """From what was done until it was seen."""


class Outcome(BaseModel):
    """`autoexp drill --json`."""

    session: str
    path: str
    site: str
    """The file of `configs/slurm/`; empty where it is not known."""
    began: datetime
    ended: datetime
    all_held: bool
    """True if all that could be tried here was tried, and held."""
    lines: list[Line]


class Trial(NamedTuple):
    """What was done in an exercise, and when."""

    exercise: str
    did: str
    began: datetime
    ended: datetime
    job: str = ""
    """The job that it is about."""
    attempt: int = 0
    """The training's attempt that was disturbed, or that ran beside."""
    saved: int = 0
    """The training's newest checkpoint when it was disturbed."""
    missed: str = ""
    """What was waited for in vain."""


class Records(NamedTuple):
    """What is known of the session at the end."""

    jobs: Mapping[str, JobRecord]
    completed: Mapping[tuple[str, int], datetime]
    """When each checkpoint was seen complete, by job and iteration."""
    submitted: Mapping[str, Sequence[str]]
    """By the key of each attempt: ids of the scheduler's jobs of that name, and of the claim."""
    nodes: Mapping[str, Sequence[str]]
    """By the key of each attempt: names of the nodes that it had."""
    avoided: Sequence[str]
    """The nodes in the drill's list."""
    kept_every: Sequence[int]
    """Checkpoints at multiples of these stay, as the newest of each job does."""
    gone: Sequence[tuple[str, int]]
    """Checkpoints that were complete and whose directory is not there, by job and iteration."""
    disk_warning: str
    """What the session said of checkpoints above their budget; empty if it said nothing."""
    prefect_has_all: bool
    """True if Prefect's server has got the last state."""

    @property
    def trunk(self) -> JobRecord:
        return next(job for job in self.jobs.values() if job.spec.kind is Kind.TRAIN)


Found = Iterator[str]
"""Words on what is not as it has to be; empty: it held."""


def lines(
    trials: Sequence[Trial], blocked: Mapping[str, str], records: Records, stopped: str = ""
) -> list[Line]:
    """The table: what was tried in its order, and what was not.

    ``stopped`` is why the drill ended before the exercises of which there is no trial.
    """
    tried = {trial.exercise: trial for trial in trials}
    found = []
    for exercise in setting.EXERCISES:
        if exercise in tried:
            found.append(_line(tried[exercise], records))
        else:
            reason = blocked.get(exercise) or stopped
            found.append(
                Line(exercise=exercise, result="not tried", did="", seen=reason, seconds=None)
            )
    return found


def all_held(table: Sequence[Line], blocked: Mapping[str, str]) -> bool:
    """True if all that could be tried was, and held."""
    return all(line.result == "held" or line.exercise in blocked for line in table)


def _line(trial: Trial, records: Records) -> Line:
    problems, words = _CHECKS[trial.exercise]
    found = [trial.missed] if trial.missed else list(problems(trial, records))
    return Line(
        exercise=trial.exercise,
        result="did not hold" if found else "held",
        did=trial.did,
        seen="; ".join(found) or words(trial, records),
        seconds=round((trial.ended - trial.began).total_seconds(), 1),
    )


# What has to be so, and the words for it


def _twice(records: Records) -> Found:
    """Attempts of which the scheduler, or a claim, knows more than one job."""
    for key, ids in records.submitted.items():
        if len(set(ids)) > 1:
            yield f"{key} was submitted {len(set(ids))} times: {', '.join(sorted(set(ids)))}"


def _from_its_checkpoint(job: JobRecord) -> Found:
    """A branch begins from exactly the planned checkpoint, and finishes."""
    assert job.spec.branch is not None
    planned, begun = job.spec.branch.iteration, _first_start(job)
    if begun is None:
        yield f"{job.spec.name} never began"
    elif begun != planned:
        yield f"{job.spec.name} began from {begun}, and {planned} was planned"
    yield from _unfinished(job)


def _first_start(job: JobRecord) -> int | None:
    return next((a.started_from for a in job.attempts if a.started_from is not None), None)


def _unfinished(job: JobRecord) -> Found:
    if job.verdict is not Verdict.FINISHED:
        yield f"{job.spec.name} is not finished: {job.reason or job.state}"


def _attempt(job: JobRecord, number: int) -> Attempt | None:
    return next((a for a in job.attempts if a.number == number), None)


def _sick_problems(trial: Trial, records: Records) -> Found:
    trunk = records.trunk
    first = _attempt(trunk, trial.attempt)
    if first is None or len(first.sick_nodes) != 1:
        yield "no check named exactly one node"
        return
    (node,) = first.sick_nodes
    if first.verdict is not Verdict.CONTINUE or first.state != "NODE_FAIL":
        yield f"its attempt was not given back: {first.state}, {first.verdict}"
    if node not in records.avoided:
        yield f"{node} is not in the list of avoided nodes"
    for job in records.jobs.values():
        for attempt in job.attempts:
            if attempt is not first and node in records.nodes.get(attempt.key, ()):
                yield f"{attempt.key} ran on {node} all the same"


def _sick_words(trial: Trial, records: Records) -> str:
    first = _attempt(records.trunk, trial.attempt)
    (node,) = first.sick_nodes if first else ("",)
    return f"{node} was named and listed, the attempt given back; all later ones ran elsewhere"


def _monitor_problems(trial: Trial, records: Records) -> Found:
    yield from _twice(records)
    yield from _from_its_checkpoint(records.jobs[trial.job])
    ran = _attempt(records.trunk, trial.attempt)
    if ran is None or (ran.ended_at is not None and ran.ended_at < trial.ended):
        yield "the training did not run on"


def _monitor_words(trial: Trial, records: Records) -> str:
    start = _first_start(records.jobs[trial.job])
    return f"{trial.job} was submitted once, began from {start}; the training ran on"


def _server_problems(trial: Trial, records: Records) -> Found:
    job = records.jobs[trial.job]
    submitted = job.attempts[0].submitted_at if job.attempts else None
    if submitted is None or not trial.began <= submitted <= trial.ended:
        yield f"{trial.job} was not submitted while the server was away"
    yield from _from_its_checkpoint(job)
    if not records.prefect_has_all:
        yield "Prefect's records of the session are incomplete"


def _server_words(trial: Trial, records: Records) -> str:
    start = _first_start(records.jobs[trial.job])
    return f"submitted, it began from {start}; Prefect has the session's last state"


def _killed_problems(trial: Trial, records: Records) -> Found:
    trunk = records.trunk
    killed, after = _attempt(trunk, trial.attempt), _attempt(trunk, trial.attempt + 1)
    if killed is None or not states.is_terminal(killed.state):
        yield "the attempt did not end"
    elif killed.state == "COMPLETED" or killed.verdict is not Verdict.CONTINUE:
        yield f"the attempt ended {killed.state}, {killed.verdict}: {trunk.reason or ''}"
    if after is None:
        yield "no attempt followed"
    elif after.started_from != (saved := _saved_before(records, after)):
        yield f"the next attempt began from {after.started_from}, and {saved} was saved"
    elif saved < trial.saved:
        yield f"checkpoint {trial.saved}, which was there, is lost"
    yield from _twice(records)


def _saved_before(records: Records, attempt: Attempt) -> int:
    """The training's newest checkpoint that was complete before an attempt of it was made."""
    name, until = records.trunk.spec.name, attempt.intended_at
    seen = [at for (job, at), when in records.completed.items() if job == name and when <= until]
    return max(seen, default=0)


def _killed_words(trial: Trial, records: Records) -> str:
    killed, after = (_attempt(records.trunk, trial.attempt + n) for n in (0, 1))
    assert killed is not None and after is not None
    start = after.started_from
    return f"{killed.state}; attempt {after.number} went on from {start}, the newest checkpoint"


def _budget_problems(trial: Trial, records: Records) -> Found:
    job = records.jobs[trial.job]
    assert job.spec.branch is not None
    saved = records.completed.get((records.trunk.spec.name, job.spec.branch.iteration))
    if saved is None or not trial.began <= saved <= trial.ended:
        yield "no planned checkpoint was complete while the budget was full"
    if job.attempts and job.attempts[0].intended_at < trial.ended:
        yield f"{trial.job} was submitted all the same"
    yield from _from_its_checkpoint(job)


def _budget_words(trial: Trial, records: Records) -> str:
    start = _first_start(records.jobs[trial.job])
    return f"{trial.job} waited although its checkpoint was there; then it began from {start}"


def _disk_problems(trial: Trial, records: Records) -> Found:
    del trial
    if not records.disk_warning:
        yield "nothing was said of checkpoints above `retention.budget`"
    elif KEPT_ONLY_AS not in records.disk_warning:
        yield f"the warning does not say what would free space: {records.disk_warning}"
    for name, iteration in records.gone:
        newest = max(at for job, at in records.completed if job == name)
        if iteration == newest or any(iteration % every == 0 for every in records.kept_every):
            yield f"checkpoint {iteration} of {name}, which `retention.keep` keeps, is gone"


def _disk_words(trial: Trial, records: Records) -> str:
    del trial
    stay = len(records.completed) - len(records.gone)
    return (
        f"warned, with what would free space; {stay} checkpoints that `retention.keep` keeps are "
        f"there, {len(records.gone)} that it does not keep deleted"
    )


def _whole_problems(trial: Trial, records: Records) -> Found:
    del trial
    yield from _twice(records)
    for job in records.jobs.values():
        yield from _from_its_checkpoint(job) if job.spec.branch else _unfinished(job)
        for attempt in job.attempts:
            if attempt.wrong_start or attempt.fell_back:
                yield f"{attempt.key}: {attempt.wrong_start or 'it fell back'}"


def _whole_words(trial: Trial, records: Records) -> str:
    del trial
    attempts = [attempt for job in records.jobs.values() for attempt in job.attempts]
    branches = sum(job.spec.branch is not None for job in records.jobs.values())
    return (
        f"all {len(records.jobs)} jobs finished, {branches} cooldowns from exactly their "
        f"checkpoints; {len(attempts)} attempts, none submitted twice"
    )


_Problems = Callable[[Trial, Records], Found]
_Words = Callable[[Trial, Records], str]
_CHECKS: dict[str, tuple[_Problems, _Words]] = {
    setting.SICK_NODE: (_sick_problems, _sick_words),
    setting.MONITOR: (_monitor_problems, _monitor_words),
    setting.SERVER: (_server_problems, _server_words),
    setting.STEP: (_killed_problems, _killed_words),
    setting.JOB: (_killed_problems, _killed_words),
    setting.BUDGET: (_budget_problems, _budget_words),
    setting.DISK: (_disk_problems, _disk_words),
    setting.WHOLE: (_whole_problems, _whole_words),
}
