"""Starts from an older session: the same again, or a cooldown from one of its checkpoints."""

import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.backends.protocol import Branch, FoundCheckpoint
from autoexp.config.compose import Composed, compose
from autoexp.config.search_path import group_choices
from autoexp.config.values.lengths import as_written
from autoexp.dotted import dump, escaped
from autoexp.errors import BadInput
from autoexp.jobs.record import JobRecord
from autoexp.session.session import Session

_WRITTEN = re.compile(r"(?P<session>[^:@]+)(:(?P<job>[^:@]+)(@(?P<iteration>[0-9]+))?)?")

Values = dict[str, Any]


class Origin(NamedTuple):
    """`SESSION`, `SESSION:JOB` or `SESSION:JOB@ITERATION`."""

    session: str
    job: str | None = None
    iteration: int | None = None


def read_origin(written: str) -> Origin:
    """Parse the value of `--from`."""
    match = _WRITTEN.fullmatch(written)
    if match is None:
        raise BadInput(f"--from {written}: write SESSION, SESSION:JOB or SESSION:JOB@ITERATION")
    iteration = match["iteration"]
    return Origin(match["session"], match["job"], None if iteration is None else int(iteration))


def compose_from(
    session: Session,
    origin: Origin,
    overrides: Sequence[str] = (),
    fill_in: Callable[[Values], Values] = dict,
) -> Composed:
    """Compose the configuration of a session, with overrides, groups included.

    With a cooldown for a job, that cooldown alone, from the checkpoint it started from. With an
    iteration, cooldowns from that checkpoint of the job: as the session's own decay, or as the
    overrides say (`cooldowns=[{decay: {iterations: 40}}]`).
    """
    base = as_written(session.experiment.model_dump(mode="json"))
    del base["start"]
    if origin.job is None:
        return _composed(base, overrides, fill_in, origin)
    job = session.job(origin.job)
    base["sweep"] = None  # one of its points
    base["repeats"] = 1
    base["derived"] = {}  # its settings are worked out
    base["backend"] = job.spec.backend.model_dump(mode="json")
    branch = job.spec.branch
    if origin.iteration is None and branch is None:
        return _composed(base, overrides, fill_in, origin)
    base["merges"] = []  # of checkpoints that are not there
    base["baselines"] = []  # beside a training that is not there
    # Stages of the training itself have nothing to follow here.
    stages = base["stages"].items()
    base["stages"] = {name: stage for name, stage in stages if stage and stage["each"]}
    if origin.iteration is not None:
        found = _checkpoint(session, job, origin.iteration)
    else:
        assert branch is not None
        found = _start_of(session, job, branch.iteration)
        base["cooldowns"] = [_as_it_was(branch)]
    start: Values = {
        "session": session.id,
        "job": job.spec.name,
        "iteration": found.iteration,
        "path": str(found.path),
    }
    if branch is not None and branch.samples is not None:
        start["samples"] = job.spec.samples_at(found.iteration)
        start["tokens"] = job.spec.tokens_at(found.iteration)

    def branch_there(values: Values) -> Values:
        values = fill_in(values)
        return {
            **values,
            "cooldowns": _all_from(start, values.get("cooldowns", [])),
            "start": start,
        }

    return _composed(base, overrides, branch_there, origin)


def _as_it_was(branch: Branch) -> Values:
    decay = {
        "iterations": branch.decay_iterations,
        "shape": branch.shape,
        "min_lr": branch.min_lr,
        "power": branch.power,
        "points": branch.points and [list(point) for point in branch.points],
        "hold": branch.hold_iterations / branch.decay_iterations,
    }
    return {"at": [branch.iteration], "stable": branch.stable_iterations or None, "decay": decay}


def _all_from(start: Values, cooldowns: Sequence[Any]) -> list[Any]:
    """The cooldowns from this one checkpoint; several points with the same decay count once."""
    moved = [_at(cooldown, start["iteration"]) for cooldown in cooldowns]
    different = [one for n, one in enumerate(moved) if one not in moved[:n]]
    if not different:
        raise BadInput(
            f"--from {start['session']}:{start['job']}@{start['iteration']}: how long does it "
            "decay? Add 'cooldowns=[{decay: {iterations: N}}]'"
        )
    return different


def _at(cooldown: Any, iteration: int) -> Any:
    """The cooldown from this one checkpoint, whatever points it names."""
    if not isinstance(cooldown, dict):
        return cooldown
    kept = {k: v for k, v in cooldown.items() if k not in ("at", "every", "budgets")}
    budgets, decay = cooldown.get("budgets"), cooldown.get("decay") or {}
    if budgets:
        decay = {**decay, "iterations": None, "tokens": None}
        decay["fraction"] = budgets.get("fraction", 0.2)
        decay["shape"] = budgets.get("shape") or decay.get("shape", "minus_sqrt")
    return {**kept, "at": [iteration], "decay": decay}


def _checkpoint(session: Session, job: JobRecord, iteration: int) -> FoundCheckpoint:
    complete = job.spec.trainer.checkpoints(Path(job.spec.save_dir)).complete
    for found in complete:
        if found.iteration == iteration:
            return found
    there = ", ".join(str(found.iteration) for found in complete) or "none"
    raise BadInput(
        f"{session.id}:{job.spec.name}@{iteration}: no complete checkpoint in {job.spec.save_dir}; "
        f"there are: {there}"
    )


def _start_of(session: Session, job: JobRecord, iteration: int) -> FoundCheckpoint:
    """The checkpoint that a cooldown started from: its pinned copy, else its parent's."""
    pinned = job.spec.trainer.checkpoints(Path(job.spec.save_dir)).complete
    for found in pinned:
        if found.iteration == iteration:
            return found
    parent = session.jobs.get(job.spec.parent or "")
    return _checkpoint(session, parent or job, iteration)


def _composed(
    base: Values, overrides: Sequence[str], fill_in: Callable[[Values], Values], origin: Origin
) -> Composed:
    """Compose the values of a session as if they were a file, with overrides on top."""
    chosen = group_choices(overrides)
    values = {key: value for key, value in base.items() if key not in chosen}
    defaults = [{group: choice} for group, choice in chosen.items()]
    content = {"defaults": [*defaults, "_self_"], **escaped(values)}
    others = [word for word in overrides if word.partition("=")[0] not in chosen]
    name = re.sub(r"[^A-Za-z0-9_-]", "_", f"from_{origin.session}")
    with tempfile.TemporaryDirectory(prefix="autoexp-from-") as directory:
        file = Path(directory) / f"{name}.yaml"
        file.write_text(dump(content), encoding="utf-8")
        composed = compose(str(file), others, fill_in)
    return composed._replace(overrides=tuple(overrides))
