"""Where the hours went: new iterations, those done twice, start-up, saving, slow ones, queueing."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from pydantic import BaseModel

from autoexp.jobs.limits import spent_gpu_hours
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.model import now
from autoexp.reports.tables import NumberTable
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.energy import energy_kwh
from autoexp.session.session import Session
from autoexp.storage import metrics_file
from autoexp.storage.metrics_file import TimedRow

SLOW = 0.7
"""Share of the run's median speed below which an iteration counts as slow."""
PARTS = ("new", "twice", "slow", "startup", "saving", "ending", "other")
NOT_MEASURED = "kWh: not measured here"
_HOUR = 3600.0


class Goodput(BaseModel):
    """Hours of one job; GPU hours where it has GPUs. The parts add up to `hours`."""

    session: str
    job: str
    unit: str
    """`GPU hours`, or `hours`."""
    hours: float
    """Of all its attempts, from the scheduler's starts and ends."""
    new: float
    """Iterations that were done for the first time, at the run's median speed where they were slow.
    """
    twice: float
    """Iterations that were lost and done again."""
    slow: float
    """What iterations below 70 % of the median speed took above the median."""
    startup: float
    """From the start of an attempt until its first iteration begins."""
    saving: float
    """Between iterations: saves, validations, other pauses."""
    ending: float
    """From the last logged iteration to the end of the attempt."""
    other: float
    """What is not a training, logged no iteration, or ran before a requeue."""
    queued_h: float
    """Hours from submission to start, beside the others."""
    kwh: float | None = None
    """Energy by the scheduler's accounting; None: not measured here."""

    @property
    def share(self) -> float | None:
        """Share of the hours that new iterations took."""
        return self.new / self.hours if self.hours else None


def goodput_of(session: Session, job: JobRecord, at: datetime | None = None) -> Goodput:
    """Divide the hours of a job; until now, where it runs."""
    at = at or now()
    weight = max(1, *(attempt.gpus for attempt in job.attempts), 1)
    has_gpus = any(attempt.gpus for attempt in job.attempts)
    seconds = dict.fromkeys(PARTS, 0.0)
    rows = metrics_file.read_timed(session.path, job.spec.name)
    trained = _trained(rows, job)
    wall = 0.0
    for attempt in job.attempts:
        _add_attempt(seconds, attempt, at)
        wall += sum(_span(attempt, at))
    earlier = sum(attempt.earlier_gpu_hours for attempt in job.attempts) / weight * _HOUR
    seconds["other"] += earlier
    _begin_earlier(seconds, rows, job)
    _divide(seconds, trained)
    total = sum(spent_gpu_hours(a) for a in job.attempts) if has_gpus else (wall + earlier) / _HOUR
    whole = sum(seconds.values())
    scale = total / whole if whole else 0.0
    return Goodput(
        session=session.id,
        job=job.spec.name,
        unit="GPU hours" if has_gpus else "hours",
        hours=total,
        queued_h=sum(_queued_s(attempt) for attempt in job.attempts) / _HOUR,
        **{part: spent * scale for part, spent in seconds.items()},
    )


def _span(attempt: Attempt, at: datetime) -> list[float]:
    if attempt.started_at is None:
        return []
    return [max(0.0, ((attempt.ended_at or at) - attempt.started_at).total_seconds())]


def _queued_s(attempt: Attempt) -> float:
    if attempt.submitted_at is None:
        return 0.0
    until = attempt.started_at or attempt.ended_at or attempt.submitted_at
    return max(0.0, (until - attempt.submitted_at).total_seconds())


def _add_attempt(seconds: dict[str, float], attempt: Attempt, at: datetime) -> None:
    """Divide an attempt at its first and last logged iteration; what lies between is `saving` yet.

    A monitor that was away saw lines late: nothing lies outside of the attempt.
    """
    if attempt.started_at is None:
        return
    end = max(attempt.started_at, attempt.ended_at or at)
    if attempt.first_logged_at is None or attempt.last_logged_at is None:
        seconds["other"] += (end - attempt.started_at).total_seconds()
        return
    first = min(max(attempt.first_logged_at, attempt.started_at), end)
    last = min(max(attempt.last_logged_at, first), end)
    seconds["startup"] += (first - attempt.started_at).total_seconds()
    seconds["saving"] += (last - first).total_seconds()
    seconds["ending"] += (end - last).total_seconds()


