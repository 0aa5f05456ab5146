"""A plan as a tree: points, trainings, cooldowns, what follows; counts, conditions, hours."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from autoexp.config.sweep_names import as_word
from autoexp.jobs.budget import total
from autoexp.jobs.order import walk
from autoexp.jobs.spec import JobSpec, Kind
from autoexp.planning.plan import Plan

_SHOWN = 20
"""Points that are drawn; a sweep of 500 is told by its first ones."""


def plan_tree(plan: Plan, name: str, *, most: int = _SHOWN) -> Tree:
    """The whole plan; of more points than `most`, the first ones."""
    specs = {job.name: job for job in plan.jobs}
    tree = Tree(Text.assemble((name, "bold"), f"  {headline(plan)}"), guide_style="dim")
    branches: list[Tree] = [tree]
    points = 0
    for job_name, depth in walk(plan.jobs):
        points += depth == 0
        if points > most:
            continue
        del branches[depth + 1 :]
        branches.append(branches[depth].add(_label(specs[job_name], specs)))
    if points > most:
        tree.add(Text(f"… and {points - most} more; `--json` has all", "dim"))
    return tree


def headline(plan: Plan) -> str:
    """Counts and hours: `18 jobs: 6 train, 12 cooldown; 3.20 GPU hours`."""
    counts = Counter(str(job.kind) for job in plan.jobs)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    points = len({as_word(job.settings) for job in plan.jobs if job.settings})
    swept = f"{points} points, " if points else ""
    return f"{swept}{len(plan.jobs)} jobs: {kinds}; {total(plan.jobs)}"


def _label(job: JobSpec, specs: Mapping[str, JobSpec]) -> Text:
    text = Text.assemble((job.name, "bold"), f"  {job.kind}")
    for part in _parts(job):
        text.append(f"  {part}")
    for condition in conditions(job, specs):
        text.append(f"\n  {condition}", "dim")
    return text


def _parts(job: JobSpec) -> Iterator[str]:
    if job.kind is Kind.TRAIN and job.settings:
        yield ", ".join(f"{key}={as_word(value)}" for key, value in job.settings.items())
    if job.target_iteration is not None:
        start = job.branch.iteration if job.branch else 0
        yield f"{start} → {job.target_iteration}"
    if job.machine.gpus:
        yield f"{job.machine.gpus} GPUs"
    if (limit := job.configured_limit_min) is not None:
        yield f"≤ {limit:g} min"
    if job.planned is not None and job.machine.gpus:
        yield f"{job.planned.gpu_hours:.2f} GPU h ({job.planned.source})"
    elif job.planned is None:
        yield "GPU hours unknown"


def conditions(job: JobSpec, specs: Mapping[str, JobSpec]) -> Sequence[str]:
    """When a job starts, and when it is cancelled instead."""
    if job.awaits:
        starts = " and ".join(
            f"{awaited} is complete" if awaited.checkpoint else f"{awaited.job} has finished"
            for awaited in job.awaits
        )
        names = " or ".join(dict.fromkeys(awaited.job for awaited in job.awaits))
        return [f"starts when {starts}; cancelled when {names} fails"]
    if job.branch is None or job.parent is None or job.parent not in specs:
        return []
    extra = f" and {len(job.start_when)} conditions hold" if job.start_when else ""
    return [f"starts at checkpoint {job.branch.iteration}{extra}; cancelled when it never comes"]
