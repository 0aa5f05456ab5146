"""Adds jobs to a running session: from a rule's `launch`, `autoexp submit`, `adopt`."""

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from autoexp import sinks
from autoexp.config.experiment import CheckpointSource, Experiment, Project
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.model import COMPOSING, first_problem
from autoexp.planning.plan import make_plan
from autoexp.planning.rule_checks import compose_launched
from autoexp.planning.standalone import cooldown_from
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.rules.actions import Launch
from autoexp.rules.event_values import captured
from autoexp.rules.events import CheckpointComplete
from autoexp.scalars import restored, settled
from autoexp.schedulers.base import Scheduler
from autoexp.session.action_records import ActionRecord
from autoexp.session.meta import output_root
from autoexp.session.session import Session
from autoexp.states import Kind
from autoexp.templates import fill, fill_tree

Values = Mapping[str, str]
# Hydra keeps the state of a composition in one global of the process.
_composing = threading.Lock()


class Launching(NamedTuple):
    """The jobs that an action launches, made from values alone: composing takes a while."""

    action: ActionRecord
    launch: Launch
    values: Values
    experiment: Experiment
    """The session's."""
    path: Path
    """The session's directory."""
    session_id: str
    parent: JobSpec | None
    """The job that the event is about."""

    @property
    def title(self) -> str:
        return sinks.title(f"compose {fill(self.launch.name, self.values)}")

    def run(self, scheduler: Scheduler) -> tuple[JobSpec, ...]:
        """Return the jobs; raises BadInput when they cannot be made, or use another scheduler."""
        del scheduler
        launch, name = self.launch, fill(self.launch.name, self.values)
        root = output_root(self.experiment, self.path)
        if launch.cooldown is not None:
            event = self.action.event
            assert isinstance(event, CheckpointComplete) and self.parent is not None
            start = CheckpointSource(iteration=event.iteration, path=event.path)
            return (cooldown_from(self.experiment, self.parent, start, launch.cooldown, root),)
        if launch.command is not None:
            jobs: tuple[JobSpec, ...] = (self._command(root, name),)
        else:
            with _composing:
                composed = compose_launched(launch, name, self.values)
            refuse_other_scheduler(self.session_id, self.experiment, composed.experiment)
            if composed.points:
                raise BadInput(
                    f"{launch.config}: a rule launches one experiment, and this is a sweep"
                )
            jobs = make_plan(composed.experiment, root).jobs
        of_first = {"kind": Kind(launch.as_kind), "parent": self.action.event.job or None}
        return (jobs[0].model_copy(update=of_first), *jobs[1:])

    def _command(self, root: Path, name: str) -> JobSpec:
        """A job of one command, on the session's machine unless the rule changes that."""
        launch, values = self.launch, self.values
        wanted = self.experiment.slurm.model_dump()
        for key, value in fill_tree(launch.set, values).items():
            wanted[key.removeprefix("slurm.")] = value
        outside = captured(self.action.event, values)
        try:
            kind = type(self.experiment.slurm)
            wanted = settled(
                restored(wanted), kind, lambda path, why: BadInput(f"slurm.{'.'.join(path)}: {why}")
            )
            machine = kind.model_validate(wanted, context=COMPOSING)
            output = root / name
            return JobSpec(
                name=Project(name=name).name,
                kind=Kind.COMMAND,
                backend=self.experiment.backend,
                machine=machine,
                command=sinks.arguments(launch.command or (), values, outside),
                output_dir=str(output),
                save_dir=str(output / "checkpoints"),
                scores=str(output / launch.scores) if launch.scores else None,
            )
        except ValidationError as error:
            raise BadInput(first_problem(error, sinks.title(name))) from error


def joining(session: Session, key: str, jobs: tuple[JobSpec, ...]) -> tuple[JobSpec, ...]:
    """The jobs as the action `key` launches them, the same ones when it is repeated after a kill.

    Raises BadInput when the session has another job of one of the names.
    """
    return tuple(_as_launched(session, key, job) for job in jobs)


def _as_launched(session: Session, key: str, job: JobSpec) -> JobSpec:
    known = session.jobs.get(job.name)
    if known is None:
        return job.model_copy(update={"launched_by": key})
    if known.spec.launched_by != key:
        raise BadInput(f"{job.name}: the session has a job of this name; choose another `name`")
    return known.spec


def refuse_other_scheduler(session_id: str, own: Experiment, other: Experiment) -> None:
    """Refuse jobs of another scheduler: one scheduler query is made for all jobs of a session."""
    here, there = own.slurm, other.slurm
    if type(here) is not type(there):
        raise BadInput(
            f"{session_id} runs its jobs {_where(here)}, and these would run {_where(there)}: "
            "choose slurm=NAME to match, or make a session of their own"
        )
    if isinstance(here, SlurmCluster) and isinstance(there, SlurmCluster) and here.at != there.at:
        raise BadInput(
            f"{session_id} runs its jobs on {here.at or 'the cluster of this machine'}, and these "
            f"would run on {there.at or 'the cluster of this machine'}; see slurm.clusters, or "
            "make a session of their own"
        )


def _where(machine: LocalMachine | SlurmCluster) -> str:
    if isinstance(machine, SlurmCluster):
        return "through SLURM"
    return "on this machine" if machine.kind == "local" else f"through {machine.kind}"
