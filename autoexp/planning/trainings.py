"""A training and its cooldowns as jobs: branch points, decay lengths, command lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autoexp.backends.protocol import Branch
from autoexp.config.experiment import Budgets, CheckpointSource, Cooldown, Experiment
from autoexp.errors import BadInput
from autoexp.jobs.budget import estimate
from autoexp.jobs.spec import JobSpec
from autoexp.names import check_job
from autoexp.planning.cost import Cost, cost_of
from autoexp.resources.containers import NoContainer
from autoexp.rules.actions import ConditionalAction, Decay, Launch
from autoexp.rules.rules import CheckpointRule
from autoexp.states import Kind


class Training(NamedTuple):
    """The jobs of one training, itself first, unless its cooldowns start from elsewhere."""

    jobs: tuple[JobSpec, ...]
    notes: tuple[str, ...]
    cost: Cost


def training(experiment: Experiment, output_root: Path, save_dir: Path | None = None) -> Training:
    """Work out the jobs of an experiment's training that writes below `output_root`.

    ``save_dir` is where the trunk saves, if it is to resume from another directory.

    Raises BadInput with every impossible cooldown, and the reason.
    """
    trainer, workers = experiment.trainer, experiment.slurm.workers
    refused = [f"backend: {problem}" for problem in trainer.problems(workers)]
    if isinstance(experiment.container, NoContainer):
        missing = [path for path in trainer.sources if not path.exists()]
        refused += [f"backend: {path}: no such file" for path in missing]
    jobs = [] if experiment.start else [_trunk(experiment, output_root, save_dir)]
    start = experiment.start if experiment.start and Path(experiment.start.path).exists() else None
    notes = [_note_on(start)] if start else []
    for place, cooldown, entry in all_cooldowns(experiment):
        found = _cooldowns(cooldown, experiment, output_root, {job.name for job in jobs})
        conditions = {"start_when": entry.when, "start_within_s": entry.within} if entry else {}
        jobs += [job.model_copy(update=conditions) for job in found.jobs]
        notes += [f"{place}: {note}" for note in found.notes]
        refused += [f"{place}: {reason}" for reason in found.refused]
    if refused:
        raise BadInput("\n".join(refused))
    copies = not trainer.pins_by_links or (start is not None and _is_elsewhere(start, output_root))
    size = _size(Path(start.path)) if start and copies else None
    cost = cost_of(jobs, trainer.batches(workers), copies=copies, size=size)
    return Training(tuple(_with_estimate(job, experiment) for job in jobs), tuple(notes), cost)


class _Cooldowns(NamedTuple):
    jobs: list[JobSpec]
    notes: list[str]
    refused: list[str]


def _cooldowns(
    cooldown: Cooldown, experiment: Experiment, output_root: Path, taken: set[str]
) -> _Cooldowns:
    """The jobs of one entry of `cooldowns`; `taken` are names of other jobs."""
    found = _Cooldowns([], [], [])
    here: set[int] = set()
    for wanted, point, branch in _branches(cooldown, experiment):
        if isinstance(branch, str):
            found.refused.append(f"{wanted}: {branch}")
            continue
        if point != branch.iteration:
            found.notes.append(
                f"{wanted}: branches at {branch.iteration}, the checkpoint before "
                f"{point} (save_interval {experiment.trainer.save_interval})"
            )
        name = _cooldown_name(experiment.project.name, cooldown, branch)
        reasons = _impossible(point, branch, experiment)
        if not reasons and branch.iteration in here:
            reasons = [f"branches at {branch.iteration}, as another cooldown of this entry does"]
        elif not reasons and name in taken:
            reasons = [f"a second job named {name}; give this cooldown a `name`"]
        here.add(branch.iteration)
        if reasons:
            found.refused.append(f"{wanted}: {'; '.join(reasons)}")
        else:
            found.jobs.append(_cooldown(name, branch, experiment, output_root))
    return found


def _with_estimate(job: JobSpec, experiment: Experiment) -> JobSpec:
    return job.model_copy(update={"planned": estimate(job, experiment.budget)})


def _is_elsewhere(start: CheckpointSource, output_root: Path) -> bool:
    """True if it lies on another filesystem than the outputs, which excludes hard links."""
    there = next(path for path in (output_root, *output_root.parents) if path.exists())
    return there.stat().st_dev != Path(start.path).stat().st_dev


def _size(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _note_on(start: CheckpointSource) -> str:
    named = start.session is not None
    where = f"{start.session}:{start.job}@{start.iteration}" if named else "a checkpoint"
    return f"starts from {where} ({start.path})"


def _branches(
    cooldown: Cooldown, experiment: Experiment
) -> Iterator[tuple[str, int, Branch | str]]:
    """The configured point (or total), the branch point it means, and the branch.

    In place of the branch there is the reason why the point is unknown.
    """
    trainer = experiment.trainer
    interval = trainer.save_interval
    if cooldown.budgets is not None:
        batches = trainer.batches(experiment.slurm.workers)
        share = 1 - cooldown.budgets.fraction
        for total in cooldown.budgets.totals:
            # N0 = (1 - f) T, down to a saved checkpoint; the decay takes the rest of the
            # budget (Hägele et al., arXiv 2405.18392).
            try:
                point, end = total.iterations(batches, share), total.iterations(batches)
            except ValueError as error:
                yield str(total), 0, str(error)
                continue
            start = point // interval * interval
            yield str(total), point, _branch(cooldown, experiment, start, end - start)
        return
    points = cooldown.at
    if points is None:
        assert cooldown.every is not None
        points = tuple(range(cooldown.every, trainer.train_iters + 1, cooldown.every))
    for point in points:
        # An existing checkpoint need not lie on the interval.
        start = point if experiment.start else point // interval * interval
        length = _decay_length(cooldown, start)
        yield str(point), point, _branch(cooldown, experiment, start, length)


def _branch(cooldown: Cooldown, experiment: Experiment, iteration: int, length: int) -> Branch:
    decay, budgets = cooldown.decay, cooldown.budgets
    min_lr = experiment.trainer.final_lr if decay.min_lr is None else decay.min_lr
    shape = budgets.shape if budgets and budgets.shape else decay.shape
    return Branch(iteration=iteration, decay_iterations=max(1, length), shape=shape, min_lr=min_lr)


def _decay_length(cooldown: Cooldown, start: int) -> int:
    if cooldown.decay.iterations is not None:
        return cooldown.decay.iterations
    fraction = cooldown.decay.fraction
    assert fraction is not None
    # A share of the branch's total: C = f (N0 + C).
    return max(1, round(start * fraction / (1 - fraction)))


def _impossible(point: int, branch: Branch, experiment: Experiment) -> list[str]:
    trainer = experiment.trainer
    if experiment.start is not None:
        return trainer.refusals(branch)
    if branch.iteration < trainer.save_interval:
        return [f"before the first checkpoint, which is at {trainer.save_interval}"]
    if point > trainer.train_iters:
        return [f"beyond the trunk's target of {trainer.train_iters} iterations"]
    return trainer.refusals(branch)


def _cooldown_name(trunk: str, cooldown: Cooldown, branch: Branch) -> str:
    suffix = f"-{cooldown.name}" if cooldown.name else ""
    return f"{trunk}-cd{branch.iteration}{suffix}"


def _trunk(experiment: Experiment, output_root: Path, save_dir: Path | None) -> JobSpec:
    output_dir = output_root / experiment.project.name
    return _job(experiment, output_dir, Kind.TRAIN, None, save_dir)


def _cooldown(name: str, branch: Branch, experiment: Experiment, output_root: Path) -> JobSpec:
    return _job(experiment, output_root / name, Kind.COOLDOWN, branch)


def _job(
    experiment: Experiment,
    output_dir: Path,
    kind: Kind,
    branch: Branch | None,
    save_dir: Path | None = None,
) -> JobSpec:
    """A job that writes in `output_dir`, whose last part is its name.

    Raises BadInput when the name is too long.
    """
    trainer = experiment.trainer
    save_dir = save_dir or output_dir / "checkpoints"
    return JobSpec(
        name=check_job(output_dir.name),
        kind=kind,
        parent=experiment.project.name if branch and not experiment.start else None,
        branch=branch,
        backend=experiment.backend,
        machine=experiment.slurm,
        container=experiment.container,
        command=(
            trainer.cooldown_command(branch, save_dir)
            if branch
            else trainer.trunk_command(save_dir)
        ),
        environment=trainer.environment(),
        output_dir=str(output_dir),
        save_dir=str(save_dir),
        target_iteration=branch.target if branch else trainer.train_iters,
    )


# Cooldowns that checkpoint rules launch, known beforehand


class Planned(NamedTuple):
    """A cooldown, where it was configured, and the conditions of its start."""

    where: str
    cooldown: Cooldown
    entry: ConditionalAction | None = None


def all_cooldowns(experiment: Experiment) -> Iterator[Planned]:
    """The experiment's own cooldowns, then those of its rules."""
    for index, cooldown in enumerate(experiment.cooldowns):
        yield Planned(f"cooldowns.{index}", cooldown)
    for name, rule in experiment.monitoring.checkpoint_events.items():
        for entry in rule.cooldowns() if rule is not None else ():
            assert rule is not None and isinstance(entry.action, Launch)
            where = f"monitoring.checkpoint_events.{name}"
            yield Planned(where, _from_rule(rule, entry.action, experiment), entry)


def _from_rule(rule: CheckpointRule, launch: Launch, experiment: Experiment) -> Cooldown:
    asked = launch.cooldown
    assert asked is not None
    target, interval = experiment.trainer.train_iters, experiment.trainer.save_interval
    if rule.budgets:
        totals = tuple(round(share * target) for share in rule.budgets)
        budgets = Budgets(totals=totals, fraction=asked.decay.fraction or 0.2)
        decay = Decay(shape=asked.decay.shape, min_lr=asked.decay.min_lr)
        return Cooldown(budgets=budgets, decay=decay, name=asked.name)
    every = rule.every or interval
    points = rule.at or tuple(range(every, target + 1, every))
    if rule.shares:
        points = tuple(max(interval, round(share * target)) for share in rule.shares)
    elif rule.last:
        points = (target,)
    if rule.range is not None:
        first, last = rule.range
        points = tuple(point for point in points if first <= point <= last)
    return Cooldown(at=points or None, decay=asked.decay, name=asked.name)
