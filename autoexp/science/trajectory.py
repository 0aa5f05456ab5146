"""A score over the checkpoints that were evaluated: of the trunk, of its branches and merges."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from autoexp.errors import BadInput
from autoexp.jobs.lm_eval import error_of
from autoexp.jobs.record import JobRecord
from autoexp.rules.events import CheckpointComplete
from autoexp.session.session import Session
from autoexp.states import Verdict

_MOST_NAMED = 20


class Cell(NamedTuple):
    """A checkpoint, and the evaluation that has its score, or ought to have it."""

    job: str
    """The training, cooldown or merge that was evaluated."""
    iteration: int
    evaluation: str
    """The job that evaluates it; of a merge itself."""
    value: float | None
    error: float | None = None
    """Its standard error, where the evaluation has one."""
    missing: str | None = None
    """Why there is no value."""
    retryable: bool = False
    """True if `autoexp retry` makes the evaluation ready again."""


class Trajectory(NamedTuple):
    """The cells of one score in a session, by job and iteration."""

    score: str
    cells: tuple[Cell, ...]

    @property
    def points(self) -> dict[str, list[Cell]]:
        """Cells that have a value, by job and ascending; the last one of each iteration."""
        found: dict[str, dict[int, Cell]] = {}
        for cell in self.cells:
            if cell.value is not None:
                found.setdefault(cell.job, {})[cell.iteration] = cell
        return {job: [cells[at] for at in sorted(cells)] for job, cells in found.items()}

    @property
    def missing(self) -> list[Cell]:
        """Cells that no evaluation of that checkpoint has a value for."""
        have = {(cell.job, cell.iteration) for cell in self.cells if cell.value is not None}
        return [cell for cell in self.cells if (cell.job, cell.iteration) not in have]

    def lines(self, session: str) -> list[str]:
        """The last score of each model, then what is missing, and what to do about it."""
        found = []
        for name, cells in self.points.items():
            last = cells[-1]
            error = "" if last.error is None else f" ± {last.error:.4g}"
            found.append(f"{name} at iteration {last.iteration}: {last.value:.4g}{error}")
        for cell in self.missing:
            where = f"{cell.job} at iteration {cell.iteration}"
            found.append(f"missing: {where}: {cell.evaluation}: {cell.missing}")
        if over := [cell.evaluation for cell in self.missing if cell.retryable]:
            found.append(f"again: autoexp retry {session} {' '.join(dict.fromkeys(over))}")
        return found


def trajectory(session: Session, asked: str) -> Trajectory:
    """Read a score, `TASK/METRIC` or a dotted name, of all evaluations of a session.

    Raises BadInput, with the scores that there are, where no evaluation has it.
    """
    jobs = session.jobs.values()
    known = dict.fromkeys(name for job in jobs for name in job.scores)
    name = next((each for each in (asked, asked.replace("/", ".")) if each in known), None)
    if name is None:
        named = ", ".join(list(known)[:_MOST_NAMED]) or "no evaluation has written any"
        raise BadInput(f"{session.id}: no score {asked}; there is: {named}")
    places = {job: place for place, job in enumerate(session.jobs)}
    cells = sorted(_cells(session, name), key=lambda cell: (places[cell.job], cell.iteration))
    found = Trajectory(name, tuple(cells))
    if not found.points:
        raise BadInput(f"{session.id}: {asked} is of no checkpoint of this session")
    return found


def _cells(session: Session, score: str) -> Iterator[Cell]:
    for job in session.jobs.values():
        evaluated = _evaluated(session, job) if job.spec.scores else None
        if evaluated is None or evaluated[0] not in session.jobs:
            continue
        of, iteration = evaluated
        value = job.scores.get(score)
        reason = None if value is not None else _why_missing(job, score)
        error = job.scores.get(error_of(score))
        yield Cell(of, iteration, job.spec.name, value, error, reason, job.is_over)


def _why_missing(job: JobRecord, score: str) -> str:
    if job.verdict is Verdict.FAILED:
        return job.reason or "failed"
    return f"has finished without {score}" if job.verdict else "has not finished yet"


def _evaluated(session: Session, job: JobRecord) -> tuple[str, int] | None:
    """The model that a job has evaluated: whose, and at which iteration."""
    spec = job.spec
    if spec.merge is not None:
        return spec.name, spec.merge.at
    action = session.actions.get(spec.launched_by or "")
    if action is not None and isinstance(action.event, CheckpointComplete):
        return action.event.job, action.event.iteration
    parent = session.jobs.get(spec.parent or "")
    if parent is None:
        return None
    if parent.spec.merge is not None:
        return parent.spec.name, parent.spec.merge.at
    awaited = _awaited(session.jobs, spec.name, parent.spec.name)
    iteration = awaited or parent.spec.target_iteration
    return None if iteration is None else (parent.spec.name, iteration)


def _awaited(jobs: Mapping[str, JobRecord], name: str, parent: str) -> int | None:
    """The checkpoint of `parent` that a job waits for, or a job before it does; None: its end."""
    for awaited in jobs[name].spec.awaits if name in jobs else ():
        if awaited.job == parent:
            return awaited.checkpoint
        if (found := _awaited(jobs, awaited.job, parent)) is not None:
            return found
    return None
