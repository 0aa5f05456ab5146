"""From stages to jobs: their order, and the job of each sibling of a sweep point."""

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, NoReturn

from autoexp.config.experiment import Experiment
from autoexp.config.stages import EACH, TRUNK, Stage
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.planning.cost import Cost
from autoexp.planning.stage_jobs import Made, StageJobs, references
from autoexp.states import Kind


class Staged(NamedTuple):
    """The jobs of an experiment's stages."""

    jobs: tuple[JobSpec, ...] = ()
    """Each after those that it refers to."""
    notes: tuple[str, ...] = ()
    costs: tuple[Cost, ...] = ()


def stage_jobs(experiment: Experiment, jobs: Sequence[JobSpec]) -> Staged:
    """The jobs of all stages.

    `jobs` are the training, if there is one, and its cooldowns. Raises BadInput for a cycle, a
    sibling that does not exist, and a name that will have no value.
    """
    stages = {name: stage for name, stage in experiment.stages.items() if stage is not None}
    if not stages:
        return Staged()
    trunk = experiment.project.name
    shared = {_name_of(spec, trunk): spec for spec in jobs}
    by_cooldown: dict[str, dict[str, JobSpec]] = {
        spec.name: {EACH: spec} for spec in jobs if spec.kind is not Kind.TRAIN
    }
    found: list[Made] = []
    for name in _order(stages, shared):
        stage = stages[name]
        if stage.each is None:
            found.append(StageJobs(experiment, name, stage, jobs[0], shared).make())
            shared |= found[-1].jobs
            continue
        if not by_cooldown:
            raise BadInput(f"stages.{name}: `each: cooldown`, and there is no cooldown")
        for own in by_cooldown.values():
            found.append(StageJobs(experiment, name, stage, own[EACH], shared | own).make())
            own |= found[-1].jobs
    return Staged(
        jobs=tuple(job for made in found for job in made.jobs.values()),
        notes=tuple(note for made in found for note in made.notes),
        costs=tuple(made.cost for made in found if made.cost is not None),
    )


def _name_of(spec: JobSpec, trunk: str) -> str:
    """`stable`, or `cd1000`: the job's name without its trunk's."""
    return TRUNK if spec.kind is Kind.TRAIN else spec.name.removeprefix(f"{trunk}-")


# The order


def _order(stages: Mapping[str, Stage], given: Mapping[str, JobSpec]) -> list[str]:
    graph: dict[str, set[str]] = {}
    for name, stage in stages.items():
        siblings = set(references(name, stage)) - set(given)
        if EACH in siblings and stage.each is None:
            raise BadInput(f"stages.{name}: refers to `{EACH}`; say `each: cooldown`")
        before = {_stage_of(sibling, stages) for sibling in siblings - {EACH}}
        for other in before:
            if other not in stages:
                _refuse_missing(name, other, stages, given)
            if stages[other].each is not None and stage.each is None:
                raise BadInput(
                    f"stages.{name}: {other} is one for each cooldown; say `each: cooldown` too"
                )
        graph[name] = before
    try:
        # In the order of the file, as far as the references leave it.
        return list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        path = " -> ".join(reversed(error.args[1]))
        raise BadInput(f"stages: a cycle, {path}: each waits for the next") from error


def _stage_of(sibling: str, stages: Mapping[str, Stage]) -> str:
    """The stage that a sibling is of: `finetune`, also of its cooldown `finetune-cd200`."""
    stage = sibling.partition("-")[0]
    return stage if stage in stages and stages[stage].train else sibling


def _refuse_missing(
    name: str, sibling: str, stages: Mapping[str, Stage], given: Mapping[str, JobSpec]
) -> NoReturn:
    known = [*given, *stages]
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
                if path[0] in references(other, stage) and other not in path
            ),
            None,
        )
        if above is None:
            return path
        path.insert(0, above)
