"""From stages to jobs: what they refer to, in which order, and what their templates say."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from autoexp.budget import estimate
from autoexp.errors import BadInput
from autoexp.experiment import Experiment
from autoexp.jobs import JobSpec, Kind
from autoexp.machines import LocalMachine, SlurmCluster
from autoexp.plain import flat
from autoexp.rules.templates import fill, names_in, refuse_unknown
from autoexp.stages import EACH, TRUNK, AtCheckpoint, Awaited, Draft, Stage

LATE = ("checkpoint_path", "checkpoint_iteration")
"""What is known of a sibling only when the stage is released."""


def stage_jobs(experiment: Experiment, jobs: Sequence[JobSpec]) -> list[JobSpec]:
    """The jobs of all stages, each behind those that it refers to.

    `jobs` are the training, if there is one, and its cooldowns. Raises BadInput for a cycle, a
    sibling that does not exist, and a name that no value will be there for.
    """
    stages = {name: stage for name, stage in experiment.stages.items() if stage is not None}
    if not stages:
        return []
    given = {_name_of(spec): spec for spec in jobs}
    order = _order(stages, given)
    root = Path(jobs[0].output_dir).parent
    found: list[JobSpec] = []
    shared: dict[str, JobSpec] = dict(given)
    by_cooldown: dict[str, dict[str, JobSpec]] = {
        spec.name: {EACH: spec} for spec in jobs if spec.branch is not None
    }
    for name in order:
        stage = stages[name]
        if stage.each is None:
            parent = jobs[0]
            job = _job(experiment, name, stage, parent, shared, root)
            shared[name] = job
            found.append(job)
            continue
        if not by_cooldown:
            raise BadInput(f"stages.{name}: `each: cooldown`, and there is no cooldown")
        for own in by_cooldown.values():
            job = _job(experiment, name, stage, own[EACH], shared | own, root)
            own[name] = job
            found.append(job)
    return found


def _name_of(spec: JobSpec) -> str:
    """`stable`, or `cd1000`: the job's name without its trunk's."""
    if spec.branch is None:
        return TRUNK
    return spec.name[spec.name.index(f"-cd{spec.branch.iteration}") + 1 :]


# The order


def _order(stages: Mapping[str, Stage], given: Mapping[str, JobSpec]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for name, stage in stages.items():
        references = set(_references(name, stage))
        for sibling in references - set(given) - {EACH}:
            _refuse_missing(name, sibling, stages, given)
        if EACH in references and stage.each is None:
            raise BadInput(f"stages.{name}: refers to `{EACH}`; say `each: cooldown`")
        for sibling in references & set(stages):
            if stages[sibling].each is not None and stage.each is None:
                raise BadInput(
                    f"stages.{name}: {sibling} is one for each cooldown; say `each: cooldown` too"
                )
        graph[name] = references & set(stages)
    try:
        # In the order of the file, as far as the references leave it.
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        path = " -> ".join(reversed(error.args[1]))
        raise BadInput(f"stages: a cycle, {path}: each waits for the next") from error


def _refuse_missing(
    name: str, sibling: str, stages: Mapping[str, Stage], given: Mapping[str, JobSpec]
) -> None:
    known = [*given, *stages]
    if sibling in stages:
        return
    path = " -> ".join([*_path_to(name, stages), sibling])
    raise BadInput(
        f"stages.{name}: there is no sibling `{sibling}` ({path}); there are: {', '.join(known)}"
    )


def _path_to(name: str, stages: Mapping[str, Stage]) -> list[str]:
    """From a stage that nothing refers to, down to this one."""
    path = [name]
    while True:
        above = next(
            (
                other
                for other, stage in stages.items()
                if path[0] in _references(other, stage) and other not in path
            ),
            None,
        )
        if above is None:
            return path
        path.insert(0, above)


def _references(name: str, stage: Stage) -> Iterator[str]:
    """The siblings that a stage waits for."""
    yield from stage.after
    if stage.each is not None:
        yield EACH
    elif not stage.after and not any("sibling." in text for text in stage.texts()):
        yield TRUNK
    for text in stage.texts():
        try:
            for part in names_in(text):
                if part.startswith("sibling."):
                    yield part.split(".")[1]
        except ValueError as error:
            raise BadInput(f"stages.{name}: {error}") from error


# One job


def _job(
    experiment: Experiment,
    name: str,
    stage: Stage,
    parent: JobSpec,
    siblings: Mapping[str, JobSpec],
    root: Path,
) -> JobSpec:
    job_name = f"{parent.name}-{name}"
    output = root / job_name
    awaited = {
        sibling: _awaited(name, stage, sibling, siblings[sibling])
        for sibling in dict.fromkeys(_references(name, stage))
    }
    values = {
        "job.name": job_name,
        "job.output_dir": str(output),
        "job.save_dir": str(output / "checkpoints"),
        "python": sys.executable,
        "project.name": experiment.project.name,
    }
    late: dict[str, Awaited] = {}
    for sibling, waits in awaited.items():
        spec = siblings[sibling]
        values |= {f"sibling.{sibling}.{key}": text for key, text in _values_of(spec).items()}
        if spec.target_iteration is not None:
            late[sibling] = waits
    known = {*values, *(f"sibling.{sibling}.{key}" for sibling in late for key in LATE)}
    try:
        refuse_unknown(iter(stage.texts()), known)
    except ValueError as error:
        raise BadInput(f"stages.{name}: {error}") from error
    # What will be known later is shown as it is written.
    shown = {key: f"{{{key}}}" for key in known} | values
    spec = JobSpec(
        name=job_name,
        kind=Kind(stage.kind),
        parent=parent.name,
        backend=experiment.backend,
        machine=_machine(experiment, name, stage),
        container=experiment.container,
        command=tuple(fill(text, shown) for text in stage.command),
        environment={key: fill(text, shown) for key, text in stage.environment.items()},
        output_dir=str(output),
        save_dir=str(output / "checkpoints"),
        scores=str(output / stage.scores) if stage.scores else None,
        awaits=_needed(awaited, siblings),
        draft=_draft(stage, values, late),
    )
    planned = estimate(spec, experiment.budget, stage.minutes)
    return spec.model_copy(update={"planned": planned})


def _draft(stage: Stage, values: Mapping[str, str], late: Mapping[str, Awaited]) -> Draft | None:
    """What is filled when the stage is released; None when everything is known beforehand."""
    used = {name for text in stage.texts() for name in names_in(text)}
    awaited = {
        sibling: waits
        for sibling, waits in late.items()
        if any(f"sibling.{sibling}.{key}" in used for key in LATE)
    }
    if not awaited:
        return None
    known = {key: text for key, text in values.items() if key in used}
    return Draft(command=stage.command, environment=stage.environment, values=known, late=awaited)


def _needed(awaited: Mapping[str, Awaited], siblings: Mapping[str, JobSpec]) -> tuple[Awaited, ...]:
    """What a stage waits for, without what the others among it wait for anyway."""
    covered = {inner for sibling in awaited for inner in siblings[sibling].awaits}
    return tuple(dict.fromkeys(each for each in awaited.values() if each not in covered))


def _awaited(name: str, stage: Stage, sibling: str, spec: JobSpec) -> Awaited:
    after = stage.after.get(sibling)
    if not isinstance(after, AtCheckpoint):
        return Awaited(job=spec.name)
    trainer = spec.trainer
    if spec.target_iteration is None:
        raise BadInput(f"stages.{name}: {sibling} makes no checkpoints; wait for its end")
    iteration = after.checkpoint
    first = spec.branch.iteration if spec.branch else 0
    if not first < iteration <= spec.target_iteration or iteration % trainer.save_interval:
        raise BadInput(
            f"stages.{name}: {sibling} has no checkpoint {iteration}: they are at multiples of "
            f"{trainer.save_interval}, up to {spec.target_iteration}"
        )
    return Awaited(job=spec.name, checkpoint=iteration)


def _values_of(spec: JobSpec) -> dict[str, str]:
    """What can be said of a job before it runs."""
    said = {
        "name": spec.name,
        "kind": str(spec.kind),
        "output_dir": spec.output_dir,
        "save_dir": spec.save_dir,
        "scores": spec.scores or "",
        "target_iteration": str(spec.target_iteration or ""),
    }
    parameters = flat({"backend": spec.backend.model_dump(mode="json")})
    return {**{key: _text(value) for key, value in parameters.items()}, **said}


def _text(value: Any) -> str:
    """A parameter as a command would be told it; lists and switches as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _machine(experiment: Experiment, name: str, stage: Stage) -> LocalMachine | SlurmCluster:
    """Where the session's jobs run, with the stage's changes."""
    machine = experiment.slurm
    for key in ("kind", "max_jobs", "scheduler_tick_s"):
        if key in stage.slurm:
            raise BadInput(f"stages.{name}.slurm.{key}: belongs to the session")
    changes = stage.slurm
    if isinstance(machine, LocalMachine):
        # A stage is written once, for the cluster and for a rehearsal on a laptop.
        foreign = SlurmCluster.model_fields.keys() - LocalMachine.model_fields.keys()
        changes = {key: value for key, value in changes.items() if key not in foreign}
    try:
        return type(machine).model_validate({**machine.model_dump(), **changes})
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in ("stages", name, "slurm", *problem["loc"]))
        raise BadInput(f"{where}: {problem['msg']}") from error
