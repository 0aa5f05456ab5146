"""The values of a session and a job that an event gives to templates."""

import sys

from autoexp.jobs.record import Attempt, JobRecord
from autoexp.rules.describe import describe
from autoexp.rules.event_values import OF_JOB, facts
from autoexp.rules.events import Event
from autoexp.session.session import Session


def values_of(event: Event, rule: str, session: Session) -> dict[str, str]:
    """Values of all names that a rule's templates may use; unknown ones are empty."""
    filled = {
        "session.id": session.id,
        "session.path": str(session.path),
        "project.name": session.experiment.project.name,
        "rule": rule,
        "event": describe(event),
        "python": sys.executable,
    }
    filled |= dict.fromkeys(OF_JOB, "")
    job = session.jobs.get(event.job)
    if job is not None:
        filled |= _of_job(job)
    return {**filled, **{name: str(value) for name, value in facts(event).items()}}


def _ran_s(attempt: Attempt | None) -> int | None:
    """Seconds from an attempt's start to its end; None before that."""
    if attempt is None or attempt.started_at is None or attempt.ended_at is None:
        return None
    return int((attempt.ended_at - attempt.started_at).total_seconds())


def _of_job(job: JobRecord) -> dict[str, str]:
    attempt = job.attempt
    values = {
        "name": job.spec.name,
        "kind": str(job.spec.kind),
        "parent": job.spec.parent,
        "output_dir": job.spec.output_dir,
        "save_dir": job.spec.save_dir,
        "log": attempt.log if attempt else None,
        "attempt": attempt.number if attempt else None,
        "job_id": attempt.job_id if attempt else None,
        "nodes": attempt.nodes if attempt else None,
        "exit_code": attempt.exit_code if attempt else None,
        "launcher_restarts": job.spec.machine.restarts,
        "container": job.spec.container.kind,
        "ran_s": _ran_s(attempt),
        "iteration": job.iteration,
        "target_iteration": job.spec.target_iteration,
    }
    return {f"job.{name}": "" if value is None else str(value) for name, value in values.items()}
