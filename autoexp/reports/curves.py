"""Loss curves of a session and the gain of each cooldown over its trunk."""

from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import NamedTuple

from autoexp.jobs.limits import spent_gpu_hours
from autoexp.jobs.record import JobRecord
from autoexp.jobs.starts import branch_was_seen
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import metrics_file

# Number of logged points averaged at a curve's end, against noise of single batches.
_TAIL = 3
_AROUND = 5


class Curve(NamedTuple):
    """One job's metrics by iteration, ascending; points with no loss (NaN) are left out."""

    iterations: list[int]
    losses: list[float]
    """Nats per token."""
    learning_rates: list[float]

    def behind(self, iteration: int) -> "Curve":
        """The points after an iteration: a branch has no others."""
        first = bisect_right(self.iterations, iteration)
        return Curve(self.iterations[first:], self.losses[first:], self.learning_rates[first:])

    def joined_to(self, trunk: "Curve") -> "Curve":
        """The curve of a branch with its trunk's last point before it in front: the lines meet."""
        last = bisect_left(trunk.iterations, self.iterations[0]) - 1 if self.iterations else -1
        if last < 0:
            return self
        return Curve(
            [trunk.iterations[last], *self.iterations],
            [trunk.losses[last], *self.losses],
            [trunk.learning_rates[last], *self.learning_rates],
        )


class Gain(NamedTuple):
    """A cooldown's end against the trunk at the same iteration; losses in nats per token."""

    job: str
    iteration: int
    loss: float
    trunk_loss: float

    @property
    def gain(self) -> float:
        """Loss of the trunk minus loss of the cooldown."""
        return self.trunk_loss - self.loss


class Merged(NamedTuple):
    """A merged model against the cooldown that it may replace; losses in nats per token."""

    job: str
    iteration: int
    loss: float
    cooldown: str | None
    """The best one from the same checkpoint, on the same data; None: there is none."""
    cooled: float | None
    saved_gpu_hours: float | None


def read_curve(session: Path, job: str) -> Curve:
    """Read a job's metrics; where an iteration stands twice (a restart), the last one counts."""
    rows = metrics_file.read(session, job)
    return Curve(
        [row.iteration for row in rows],
        [row.loss for row in rows],
        [row.learning_rate for row in rows],
    )


def validation_loss(job: JobRecord) -> float | None:
    """The last loss on the set `validation`, else on the first set; of a merge its own score."""
    if job.spec.merge is not None:
        return job.scores.get("validation_loss")
    last = job.validations.get("validation") or next(iter(job.validations.values()), None)
    return None if last is None else last[1]


def merges(session: Session) -> list[Merged]:
    """The merges that have a loss, each with the best cooldown from its last checkpoint."""
    found = []
    for job in session.jobs.values():
        loss, inputs = validation_loss(job), job.spec.merge
        if inputs is None or loss is None:
            continue
        rivals = [
            (other_loss, other)
            for other in _ended_branches(session)
            if (other.spec.parent, other.spec.starts_at) == (job.spec.parent, inputs.at)
            and not other.spec.changes_data
            and (other_loss := validation_loss(other)) is not None
        ]
        cooled, rival = min(rivals, key=lambda pair: pair[0], default=(None, None))
        saved = None if rival is None else _hours(rival) - _hours(job)
        name = None if rival is None else rival.spec.name
        found.append(Merged(job.spec.name, inputs.at, loss, name, cooled, saved))
    return found


def _hours(job: JobRecord) -> float:
    return sum(spent_gpu_hours(attempt) for attempt in job.attempts)


def gains(session: Session) -> list[Gain]:
    """The gain of each cooldown, as far as both curves reach.

    Only of those that are known to have begun at their branch points: a training from 0 has losses
    too, but they cannot be compared.
    """
    found = []
    for job in filter(branch_was_seen, _ended_branches(session)):
        branch = read_curve(session.path, job.spec.name)
        trunk = _mean_around(read_curve(session.path, job.spec.parent or ""), job.iteration or 0)
        if branch.losses and trunk is not None:
            tail = branch.losses[-_TAIL:]
            found.append(Gain(job.spec.name, branch.iterations[-1], sum(tail) / len(tail), trunk))
    return found


def without_seen_start(session: Session) -> list[str]:
    """Finished cooldowns whose start was not in the log: their gain is unknown."""
    return [
        job.spec.name
        for job in _ended_branches(session)
        if not branch_was_seen(job) and job.verdict is not Verdict.FAILED
    ]


def _ended_branches(session: Session) -> list[JobRecord]:
    return [
        job
        for job in session.jobs.values()
        if job.spec.branch is not None
        and job.spec.parent is not None
        and job.iteration == job.spec.target_iteration
    ]


def _mean_around(curve: Curve, iteration: int) -> float | None:
    """Mean of the points nearest to `iteration`; None while the curve has not come that far."""
    if not curve.iterations or curve.iterations[-1] < iteration:
        return None
    nearest = sorted(
        zip(curve.iterations, curve.losses, strict=True), key=lambda p: abs(p[0] - iteration)
    )
    losses = [loss for _, loss in nearest[:_AROUND]]
    return sum(losses) / len(losses)
