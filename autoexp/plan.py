"""From an experiment to the jobs that it means: branch points, decay lengths, command lines."""

from collections.abc import Iterator
from pathlib import Path

from autoexp.backends.base import Branch, Closed
from autoexp.errors import BadInput
from autoexp.experiment import Cooldown, Experiment
from autoexp.jobs import JobSpec, Kind
from autoexp.rules.actions import Decay
from autoexp.rules.planned import all_cooldowns


class Plan(Closed):
    """Every job of a session before anything is submitted, the trunk first."""

    jobs: tuple[JobSpec, ...]
    notes: tuple[str, ...] = ()
    """What a reader should know, such as branch points that were moved to a checkpoint."""

    @property
    def trunk(self) -> JobSpec:
        return self.jobs[0]

    @property
    def cooldowns(self) -> tuple[JobSpec, ...]:
        return tuple(job for job in self.jobs if job.kind is Kind.COOLDOWN)


def make_plan(experiment: Experiment, output_root: Path, save_dir: Path | None = None) -> Plan:
    """Work out all jobs of a session that writes below `output_root`.

    `save_dir` is where the trunk saves, if it is to go on from somewhere else.

    Raises BadInput with every cooldown that cannot happen, and why.
    """
    trunk_name = experiment.project.name
    jobs = [_trunk(experiment, output_root, save_dir)]
    notes: list[str] = []
    refused: list[str] = []
    names = {trunk_name}
    for place, cooldown, step in all_cooldowns(experiment):
        here: set[int] = set()
        for wanted, point, branch in _branches(cooldown, experiment):
            where = f"{place}: {wanted}"
            if point != branch.iteration:
                notes.append(
                    f"{where}: branches at {branch.iteration}, the checkpoint before "
                    f"{point} (save_interval {experiment.trainer.save_interval})"
                )
            name = _cooldown_name(trunk_name, cooldown, branch)
            reasons = _impossible(point, branch, experiment)
            if not reasons and branch.iteration in here:
                reasons = [f"branches at {branch.iteration}, as another one here does"]
            elif not reasons and name in names:
                reasons = [f"a second job named {name}; give this cooldown a `name`"]
            here.add(branch.iteration)
            if reasons:
                refused.append(f"{where}: {'; '.join(reasons)}")
                continue
            names.add(name)
            job = _cooldown(name, branch, experiment, output_root)
            if step is not None:
                conditions = {"start_when": step.when, "start_within_s": step.within}
                job = job.model_copy(update=conditions)
            jobs.append(job)
    if refused:
        raise BadInput("\n".join(refused))
    return Plan(jobs=tuple(jobs), notes=tuple(notes))


def _branches(cooldown: Cooldown, experiment: Experiment) -> Iterator[tuple[int, int, Branch]]:
    """What was asked for (a branch point, or a total), the point it means, and the branch."""
    interval = experiment.trainer.save_interval
    decay = cooldown.decay
    if cooldown.budgets is not None:
        for total in cooldown.budgets.totals:
            # N0 = (1 - f) T, down to a saved checkpoint; the decay takes what is left of the
            # budget (Hägele et al., arXiv 2405.18392).
            point = round((1 - cooldown.budgets.fraction) * total)
            start = point // interval * interval
            yield total, point, _branch(decay, start, total - start)
        return
    points = cooldown.at
    if points is None:
        assert cooldown.every is not None
        points = tuple(range(cooldown.every, experiment.trainer.train_iters + 1, cooldown.every))
    for point in points:
        start = point // interval * interval
        yield point, point, _branch(decay, start, _decay_length(cooldown, start))


def _branch(decay: Decay, iteration: int, length: int) -> Branch:
    return Branch(
        iteration=iteration, decay_iterations=length, shape=decay.shape, min_lr=decay.min_lr
    )


def _decay_length(cooldown: Cooldown, start: int) -> int:
    if cooldown.decay.iterations is not None:
        return cooldown.decay.iterations
    fraction = cooldown.decay.fraction
    assert fraction is not None
    # A share of the branch's total: C = f (N0 + C).
    return max(1, round(start * fraction / (1 - fraction)))


def _impossible(point: int, branch: Branch, experiment: Experiment) -> list[str]:
    trainer = experiment.trainer
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
    """A job that writes in `output_dir`, whose last part is its name."""
    trainer = experiment.trainer
    save_dir = save_dir or output_dir / "checkpoints"
    return JobSpec(
        name=output_dir.name,
        kind=kind,
        parent=experiment.project.name if branch else None,
        branch=branch,
        backend=experiment.backend,
        machine=experiment.slurm,
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