def _trained(rows: Sequence[TimedRow], job: JobRecord) -> dict[str, float]:
    """Seconds of logged iterations: new, done twice, and above the median where they were slow."""
    found = {"new": 0.0, "twice": 0.0, "slow": 0.0}
    timed = [row.seconds for row in rows if row.seconds is not None]
    if not timed:
        return found
    usual = median(timed)
    step = _step(rows, job)
    before = reached = job.spec.branch.iteration if job.spec.branch else 0
    for row in rows:
        # After a restart the log begins again somewhere: a line is about as many as usually.
        count = row.iteration - before if 0 < row.iteration - before <= 2 * step else step
        each = usual if row.seconds is None else row.seconds
        if each > usual / SLOW:
            found["slow"] += (each - usual) * count
            each = usual
        fresh = min(count, max(0, row.iteration - reached))
        found["new"] += fresh * each
        found["twice"] += (count - fresh) * each
        before, reached = row.iteration, max(reached, row.iteration)
    return found


def _begin_earlier(seconds: dict[str, float], rows: Sequence[TimedRow], job: JobRecord) -> None:
    """The first line of an attempt tells of iterations before it: they are no start-up."""
    timed = [row.seconds for row in rows if row.seconds is not None]
    began = sum(attempt.first_logged_at is not None for attempt in job.attempts)
    first_lines = began * _step(rows, job) * median(timed) if timed else 0.0
    moved = min(first_lines, seconds["startup"])
    seconds["startup"] -= moved
    seconds["saving"] += moved


def _step(rows: Sequence[TimedRow], job: JobRecord) -> float:
    """Iterations from one line to the next."""
    steps = [b.iteration - a.iteration for a, b in pairwise(rows)]
    usual = job.spec.trainer.log_interval or 1
    return float(median([each for each in steps if each > 0] or [usual]))


def _divide(seconds: dict[str, float], trained: dict[str, float]) -> None:
    """Take the logged iterations out of the time in which they were done; the sum stays.

    What was read late, so that it does not fit there, is taken from the rest.
    """
    left = sum(trained.values())
    places = ("saving", "startup", "ending", "other")
    room = sum(seconds[place] for place in places)
    share = min(1.0, room / left) if left else 0.0
    left *= share
    for place in places:
        taken = min(seconds[place], left)
        seconds[place] -= taken
        left -= taken
    for part, spent in trained.items():
        seconds[part] += spent * share


def goodput(sessions: Iterable[Session]) -> list[Goodput]:
    """A row for each job that has started."""
    return [
        goodput_of(session, job)
        for session in sessions
        for job in session.jobs.values()
        if any(attempt.started_at for attempt in job.attempts)
    ]


def with_energy(session: Session, rows: Sequence[Goodput]) -> list[Goodput]:
    """The same rows with the energy that the cluster's accounting has, asked once."""
    cluster = session.experiment.slurm
    if not isinstance(cluster, SlurmCluster):
        return list(rows)
    ids = {
        row.job: [a.job_id for a in session.jobs[row.job].attempts if a.job_id and not a.is_local]
        for row in rows
    }
    found = energy_kwh([job_id for own in ids.values() for job_id in own], cluster)
    return [
        row.model_copy(update={"kwh": sum(known)})
        if (known := [found[job_id] for job_id in ids[row.job] if job_id in found])
        else row
        for row in rows
    ]


def goodput_table(rows: Sequence[Goodput]) -> NumberTable:
    """A line for each job, and the sum where there are several; kWh where any is known."""
    lines = [(row.job, row.model_dump(), row.hours) for row in rows]
    if len(rows) > 1:
        keys = ("hours", *PARTS, "queued_h")
        sums: dict[str, Any] = {key: sum(getattr(row, key) for row in rows) for key in keys}
        sums["kwh"] = sum(row.kwh for row in rows if row.kwh is not None)
        lines.append(("in all", sums, sums["hours"]))
    energy = ["kWh"] if is_energy_known(rows) else []
    cells = [_cells(*line)[: 3 + len(PARTS) + len(energy)] for line in lines]
    return NumberTable(["job", "hours", *PARTS, "queued", *energy], cells, left=1)


def is_energy_known(rows: Sequence[Goodput]) -> bool:
    """True if the cluster's accounting has the energy of one of these jobs."""
    return any(row.kwh is not None for row in rows)


def _cells(name: str, row: dict[str, Any], hours: float) -> list[str]:
    shares = [f"{row[part] / hours:.1%}" if hours else "" for part in PARTS]
    energy = "" if row["kwh"] is None else f"{row['kwh']:.4g}"
    return [name, f"{hours:.2f}", *shares, f"{row['queued_h']:.2f} h", energy]
