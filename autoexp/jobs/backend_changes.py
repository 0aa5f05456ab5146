"""Re-derives a job's command and target after its backend settings change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autoexp.backends.registry import AnyBackend
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.model import first_problem
from autoexp.scalars import restored, settled


def changed_spec(spec: JobSpec, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job that change with its backend: command line, environment and target.

    Raises BadInput for a change that the backend does not take.
    """
    if not changes:
        return {}
    if not spec.kind.trains:
        raise BadInput(f"{spec.name}: runs its own command, which `backend` does not change")
    try:
        backend = changed_backend(spec.backend, changes)
    except BadInput as error:
        raise BadInput(f"{spec.name}: {error}") from error
    again = spec.model_copy(update={"backend": backend})
    trainer, branch, save_dir = again.trainer, spec.decay, Path(spec.save_dir)
    command = (
        trainer.cooldown_command(branch, save_dir) if branch else trainer.trunk_command(save_dir)
    )
    return {
        "backend": backend,
        "command": command,
        "environment": trainer.environment(),
        "target_iteration": branch.target if branch else trainer.train_iters,
    }


def changed_backend(backend: AnyBackend, changes: Mapping[str, Any]) -> AnyBackend:
    """The backend with changes, validated; raises BadInput."""
    kind, merged = type(backend), _merged(backend.model_dump(), changes)
    try:
        return kind.model_validate(settled(restored(merged), kind, _refusal))
    except ValidationError as error:
        raise BadInput(first_problem(error, "backend")) from error


def _refusal(path: Sequence[str], reason: str) -> BadInput:
    return BadInput(f"{'.'.join(('backend', *path))}: {reason}")


def _merged(old: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(old)
    for key, value in changes.items():
        inner = both.get(key)
        nested = isinstance(inner, dict) and isinstance(value, Mapping)
        both[key] = _merged(inner, value) if nested else value  # type: ignore[arg-type]
    return both
