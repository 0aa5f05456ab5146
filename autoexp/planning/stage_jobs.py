"""The jobs of one stage: its templates filled as far as possible, and its dependencies."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from autoexp.config.experiment import Experiment
from autoexp.config.stages import EACH, LATE, TRUNK, AtCheckpoint, Stage, is_first
from autoexp.config.sweep_points import refuse_shared
from autoexp.config.validation import Origins, validation_message
from autoexp.dotted import flat, set_value
from autoexp.errors import BadInput
from autoexp.jobs.budget import estimate
from autoexp.jobs.spec import Awaited, Draft, JobSpec
from autoexp.model import COMPOSING, first_problem
from autoexp.names import check_job
from autoexp.planning.cost import Cost
from autoexp.planning.trainings import training
from autoexp.resources.containers import Container
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.scalars import settled
from autoexp.states import Kind
from autoexp.templates import fill, fill_tree, names_in, refuse_unknown, texts_in

_CONTAINERS: TypeAdapter[Container] = TypeAdapter(Container)


def references(name: str, stage: Stage) -> Iterator[str]:
    """The siblings that a stage waits for."""
    yield from stage.after
    if stage.each is not None:
        yield EACH
    elif not stage.after and not any("sibling." in text for text in stage.templates()):
        yield TRUNK
    for text in stage.templates():
        try:
            for part in names_in(text):
                if part.startswith("sibling."):
                    yield part.split(".")[1]
        except ValueError as error:
            raise BadInput(f"stages.{name}: {error}") from error


class Made(NamedTuple):
    """The jobs of a stage, itself first, by their names among siblings."""

    jobs: dict[str, JobSpec]
    notes: tuple[str, ...] = ()
    cost: Cost | None = None
    """Of a training and its cooldowns."""


class StageJobs:
    """Makes the jobs of one stage, after those of the siblings that it refers to."""

    def __init__(
        self,
        experiment: Experiment,
        name: str,
        stage: Stage,
        point: JobSpec,
        siblings: Mapping[str, JobSpec],
    ) -> None:
        """`point` is the job that the stage is of: the training, or the cooldown.

        Raises BadInput for an unknown sibling, and for a name that will have no value.
        """
        self._experiment, self._name, self._stage = experiment, name, stage
        self._job_name = f"{point.name}-{name}"
        self._root = Path(point.output_dir).parent
        self._output = self._root / self._job_name
        awaited = {
            sibling: _awaited(name, stage, sibling, siblings)
            for sibling in dict.fromkeys(references(name, stage))
        }
        self._awaits = _needed(awaited, siblings)
        self._parent = _parent(awaited, siblings) or point.name
        saved = (spec.save_dir for spec in siblings.values())
        self._reads = tuple(
            dict.fromkeys(path for path in saved if not Path(path).is_relative_to(self._root))
        )
        self._values = self._own_values()
        self._late: dict[str, Awaited] = {}
        for sibling, waits in awaited.items():
            spec = siblings[sibling]
            values = _values_of(spec).items()
            self._values |= {f"sibling.{sibling}.{key}": text for key, text in values}
            if spec.target_iteration is not None:
                self._late[sibling] = waits
        self._late_names = {f"sibling.{sibling}.{key}" for sibling in self._late for key in LATE}
        try:
            refuse_unknown(iter(stage.templates()), {*self._values, *self._late_names})
        except ValueError as error:
            raise BadInput(f"stages.{name}: {error}") from error
        # Values known only later are shown as templates.
        self._shown = {key: f"{{{key}}}" for key in self._late_names} | self._values

    def make(self) -> Made:
        """Make a job of one command, or a training with its cooldowns."""
        return self._training() if self._stage.train else self._command()

    def _own_values(self) -> dict[str, str]:
        return {
            "job.name": self._job_name,
            "job.output_dir": str(self._output),
            "job.save_dir": str(self._output / "checkpoints"),
            "python": sys.executable,
            "project.name": self._experiment.project.name,
        }

    def _machine(self) -> LocalMachine | SlurmCluster:
        where = f"stages.{self._name}.slurm"
        machine = machine_with(self._experiment, where, self._stage.slurm, may_be_local=True)
        if self._stage.launcher == "none":
            return machine
        return machine.model_copy(update={"launcher": self._stage.launcher})

    def _command(self) -> Made:
        experiment, stage = self._experiment, self._stage
        spec = JobSpec(
            name=check_job(self._job_name),
            kind=Kind(stage.kind),
            parent=self._parent,
            backend=experiment.backend,
            machine=self._machine(),
            container=container_with(experiment, f"stages.{self._name}.container", stage.container),
            launched_as=None if stage.launcher == "none" else stage.launcher,
            command=tuple(fill(text, self._shown) for text in stage.command),
            environment={k: fill(text, self._shown) for k, text in stage.environment.items()},
            output_dir=str(self._output),
            save_dir=str(self._output / "checkpoints"),
            reads=self._reads,
            scores=str(self._output / stage.scores) if stage.scores else None,
            awaits=self._awaits,
            draft=self._draft(
                stage.templates(), command=stage.command, environment=stage.environment
            ),
        )
        planned = estimate(spec, experiment.budget, stage.minutes)
        return Made({self._name: spec.model_copy(update={"planned": planned})})

    def _training(self) -> Made:
        """The experiment's training once more, with the stage's changes."""
        # Dotted in the file, nested where the command line overrides one of them: the last counts.
        changes = flat(self._stage.train)
        try:
            own = training(self._changed(changes), self._root)
        except BadInput as error:
            lines = (f"stages.{self._name}: {line}" for line in str(error).splitlines())
            raise BadInput("\n".join(lines)) from error
        late = {k: v for k, v in changes.items() if self._names_late(texts_in(v))}
        draft = self._draft(tuple(texts_in(late)), backend=_backend_of(late))
        jobs = [job.model_copy(update={"draft": draft, "reads": self._reads}) for job in own.jobs]
        behind = {"parent": self._parent, "awaits": self._awaits}
        jobs[0] = jobs[0].model_copy(update=behind)
        # The cooldown demo-finetune-cd200 is `sibling.finetune-cd200`.
        first = len(self._job_name) - len(self._name)
        return Made({job.name[first:]: job for job in jobs}, own.notes, own.cost)

    def _changed(self, changes: Mapping[str, Any]) -> Experiment:
        inherited = {"backend", "container", "budget", "project"}
        values = self._experiment.model_dump(include=inherited)
        values["slurm"] = self._machine().model_dump()
        for section in ("backend", "container"):
            if f"{section}.kind" in changes:
                values[section] = {}  # of another kind, nothing of the old one fits
        for key, value in changes.items():
            self._refuse(key, value)
            set_value(values, key, fill_tree(value, self._shown))
        values = settled(values, Experiment, lambda path, why: BadInput(f"{'.'.join(path)}: {why}"))
        try:
            changed = Experiment.model_validate(values, context=COMPOSING)
        except ValidationError as error:
            origins = Origins((), f"stages.{self._name}.train", {}, ())
            raise BadInput(validation_message(error, origins)) from error
        # May be longer than a project's name: it is made of checked names.
        project = changed.project.model_copy(update={"name": self._job_name})
        return changed.model_copy(update={"project": project})

    def _refuse(self, key: str, value: Any) -> None:
        section = key.split(".")[0]
        if section == "slurm":
            raise BadInput(f"train.{key}: set it in `stages.{self._name}.slurm`")
        if section in ("stages", "start"):
            raise BadInput(f"train.{key}: belongs to the first training")
        refuse_shared(f"train.{key}", key)
        if section != "backend" and (late := self._names_late(texts_in(value))):
            raise BadInput(
                f"train.{key}: `{{{late[0]}}}` is not known before the training is released; "
                "only the backend can use it"
            )

    def _names_late(self, texts: Iterator[str]) -> list[str]:
        return [name for text in texts for name in names_in(text) if name in self._late_names]

    def _draft(self, texts: Sequence[str], **written: Any) -> Draft | None:
        """The command to fill when the stage is released; None if all is known beforehand."""
        used = {name for text in texts for name in names_in(text)}
        awaited = {
            sibling: waits
            for sibling, waits in self._late.items()
            if any(f"sibling.{sibling}.{key}" in used for key in LATE)
        }
        if not awaited:
            return None
        values = {key: text for key, text in self._values.items() if key in used}
        return Draft(values=values, late=awaited, **written)


def _backend_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by dotted key, as a tree below `backend`."""
    tree: dict[str, Any] = {"backend": {}}
    for key, value in changes.items():
        set_value(tree, key, value)
    found: dict[str, Any] = tree["backend"]
    return found


