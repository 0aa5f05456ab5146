"""A plan as a tree: points, trainings, cooldowns, stages; counts, conditions, hours."""

import io
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text
from rich.tree import Tree

from autoexp.config.compose import Composed
from autoexp.config.sweep_names import as_word
from autoexp.jobs.spec import JobSpec
from autoexp.jobs.summary import place_of, walk
from autoexp.planning.launches import Launches
from autoexp.planning.plan import Plan, headline
from autoexp.reports.results import in_words
from autoexp.reports.terminal import canvas
from autoexp.rules.durations import shortened
from autoexp.states import Kind

_SHOWN = 20
"""Most points that are drawn; of a sweep of 500 only the first ones are shown."""


def plan_tree(plan: Plan, name: str, *, most: int = _SHOWN) -> Tree:
    """Draw the whole plan; of more points than `most`, the first ones."""
    specs = {job.name: job for job in plan.jobs}
    tree = Tree(Text.assemble((name, "bold"), f"  {headline(plan)}"), guide_style="dim")
    by_job: dict[str, list[Launches]] = {}
    for launches in plan.launches:
        by_job.setdefault(launches.job, []).append(launches)
    branches: list[Tree] = [tree]
    points = 0
    for job_name, depth in walk(map(place_of, plan.jobs)):
        points += depth == 0
        if points > most:
            continue
        del branches[depth + 1 :]
        branches.append(branches[depth].add(_label(specs[job_name], specs)))
        for launches in by_job.get(job_name, ()):
            branches[-1].add(_launches_label(launches))
    if points > most:
        tree.add(Text(f"… and {points - most} more; `--json` has all", "dim"))
    for launches in by_job.get("", ()):
        tree.add(_launches_label(launches))
    return tree


def _launches_label(launches: Launches) -> Text:
    """What a rule launches: how many jobs of which kind, and what each asks for."""
    text = Text(f"{launches.count} × {launches.kind}  by rule {launches.rule}", "dim")
    for part in _asks(launches.gpus, launches.limit_min):
        text.append(f"  {part}")
    if launches.gpu_hours is None:
        text.append("  GPU hours unknown")
    return text


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
    if job.changes:
        yield in_words(job.changes)
    if job.merge is not None:
        first, count = job.merge.iterations[0], len(job.merge.iterations)
        yield f"{count} checkpoints, {first} to {job.merge.at}, {job.merge.shape}"
    if job.baseline is not None:
        yield f"{job.baseline.shape} from {job.baseline.falls_from} on"
    elif job.branch is not None and job.branch.stable_iterations:
        yield f"stable until {job.branch.falls_from}"
    if job.target_iteration is not None:
        start = job.branch.iteration if job.branch else 0
        tokens = job.tokens_at(job.target_iteration)
        seen = "" if tokens is None else f" ({shortened(tokens)} tokens)"
        yield f"{start} → {job.target_iteration}{seen}"
    yield from _asks(job.machine.gpus, job.configured_limit_min)
    if job.planned is not None and job.machine.gpus:
        yield f"{job.planned.gpu_hours:.2f} GPU h ({job.planned.source})"
    elif job.planned is None:
        yield "GPU hours unknown"


def _asks(gpus: int | None, limit_min: float | None) -> Iterator[str]:
    if gpus:
        yield f"{gpus} GPUs"
    if limit_min is not None:
        yield f"≤ {limit_min:g} min"


def conditions(job: JobSpec, specs: Mapping[str, JobSpec]) -> Sequence[str]:
    """Describe when a job starts, and when it is cancelled instead."""
    if job.awaits:
        starts = " and ".join(
            f"{awaited} is complete" if awaited.checkpoint else f"{awaited.job} has finished"
            for awaited in job.awaits
        )
        names = " or ".join(dict.fromkeys(awaited.job for awaited in job.awaits))
        return [f"starts when {starts}; cancelled when {names} fails"]
    if job.starts_at is None or job.parent not in specs:
        return []
    extra = f" and {len(job.start_when)} conditions hold" if job.start_when else ""
    return [f"starts at checkpoint {job.starts_at}{extra}; cancelled if there never is one"]


_WIDTH = 120


def as_text(found: Plan, composed: Composed) -> str:
    """The tree without colours."""
    paper = canvas(io.StringIO(), _WIDTH, colours=False)
    paper.print(plan_tree(found, composed.experiment.project.name))
    return paper.export_text()
