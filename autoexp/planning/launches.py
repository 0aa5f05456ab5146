"""The jobs that rules will launch: how many each planned job brings, and what they ask for."""

from collections.abc import Iterable, Iterator, Sequence

from pydantic import ValidationError

from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.jobs.budget import Total, total
from autoexp.jobs.spec import JobSpec
from autoexp.model import FrozenModel
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.rules.actions import Launch
from autoexp.rules.events import CheckpointComplete
from autoexp.rules.rules import CheckpointRule, SessionRule
from autoexp.scalars import restored, settled
from autoexp.states import Kind


class Launches(FrozenModel):
    """Jobs of one rule: one for each checkpoint of a planned job, or one of the session."""

    job: str
    """The planned job; empty for the session."""
    rule: str
    kind: Kind
    count: int
    gpus: int | None
    """GPUs of each; None where another configuration says."""
    limit_min: float | None
    """Time limit of each in minutes, if one is known."""

    @property
    def gpu_hours(self) -> float | None:
        """GPU hours of all of them, at most; None when unknown."""
        if self.gpus == 0:
            return 0.0
        if self.gpus is None or self.limit_min is None:
            return None
        return self.count * self.gpus * self.limit_min / 60


def launches_of(experiment: Experiment, jobs: Sequence[JobSpec]) -> Iterator[Launches]:
    """What the rules about checkpoints and about the end of the trainings launch.

    Others depend on what is logged and when, so nobody can count them.
    """
    rules = experiment.monitoring
    for name, rule in rules.checkpoint_events.items():
        for launch in _launched(rule):
            for job in jobs:
                if (count := _checkpoints(rule, name, job)) > 0:
                    yield _asked(experiment, launch, job.name, name, count)
    for name, on_session in rules.session_events.items():
        if on_session is not None and on_session.trunks_finished:
            for launch in _launched(on_session):
                yield _asked(experiment, launch, "", name, 1)


def total_with_launches(jobs: Iterable[JobSpec], launches: Iterable[Launches]) -> Total:
    """Planned GPU hours of the jobs and of what rules launch."""
    known = total(jobs)
    hours = [(each.count, each.gpu_hours) for each in launches]
    return Total(
        known.gpu_hours + sum(each for _, each in hours if each is not None),
        known.unknown + sum(count for count, each in hours if each is None),
    )


def _launched(rule: CheckpointRule | SessionRule | None) -> Iterator[Launch]:
    """Launches of commands and configurations; cooldowns are planned by themselves."""
    for step in rule.actions if rule is not None else ():
        if isinstance(step.action, Launch) and step.action.cooldown is None:
            yield step.action


def _checkpoints(rule: CheckpointRule | None, name: str, job: JobSpec) -> int:
    """Number of checkpoints of a job that a rule fires on."""
    target = job.target_iteration
    if rule is None or target is None or not rule.is_about(job.name, str(job.kind)):
        return 0
    start, interval = job.branch.iteration if job.branch else 0, job.trainer.save_interval
    extra = () if job.decay else job.trainer.extra_saves
    saved = {*range(interval * (start // interval + 1), target + 1, interval), *extra, target}
    return sum(rule.fires(_complete(job.name, at, last=at == target), name) for at in saved)


def _complete(job: str, iteration: int, *, last: bool) -> CheckpointComplete:
    return CheckpointComplete.model_construct(
        job=job, iteration=iteration, path="", generation=0, last=last
    )


def _asked(experiment: Experiment, launch: Launch, job: str, rule: str, count: int) -> Launches:
    machine = None if launch.command is None else _machine(experiment, launch)
    limit = None if machine is None else machine.configured_limit_min(cooldown=False)
    return Launches(
        job=job,
        rule=rule,
        kind=Kind(launch.as_kind),
        count=count,
        gpus=None if machine is None else machine.gpus,
        limit_min=limit,
    )


def _machine(experiment: Experiment, launch: Launch) -> LocalMachine | SlurmCluster | None:
    """The session's machine as a rule changes it; None where that is a template."""
    own = experiment.slurm
    changes = {key.removeprefix("slurm."): value for key, value in launch.set.items()}
    try:
        wanted = restored({**own.model_dump(), **changes})
        return type(own).model_validate(settled(wanted, type(own), _refuse))
    except (ValidationError, BadInput):
        return None


def _refuse(path: Sequence[str], why: str) -> BadInput:
    return BadInput(f"{'.'.join(path)}: {why}")