def _parent(awaited: Mapping[str, Awaited], siblings: Mapping[str, JobSpec]) -> str | None:
    """The training of another stage that this one is about; None: it is about the first one."""
    first = {spec.name for sibling, spec in siblings.items() if is_first(sibling)}
    specs = [siblings[sibling] for sibling in awaited]
    about = (spec.parent if spec.target_iteration is None else spec.name for spec in specs)
    return next((name for name in about if name not in first), None)


def _needed(awaited: Mapping[str, Awaited], siblings: Mapping[str, JobSpec]) -> tuple[Awaited, ...]:
    """The dependencies of a stage, without those that other dependencies imply."""
    by_name = {spec.name: spec for spec in siblings.values()}
    covered = {inner for sibling in awaited for inner in _behind(siblings[sibling], by_name)}
    return tuple(dict.fromkeys(each for each in awaited.values() if each not in covered))


def _behind(spec: JobSpec, by_name: Mapping[str, JobSpec]) -> Iterator[Awaited]:
    """All dependencies of a job, direct and indirect."""
    yield from spec.awaits
    before = [awaited.job for awaited in spec.awaits]
    if spec.branch is not None and spec.parent is not None:
        before.append(spec.parent)
    for name in before:
        if name in by_name:
            yield from _behind(by_name[name], by_name)


