"""Results of a study: a row for each job and branch, with settings, losses, scores, hours."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from autoexp.config.sweep_names import as_word
from autoexp.dotted import flat
from autoexp.jobs.limits import spent_gpu_hours
from autoexp.jobs.record import JobRecord
from autoexp.jobs.starts import ended_wrongly
from autoexp.reports.curves import read_curve, validation_loss
from autoexp.reports.upkeep.goodput import PARTS, goodput_of
from autoexp.session.session import Session
from autoexp.states import Kind

Row = dict[str, Any]
"""Values by column; None where a job has none."""

_TAIL = 3
"""Number of logged points that a final loss is averaged over, against noise of single batches."""


_MODELS = frozenset({Kind.TRAIN, Kind.COOLDOWN, Kind.MERGE, Kind.BASELINE})
_RESULTS = ("score.", "validation.")
_PRINTED = ("grad_norm", "tokens_per_s", "tflops", "mfu")
"""What a trainer may print: columns of `compare` where one does."""


def rows(sessions: Iterable[Session]) -> list[Row]:
    """Make one row per job; every row has all columns, in one order."""
    found = [_row(session, job) for session in sessions for job in session.jobs.values()]
    fixed = [key for row in found[:1] for key in row if "." not in key]
    others = dict.fromkeys(key for row in found for key in row if "." in key)
    scores = sorted(key for key in others if key.startswith("score."))
    columns = [*fixed, *scores, *(key for key in others if key not in scores)]
    return [{column: row.get(column) for column in columns} for row in found]


def _row(session: Session, job: JobRecord) -> Row:
    spec, branch, decay = job.spec, job.spec.branch, job.spec.decay
    curve = read_curve(session.path, spec.name)
    tail = curve.losses[-_TAIL:]
    started = [a.started_at for a in job.attempts if a.started_at is not None]
    ended = [a.ended_at for a in job.attempts if a.ended_at is not None]
    trains = spec.target_iteration is not None
    return {
        "session": session.id,
        "job": spec.name,
        "kind": str(spec.kind),
        "parent": spec.parent,
        "verdict": None if job.verdict is None else str(job.verdict),
        "reason": job.reason,
        "iteration": job.iteration,
        "target_iteration": spec.target_iteration,
        "branch_iteration": branch.iteration if branch else None,
        "decay_iterations": decay.decay_iterations if decay else None,
        "decay_fraction": decay.decay_iterations / decay.target if decay else None,
        "decay_shape": decay.shape if decay else None,
        "min_lr": decay.min_lr if decay else None,
        "changes": in_words(spec.changes) or None,
        "parameters": spec.trainer.parameter_count() if trains else None,
        "tokens": spec.tokens_at(job.iteration or 0) if trains else None,
        "flops": _flops(job),
        "final_loss": sum(tail) / len(tail) if tail and trains and not ended_wrongly(job) else None,
        "validation_loss": validation_loss(job),
        "grad_norm": job.grad_norm,
        "tokens_per_s": job.tokens_per_s,
        "tflops": job.tflops,
        "mfu": job.mfu,
        "gpus": spec.machine.gpus,
        "gpu_hours_planned": spec.planned.gpu_hours if spec.planned else None,
        "gpu_hours_spent": sum(spent_gpu_hours(attempt) for attempt in job.attempts),
        **_hours(session, job),
        "attempts": len(job.attempts),
        "job_ids": " ".join(a.job_id for a in job.attempts if a.job_id) or None,
        "started_at": min(started).isoformat() if started else None,
        "ended_at": max(ended).isoformat() if ended else None,
        "git_commit": session.meta.git.get("commit"),
        **{f"validation.{name}": loss for name, (_, loss) in job.validations.items()},
        **{f"score.{name}": value for name, value in job.scores.items()},
        **_settings(job),
    }


def _hours(session: Session, job: JobRecord) -> Row:
    """Where its hours went, as `autoexp goodput` has it."""
    found = goodput_of(session, job)
    parts = {f"hours_{part}": getattr(found, part) for part in PARTS}
    return {"goodput": found.share, **parts, "hours_queued": found.queued_h}


def _flops(job: JobRecord) -> float | None:
    """The compute that made the model: 6 for each parameter and token (Kaplan et al.)."""
    if job.spec.target_iteration is None:
        return None
    parameters = job.spec.trainer.parameter_count()
    tokens = job.spec.tokens_at(job.iteration or 0)
    return None if parameters is None or tokens is None else 6.0 * parameters * tokens


def _settings(job: JobRecord) -> Row:
    """The trainer's arguments, and whatever else a sweep has set; lists as text."""
    arguments = flat({"backend": job.spec.backend.model_dump(mode="json")})
    found = {**arguments, **flat(job.spec.settings)}
    # A key without a dot, as a group's choice, would look like a column of every job.
    named = {key if "." in key else f"setting.{key}": value for key, value in found.items()}
    return {key: str(v) if isinstance(v, list | dict) else v for key, v in named.items()}


def in_words(changes: Mapping[str, Any]) -> str:
    """What a branch changes: `mix=code, lr=0.005`."""
    return ", ".join(
        f"{key.removeprefix('backend.').removeprefix('args.')}={as_word(value)}"
        for key, value in changes.items()
    )


def compared(sessions: Sequence[Session]) -> list[Row]:
    """Rows of trainings and cooldowns, with the settings that differ, and the results."""
    found = [row for row in rows(sessions) if row["kind"] in _MODELS]
    scored = _scores_below(sessions)
    keys = [key for key in (found[0] if found else {}) if "." in key]
    settings = [key for key in keys if not key.startswith(_RESULTS)]
    has_validation = any(row["validation_loss"] is not None for row in found)
    differ = [key for key in settings if len({repr(row[key]) for row in found}) > 1]
    validation = ["validation_loss"] if has_validation else []
    printed = [key for key in _PRINTED if any(row[key] is not None for row in found)]
    columns = [
        *("session", "job", *differ, "iteration", "verdict", "final_loss", *validation, *printed),
        *("gpu_hours_spent", "goodput"),
    ]
    return [
        {
            **{column: row[column] for column in columns},
            **{
                f"score.{name}" if name in columns else name: value
                for name, value in scored.get((row["session"], row["job"]), {}).items()
            },
        }
        for row in found
    ]


def _scores_below(sessions: Sequence[Session]) -> dict[tuple[str, str], Row]:
    """Scores of evaluations, in the row of the evaluated job."""
    found: dict[tuple[str, str], Row] = {}
    for session in sessions:
        for job in session.jobs.values():
            own = job.spec.merge is not None
            place = (session.id, job.spec.name if own else job.spec.parent or job.spec.name)
            found.setdefault(place, {}).update(job.scores)
    return found
