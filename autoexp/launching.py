"""Jobs that join a session while it runs: from a rule's `launch`, `autoexp submit`, `adopt`."""

from collections.abc import Mapping

from pydantic import ValidationError

from autoexp.creation import output_root
from autoexp.errors import BadInput
from autoexp.experiment import Experiment, Project
from autoexp.jobs import JobSpec, Kind
from autoexp.machines import LocalMachine, SlurmCluster
from autoexp.plan import make_plan
from autoexp.rules.actions import Launch
from autoexp.rules.possible import compose_launched
from autoexp.rules.records import ActionRecord
from autoexp.rules.templates import fill, fill_tree
from autoexp.session import Session

Values = Mapping[str, str]


def launched_jobs(
    session: Session, action: ActionRecord, launch: Launch, values: Values
) -> tuple[JobSpec, ...]:
    """The jobs that an action launches, each the same when it is asked again after a kill.

    Raises BadInput when they cannot join the session.
    """
    name = fill(launch.name, values)
    if launch.command is not None:
        jobs: tuple[JobSpec, ...] = (_command(session, launch, name, values),)
    else:
        composed = compose_launched(launch, name, values)
        refuse_other_scheduler(session, composed.experiment)
        if composed.points:
            raise BadInput(f"{launch.config}: a rule launches one experiment, and this is a sweep")
        root = output_root(session.experiment, session.path)
        jobs = make_plan(composed.experiment, root).jobs
    of_first = {"kind": Kind(launch.as_kind), "parent": action.event.job or None}
    jobs = (jobs[0].model_copy(update=of_first), *jobs[1:])
    return tuple(_as_launched(session, action, job) for job in jobs)


def _as_launched(session: Session, action: ActionRecord, job: JobSpec) -> JobSpec:
    known = session.jobs.get(job.name)
    if known is None:
        return job.model_copy(update={"launched_by": action.key})
    if known.spec.launched_by != action.key:
        raise BadInput(f"{job.name}: the session has a job of this name; choose another `name`")
    return known.spec


def _command(session: Session, launch: Launch, name: str, values: Values) -> JobSpec:
    """A job of one command, on the session's machine unless the rule changes that."""
    experiment = session.experiment
    wanted = experiment.slurm.model_dump()
    for key, value in fill_tree(launch.set, values).items():
        wanted[key.removeprefix("slurm.")] = value
    try:
        machine = type(experiment.slurm).model_validate(wanted)
        output = output_root(experiment, session.path) / name
        return JobSpec(
            name=Project(name=name).name,
            kind=Kind.COMMAND,
            backend=experiment.backend,
            machine=machine,
            command=tuple(fill(argument, values) for argument in launch.command or ()),
            output_dir=str(output),
            save_dir=str(output / "checkpoints"),
            scores=str(output / launch.scores) if launch.scores else None,
        )
    except ValidationError as error:
        raise BadInput(f"{name}: {error.errors()[0]['msg']}") from error


def refuse_other_scheduler(session: Session, experiment: Experiment) -> None:
    """One scheduler query for all jobs of a session: they are all of one scheduler."""
    here, there = session.experiment.slurm, experiment.slurm
    if type(here) is not type(there):
        raise BadInput(
            f"{session.id} runs its jobs {_where(here)}, and these would run {_where(there)}: "
            "choose slurm=NAME to match, or make a session of their own"
        )
    if isinstance(here, SlurmCluster) and isinstance(there, SlurmCluster) and here.at != there.at:
        raise BadInput(
            f"{session.id} runs its jobs on {here.at or 'the cluster of this machine'}, and these "
            f"would run on {there.at or 'the cluster of this machine'}; see slurm.clusters, or "
            "make a session of their own"
        )


def _where(machine: LocalMachine | SlurmCluster) -> str:
    return "through SLURM" if isinstance(machine, SlurmCluster) else "on this machine"