def _awaited(name: str, stage: Stage, sibling: str, siblings: Mapping[str, JobSpec]) -> Awaited:
    if sibling not in siblings:
        raise BadInput(
            f"stages.{name}: there is no sibling `{sibling}`; there are: {', '.join(siblings)}"
        )
    spec, after = siblings[sibling], stage.after.get(sibling)
    if not isinstance(after, AtCheckpoint):
        return Awaited(job=spec.name)
    trainer = spec.trainer
    if spec.target_iteration is None:
        raise BadInput(f"stages.{name}: {sibling} makes no checkpoints; wait for its end")
    iteration = after.checkpoint
    first = spec.branch.iteration if spec.branch else 0
    is_saved = not iteration % trainer.save_interval or iteration in trainer.extra_saves
    if not first < iteration <= spec.target_iteration or not is_saved:
        raise BadInput(
            f"stages.{name}: {sibling} has no checkpoint {iteration}: they are at multiples of "
            f"{trainer.save_interval}, up to {spec.target_iteration}"
        )
    return Awaited(job=spec.name, checkpoint=iteration)


def _values_of(spec: JobSpec) -> dict[str, str]:
    """Values of a job that are known before it runs."""
    values = {
        "name": spec.name,
        "kind": str(spec.kind),
        "output_dir": spec.output_dir,
        "save_dir": spec.save_dir,
        "scores": spec.scores or "",
        "target_iteration": str(spec.target_iteration or ""),
    }
    if spec.merge is not None:
        made = (str(spec.merged_path), str(spec.merge.at))
        values |= dict(zip(LATE, made, strict=True))
    parameters = flat({"backend": spec.backend.model_dump(mode="json")})
    return {**{key: _text(value) for key, value in parameters.items()}, **values}


def _text(value: Any) -> str:
    """A parameter as text for a command; lists and switches as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def container_with(experiment: Experiment, where: str, changes: Mapping[str, Any]) -> Container:
    """The session's container with the changes that are written there; raises BadInput."""
    own = experiment.container
    if not changes:
        return own
    kept = own.model_dump() if changes.get("kind", own.kind) == own.kind else {}
    try:
        found: Container = _CONTAINERS.validate_python({**kept, **changes}, context=COMPOSING)
    except ValidationError as error:
        raise BadInput(first_problem(error, *where.split("."), skip=1)) from error
    return found


def machine_with(
    experiment: Experiment, where: str, changes: Mapping[str, Any], *, may_be_local: bool = False
) -> LocalMachine | SlurmCluster:
    """Where the session's jobs run, with the changes that are written there."""
    machine = experiment.slurm
    if may_be_local and changes.get("kind") == "local":
        # Beside the monitor, whatever the session's machine is: what is SLURM's alone is left out.
        machine = machine if isinstance(machine, LocalMachine) else LocalMachine()
        changes = {key: value for key, value in changes.items() if key != "kind"}
    for key in ("kind", "max_jobs", "scheduler_tick_s"):
        if key in changes:
            raise BadInput(f"{where}.{key}: belongs to the session")
    if isinstance(machine, LocalMachine):
        # A stage is written once, for the cluster and for a test on a laptop.
        foreign = SlurmCluster.model_fields.keys() - LocalMachine.model_fields.keys()
        changes = {key: value for key, value in changes.items() if key not in foreign}
    try:
        return type(machine).model_validate({**machine.model_dump(), **changes}, context=COMPOSING)
    except ValidationError as error:
        raise BadInput(first_problem(error, *where.split("."))) from error
