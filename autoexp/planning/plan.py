"""From an experiment to its jobs, and the question that an expensive plan asks."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from autoexp.config.experiment import Experiment
from autoexp.config.sweep_names import as_word
from autoexp.jobs.budget import Budget, Total
from autoexp.jobs.images import image_notes
from autoexp.jobs.spec import JobSpec
from autoexp.model import FrozenModel
from autoexp.planning.cooldowns import saving_at_branch_points
from autoexp.planning.cost import Cost, alone, together
from autoexp.planning.launches import Launches, launches_of, total_with_launches
from autoexp.planning.merges import merge_jobs
from autoexp.planning.stage_graph import stage_jobs
from autoexp.planning.trainings import training
from autoexp.resources.machines import SlurmCluster
from autoexp.retention.forecast import Forecast, evaluations, forecast
from autoexp.rules.metrics import unfed
from autoexp.states import Kind


class Plan(FrozenModel):
    """The jobs of a session before anything is submitted, the trunk first."""

    jobs: tuple[JobSpec, ...]
    notes: tuple[str, ...] = ()
    """Notes for the reader, such as branch points that were moved to a checkpoint."""
    cost: Cost | None = None
    """Its cost, and that of separate runs; None for a plan read from disk."""
    launches: tuple[Launches, ...] = ()
    """What rules will launch; empty for a plan read from disk."""
    disk: Forecast | None = None
    """What its checkpoints take; None without `retention`."""

    @property
    def hours(self) -> Total:
        """GPU hours of its jobs and of what rules launch."""
        return total_with_launches(self.jobs, self.launches)

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
    taken = {job.name for job in own.jobs}
    merges = merge_jobs(saving_at_branch_points(experiment), output_root, taken)
    stages = stage_jobs(experiment, [*own.jobs, *merges.jobs])
    cost = alone(together([own.cost, *stages.costs])) if stages.costs else own.cost
    machine = experiment.slurm
    jobs = (*own.jobs, *merges.jobs, *stages.jobs)
    limits = machine.remarks() if isinstance(machine, SlurmCluster) else ()
    plan = Plan(
        jobs=jobs,
        notes=(
            *limits,
            *_pools(jobs),
            *image_notes(jobs),
            *own.notes,
            *merges.notes,
            *stages.notes,
            *_silent(experiment, jobs),
        ),
        cost=cost,
        launches=tuple(launches_of(experiment, jobs)),
    )
    return plan.model_copy(update={"disk": disk_of(experiment, plan)})


def _pools(jobs: Sequence[JobSpec]) -> Iterator[str]:
    """A sentence for each pool whose slots jobs need."""
    wanted: dict[str, set[int]] = {}
    for job in jobs:
        if (pool := job.machine.budget_pool) is not None and job.machine.gpus:
            wanted.setdefault(pool, set()).add(job.machine.gpus)
    for pool, gpus in wanted.items():
        each = " or ".join(map(str, sorted(gpus)))
        yield (
            f"each job takes {each} GPUs of the pool {pool}, which sessions share, and waits while "
            "they are in use (`slurm.budget_pool`)"
        )


def _silent(experiment: Experiment, jobs: Sequence[JobSpec]) -> Iterator[str]:
    """Sentences on metric rules that can never fire."""
    rules = experiment.monitoring.metric_events
    yield from unfed(rules, experiment.backend.logged)
    decays = [(job.trainer, job.decay) for job in jobs if job.decay is not None]
    rates = (trainer.planned_rate(decay, decay.falls_from) for trainer, decay in decays)
    if decays and all(rate is None for rate in rates):
        for name, rule in rules.items():
            if rule is not None and rule.off_schedule is not None:
                yield f"rule {name} never fires: without `backend.args.lr` no rate is planned"


def disk_of(experiment: Experiment, plan: Plan) -> Forecast | None:
    """What a plan's checkpoints take at most; None without `retention`."""
    if experiment.retention is None:
        return None
    launched = evaluations((each.job, each.count) for each in plan.launches)
    each_s = experiment.budget.seconds_per_iteration
    return forecast(experiment.retention, plan.jobs, experiment.monitoring, launched, each_s)


def above_budget(budget: Budget, plan: Plan) -> str | None:
    """The question for confirming an expensive plan; None when none is needed."""
    most = budget.confirm_above
    hours = plan.hours
    if most is None or (hours.gpu_hours <= most and not hours.unknown):
        return None
    return f"{headline(plan)}: budget.confirm_above is {most:g} GPU hours"


def headline(plan: Plan) -> str:
    """Counts and hours: `18 jobs: 6 train, 12 cooldown; 3.20 GPU hours`."""
    counts = Counter(str(job.kind) for job in plan.jobs)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    points = len({as_word(job.settings) for job in plan.jobs if job.settings})
    swept = f"{points} points, " if points else ""
    by_rules = sum(each.count for each in plan.launches)
    more = f", and {by_rules} launched by rules" if by_rules else ""
    return f"{swept}{len(plan.jobs)} jobs: {kinds}{more}; {plan.hours}"
