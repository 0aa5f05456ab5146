"""Jobs that start together go to SLURM as one array: one submission, ids such as `123_4`."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoexp import durable, payload
from autoexp.jobs import Attempt, JobRecord, JobSpec, now
from autoexp.limits import room, time_limit
from autoexp.machines import SlurmCluster
from autoexp.schedulers.base import Request, Scheduler, Ticket, prepare, submit_once
from autoexp.session import Session
from autoexp.verdicts import saved_iteration

Group = list[JobRecord]


def groups(jobs: Iterable[JobRecord], longest: int) -> list[Group]:
    """Put jobs together that can go as one array; a group of one goes alone.

    What was begun as an array and not submitted stays together. `longest` is SLURM's
    MaxArraySize, which bounds the index too.
    """
    begun: dict[str, Group] = {}
    fresh: dict[tuple[str, str], Group] = {}
    alone: list[Group] = []
    for job in jobs:
        attempt = job.unsubmitted
        if attempt is not None and attempt.array_index is not None:
            begun.setdefault(attempt.name, []).append(job)
        elif _can_join(job.spec) and not job.attempts:
            alike = (job.spec.kind, job.spec.machine.model_dump_json())
            fresh.setdefault(alike, []).append(job)
        else:
            alone.append([job])
    chunks = [
        group[start : start + longest]
        for group in fresh.values()
        for start in range(0, len(group), longest)
    ]
    return [*begun.values(), *chunks, *alone]


def _can_join(spec: JobSpec) -> bool:
    return isinstance(spec.machine, SlurmCluster) and spec.machine.arrays


def begin(session: Session, group: Group) -> Group:
    """Write down the intent of an array's attempts; returns the jobs that are in it.

    A kill in between leaves a shorter array; the others go as another one. After a failed write it
    can be called again, and goes on where it was.
    """
    begun = [job for job in group if job.unsubmitted is not None]
    waiting = [job for job in group if job.wants_attempt()]
    most = room(session.experiment, session.jobs.values())
    joining = waiting if most is None else waiting[:most]
    if begun:
        name = begun[0].attempts[-1].name
    elif joining:
        name = f"{session.id}-{joining[0].spec.kind}-array{_next_number(session)}"
    limits = [time_limit(job, session.jobs.get(job.spec.parent or "")) for job in group]
    longest = None if None in limits else max((x for x in limits if x is not None), default=None)
    for index, job in enumerate(joining, start=len(begun)):
        attempt = Attempt(
            number=1,
            key=f"{session.id}-{job.spec.name}-a1",
            name=name,
            array_index=index,
            log=str(session.path / "attempts" / name / f"task-{index}.log"),
            intended_at=now(),
            first_iteration=saved_iteration(job),
            gpus=job.spec.machine.gpus,
            time_limit_min=longest,
        )
        session.change_job(job, attempts=[attempt])
    return [*begun, *joining]


def _next_number(session: Session) -> int:
    names = {a.name for job in session.jobs.values() for a in job.attempts if a.name != a.key}
    return len(names) + 1


def submit(session: Session, group: Group, scheduler: Scheduler, *, fresh: bool) -> list[str]:
    """Submit an array once; returns the job ids of its tasks, in the group's order."""
    attempts = [job.attempts[-1] for job in group]
    directory = session.path / "attempts" / attempts[0].name
    for job, attempt in zip(group, attempts, strict=True):
        prepare(session.ticket(attempt), job.spec, attempt, scheduler.orders(job.spec, attempt))
    _prepare_array(directory, attempts)
    request = Request(
        name=attempts[0].name,
        log=str(directory / "task-%a.log"),
        machine=group[0].spec.machine,
        time_limit_min=attempts[0].time_limit_min,
        tasks=tuple(attempt.array_index or 0 for attempt in attempts),
        avoided=session.blame.current(now()),
    )
    name = attempts[0].name
    ticket = Ticket(name, directory, name, session.meta.script)
    array_id = submit_once(ticket, request, scheduler, fresh=fresh)
    return [f"{array_id}_{attempt.array_index}" for attempt in attempts]


def _prepare_array(directory: Path, attempts: Sequence[Attempt]) -> None:
    durable.make_directory(directory)
    if (directory / payload.TASKS).exists():
        return
    durable.write(directory / "payload.py", Path(payload.__file__).read_bytes())
    tasks = {str(attempt.array_index): attempt.key for attempt in attempts}
    durable.write(directory / payload.TASKS, json.dumps(tasks, indent=1) + "\n")
