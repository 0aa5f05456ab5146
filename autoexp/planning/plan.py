"""From an experiment to its jobs: the training with cooldowns, and the stages."""

from pathlib import Path

from autoexp.config.experiment import Experiment
from autoexp.jobs.spec import JobSpec
from autoexp.model import FrozenModel
from autoexp.planning.cost import Cost, alone, together
from autoexp.planning.stage_graph import stage_jobs
from autoexp.planning.trainings import training
from autoexp.resources.machines import SlurmCluster
from autoexp.states import Kind


class Plan(FrozenModel):
    """The jobs of a session before anything is submitted, the trunk first."""

    jobs: tuple[JobSpec, ...]
    notes: tuple[str, ...] = ()
    """Notes for the reader, such as branch points that were moved to a checkpoint."""
    cost: Cost | None = None
    """Its cost, and that of separate runs; None for a plan read from disk."""

    @property
    def trunk(self) -> JobSpec:
        return self.jobs[0]

    @property
    def cooldowns(self) -> tuple[JobSpec, ...]:
        return tuple(job for job in self.jobs if job.kind is Kind.COOLDOWN)


NO_JOBS = Plan(jobs=())
"""The plan of a session whose jobs are all added by requests."""


def make_plan(experiment: Experiment, output_root: Path, save_dir: Path | None = None) -> Plan:
    """Work out all jobs of a session that writes below `output_root`.

    ``save_dir` is where the trunk saves, if it is to resume from another directory.

    Raises BadInput with every impossible cooldown, and the reason.
    """
    own = training(experiment, output_root, save_dir)
    stages = stage_jobs(experiment, own.jobs)
    cost = alone(together([own.cost, *stages.costs])) if stages.costs else own.cost
    machine = experiment.slurm
    limits = machine.beyond_known_limits() if isinstance(machine, SlurmCluster) else ()
    return Plan(
        jobs=(*own.jobs, *stages.jobs),
        notes=(*limits, *own.notes, *stages.notes),
        cost=cost,
    )
