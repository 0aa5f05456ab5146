"""Cooldowns as jobs: branch points, decay lengths, settings of their own, chains."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.backends.batches import Batches
from autoexp.backends.protocol import Backend, Branch
from autoexp.config.cooldowns import BranchSettings, Budgets, Cooldown, FollowUp, Variant
from autoexp.config.experiment import Experiment
from autoexp.config.quantities import Quantity
from autoexp.dotted import flat
from autoexp.errors import BadInput
from autoexp.jobs.backend_changes import changed_backend
from autoexp.jobs.spec import JobSpec
from autoexp.names import check_job
from autoexp.rules.actions import ConditionalAction, Decay, Launch
from autoexp.rules.rules import CheckpointRule
from autoexp.states import Kind


class Planned(NamedTuple):
    """A cooldown, where it was configured, and the conditions of its start."""

    where: str
    cooldown: Cooldown
    entry: ConditionalAction | None = None


class CooldownJobs(NamedTuple):
    """The jobs of one entry of `cooldowns`."""

    jobs: list[JobSpec]
    notes: list[str]
    refused: list[str]


def all_cooldowns(experiment: Experiment) -> Iterator[Planned]:
    """The experiment's own cooldowns, then those of its rules."""
    for index, cooldown in enumerate(experiment.cooldowns):
        yield Planned(f"cooldowns.{index}", cooldown)
    for name, rule in experiment.monitoring.checkpoint_events.items():
        for entry in rule.cooldowns() if rule is not None else ():
            assert rule is not None and isinstance(entry.action, Launch)
            where = f"monitoring.checkpoint_events.{name}"
            yield Planned(where, _of_rule(rule, entry.action, experiment), entry)


def _of_rule(rule: CheckpointRule, launch: Launch, experiment: Experiment) -> Cooldown:
    asked = launch.cooldown
    assert asked is not None
    target, interval = experiment.trainer.train_iters, experiment.trainer.save_interval
    if rule.budgets:
        totals = tuple(round(share * target) for share in rule.budgets)
        budgets = Budgets(totals=totals, fraction=asked.decay.fraction or 0.2)
        unset = {"iterations": None, "tokens": None, "fraction": None}
        return Cooldown(
            budgets=budgets, decay=asked.decay.model_copy(update=unset), name=asked.name
        )
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


class _Parent(NamedTuple):
    """What a branch goes on from: the training, or another branch."""

    experiment: Experiment
    """With its own backend."""
    job: JobSpec | None
    """None: the trunk."""

    @property
    def is_counted(self) -> bool:
        """True if its samples do not follow from its own settings alone."""
        source = self.experiment.start if self.job is None else self.job.branch
        return source is not None and source.samples is not None

    def tokens(self, iteration: int) -> int | None:
        """Tokens seen at one of its iterations."""
        if self.job is not None:
            return self.job.tokens_at(iteration)
        if (start := self.experiment.start) is not None and start.tokens is not None:
            return start.tokens
        batches = self.experiment.trainer.batches(self.experiment.slurm.workers)
        return None if batches is None else batches.tokens(iteration)

    def samples(self, iteration: int) -> int | None:
        """Samples seen at one of its iterations."""
        if self.job is not None:
            return self.job.samples_at(iteration)
        if (start := self.experiment.start) is not None and start.samples is not None:
            return start.samples
        batches = self.experiment.trainer.batches(self.experiment.slurm.workers)
        return None if batches is None else batches.samples(iteration)


def cooldown_jobs(
    cooldown: Cooldown, experiment: Experiment, output_root: Path, taken: set[str]
) -> CooldownJobs:
    """The jobs of one entry of `cooldowns`, each before its chain; `taken` are others' names."""
    found = CooldownJobs([], [], [])
    trunk = _Parent(experiment, None)
    moved: set[str] = set()
    for variant, own in _variants(cooldown, trunk, found):
        here: set[int] = set()
        for wanted, point, branch in _branches(cooldown, variant, trunk, own):
            if isinstance(branch, str):
                found.refused.append(f"{wanted}: {branch}")
                continue
            if point != branch.iteration and wanted not in moved:
                moved.add(wanted)
                found.notes.append(
                    f"{wanted}: branches at {branch.iteration}, the checkpoint before {point} "
                    f"(save_interval {experiment.trainer.save_interval}), "
                    f"{_moved_by(point, branch, cooldown):.2g} % of its budget earlier"
                )
            name = _name(experiment.project.name, branch, variant)
            reasons = _impossible(point, branch, experiment, own)
            reasons += _too_far(point, branch, cooldown)
            if not reasons and branch.iteration in here:
                other = "another cooldown of this entry"
                reasons = [f"branches at {branch.iteration}, as {other} does"]
            here.add(branch.iteration)
            _add(name, wanted, reasons, branch, own, trunk, cooldown, output_root, taken, found)
    return found


def _variants(
    entry: BranchSettings, parent: _Parent, found: CooldownJobs
) -> Iterator[tuple[Variant, Experiment]]:
    """The branches of an entry, each with the experiment that it is of; refuses others."""
    try:
        variants = entry.variants()
    except (BadInput, ValueError) as error:
        found.refused.append(str(error))
        return
    for variant in variants:
        label = f"{variant.name}: " if variant.name and len(variants) > 1 else ""
        try:
            own = with_backend(parent.experiment, variant.backend)
        except BadInput as error:
            found.refused.append(f"{label}{error}")
            continue
        trainer = parent.experiment.trainer
        changed = differing(parent.experiment, own)
        kept = [(key, trainer.branch_change(key.partition(".")[2])) for key in changed]
        refused = [
            f"{label}{key}: a branch cannot change it: {change.how}"
            for key, change in kept
            if not change.may
        ]
        workers = own.slurm.workers
        if changed and not refused:
            refused = [f"{label}backend: {reason}" for reason in own.trainer.problems(workers)]
        found.refused.extend(refused)
        for key, change in kept:
            note = f"{key}: {change.how}"
            if change.may and change.how and note not in found.notes:
                found.notes.append(note)
        if not refused:
            yield variant, own


def with_backend(experiment: Experiment, changes: dict[str, Any]) -> Experiment:
    """The experiment with changes to its backend; raises BadInput."""
    if not changes:
        return experiment
    return experiment.model_copy(update={"backend": changed_backend(experiment.backend, changes)})


def differing(parent: Experiment, own: Experiment) -> dict[str, Any]:
    """The settings of a branch that its parent has not, by dotted key: `backend.args.mix`."""
    before, after = (
        flat({"backend": each.backend.model_dump(mode="json")}) for each in (parent, own)
    )
    keys = dict.fromkeys([*before, *after])
    return {key: after.get(key) for key in keys if before.get(key) != after.get(key)}


def _add(
    name: str,
    wanted: str,
    reasons: list[str],
    branch: Branch,
    own: Experiment,
    parent: _Parent,
    entry: BranchSettings,
    output_root: Path,
    taken: set[str],
    found: CooldownJobs,
) -> None:
    """Add a branch and its chain, or the reasons why there is none."""
    if not reasons and name in taken:
        reasons = [f"a second job named {name}; give this cooldown a `name`"]
    if reasons:
        found.refused.append(f"{wanted}: {'; '.join(reasons)}")
        return
    taken.add(name)
    trunk = own.project.name if not own.start else None
    job = job_of(own, output_root / name, Kind.COOLDOWN, branch).model_copy(
        update={
            "parent": parent.job.name if parent.job else trunk,
            "changes": differing(parent.experiment, own),
        }
    )
    found.jobs.append(job)
    _chain(entry.then, _Parent(own, job), output_root, taken, found)


def _chain(
    entries: Sequence[FollowUp],
    parent: _Parent,
    output_root: Path,
    taken: set[str],
    found: CooldownJobs,
) -> None:
    """Add the branches from the end of a branch."""
    job = parent.job
    assert job is not None and job.target_iteration is not None
    start = job.target_iteration
    for entry in entries:
        for variant, own in _variants(entry, parent, found):
            try:
                stable = _stable(entry, start, own)
                length = _decay_length(variant.decay, start, parent, own, stable)
            except ValueError as error:
                found.refused.append(f"then, behind {job.name}: {error}")
                continue
            branch = _branch(variant.decay, parent, own, start, length, stable)
            name = _name(job.name, branch, variant)
            reasons = own.trainer.refusals(branch)
            where = f"then, behind {job.name}"
            _add(name, where, reasons, branch, own, parent, entry, output_root, taken, found)


def saving_at_branch_points(experiment: Experiment) -> Experiment:
    """The experiment whose trainer is told to save at its own branch points off the grid."""
    trainer = experiment.trainer
    if experiment.start is not None:
        return experiment
    points = {
        point
        for cooldown in experiment.cooldowns
        for _, point, _ in _points(cooldown, experiment)
        if point is not None and 0 < point <= trainer.train_iters and point % trainer.save_interval
    }
    if not points:
        return experiment
    return experiment.model_copy(update={"backend": experiment.backend.saving_at(sorted(points))})


class _Point(NamedTuple):
    """A branch point as configured."""

    wanted: str
    point: int | None
    """Its iteration; None: unknown."""
    end: int | str
    """Of a budget the iteration at which its decay ends, or why that is unknown; else 0."""


def _points(cooldown: Cooldown, experiment: Experiment) -> Iterator[_Point]:
    """The branch points as written, and as iterations; in their place, why they are unknown."""
    batches = experiment.trainer.batches(experiment.slurm.workers)
    if cooldown.budgets is None:
        try:
            points = list(_written_points(cooldown, experiment.trainer.train_iters, batches))
        except ValueError as error:
            points = [_Point(str(cooldown.every or "at"), None, str(error))]
        yield from points
        return
    for total in cooldown.budgets.totals:
        try:
            point = total.iterations(batches, 1 - cooldown.budgets.fraction)
            yield _Point(str(total), point, total.iterations(batches))
        except ValueError as error:
            yield _Point(str(total), None, str(error))


def _written_points(cooldown: Cooldown, last: int, batches: Batches | None) -> Iterator[_Point]:
    """The points of `at` or `every`; raises ValueError where one is unknown."""
    for point in cooldown.at or ():
        at = point.iterations(batches) if isinstance(point, Quantity) else point
        yield _Point(str(point), at, 0)
    every = cooldown.every
    if isinstance(every, Quantity):
        if every.iterations(batches) < 1:
            raise ValueError(f"{every} are less than one iteration")
        for number in itertools.count(1):
            at = every.iterations(batches, number)
            if at > last:
                return
            yield _Point(str(every.model_copy(update={"amount": number * every.amount})), at, 0)
    elif every is not None:
        for at in range(every, last + 1, every):
            yield _Point(str(at), at, 0)


def _last_save(point: int, trainer: Backend) -> int:
    """The last iteration at which the trainer saves, up to a point."""
    on_grid = point // trainer.save_interval * trainer.save_interval
    return max([on_grid, *(at for at in trainer.extra_saves if at <= point)])


def _moved_by(point: int, branch: Branch, cooldown: Cooldown) -> float:
    """By how much of the model's length a branch point has been moved, in per cent."""
    total = branch.target if cooldown.budgets else point + branch.target - branch.iteration
    return 100 * (point - branch.iteration) / total


def _too_far(point: int, branch: Branch, cooldown: Cooldown) -> list[str]:
    most, moved = cooldown.snap_at_most, _moved_by(point, branch, cooldown)
    if most is None or moved <= 100 * most * (1 + 1e-9):
        return []
    return [
        f"branches at {branch.iteration}, {moved:.2g} % of its budget before {point}, and "
        f"snap_at_most is {100 * most:g} %: move the point, or save more often"
    ]


def _branches(
    cooldown: Cooldown, variant: Variant, trunk: _Parent, own: Experiment
) -> Iterator[tuple[str, int, Branch | str]]:
    """The configured point (or total), the branch point it means, and the branch.

    In place of the branch there is the reason why the point is unknown.
    """
    trainer, decay = trunk.experiment.trainer, variant.decay
    if cooldown.budgets is not None and cooldown.budgets.shape is not None:
        decay = decay.model_copy(update={"shape": cooldown.budgets.shape})
    for wanted, point, end in _points(cooldown, trunk.experiment):
        if point is None or isinstance(end, str):
            yield wanted, 0, str(end)
        elif cooldown.budgets is not None:
            # N0 = (1 - f) T, down to a saved checkpoint; the decay takes the rest of the
            # budget (Hägele et al., arXiv 2405.18392).
            start = _last_save(point, trainer)
            length = round((end - start) * _pace(trunk, own))
            yield wanted, point, _branch(decay, trunk, own, start, length)
        else:
            # An existing checkpoint need not lie on the interval.
            start = point if own.start else _last_save(point, trainer)
            try:
                stable = _stable(cooldown, start, own)
                length = _decay_length(decay, start, trunk, own, stable)
            except ValueError as error:
                yield wanted, point, str(error)
                continue
            yield wanted, point, _branch(decay, trunk, own, start, length, stable)


def _branch(
    decay: Decay, parent: _Parent, own: Experiment, iteration: int, length: int, stable: int = 0
) -> Branch:
    length = max(1, length)
    before = parent.experiment.trainer.batches(own.slurm.workers)
    # A parent that was counted anew passes that on.
    anew = parent.is_counted or before != own.trainer.batches(own.slurm.workers)
    return decay_of(
        decay,
        own,
        iteration=iteration,
        stable_iterations=stable,
        decay_iterations=length,
        samples=parent.samples(iteration) if anew else None,
        tokens=parent.tokens(iteration) if anew else None,
    )


def decay_of(decay: Decay, own: Experiment, **places: Any) -> Branch:
    """A decay as written and its places, as the trainer runs it."""
    length = places["decay_iterations"]
    return Branch(
        shape=decay.shape,
        min_lr=own.trainer.final_lr if decay.min_lr is None else decay.min_lr,
        power=decay.power,
        points=decay.points,
        hold_iterations=min(length - 1, round(decay.hold * length)),
        **places,
    )


def _stable(entry: BranchSettings, start: int, own: Experiment) -> int:
    """The iterations of a branch before its decay; raises ValueError where they are unknown."""
    asked = entry.stable
    if not isinstance(asked, Quantity):
        return asked or 0
    return iterations_of(asked, start, own, "`stable`")


def _decay_length(
    decay: Decay, start: int, parent: _Parent, own: Experiment, stable: int = 0
) -> int:
    if decay.iterations is not None:
        return decay.iterations
    if decay.tokens is not None:
        asked = Quantity(amount=decay.tokens, unit="tokens")
        return iterations_of(asked, start + stable, own, "a decay")
    fraction = decay.fraction
    assert fraction is not None
    # A share of the branch's total: C = f (N0 + S + C), in tokens.
    seen, each, share = parent.tokens(start), _tokens_each(own), fraction / (1 - fraction)
    if seen is not None and each is not None:
        return max(1, round((seen + stable * each) * share / each))
    return max(1, round((start * _pace(parent, own) + stable) * share))


def iterations_of(asked: Quantity, start: int, own: Experiment, what: str) -> int:
    """The iterations from `start` on that see so much; raises ValueError where unknown."""
    if asked.unit == "iterations":
        return asked.amount
    batches = own.trainer.batches(own.slurm.workers)
    # A batch that still grows there grows on.
    before = 0
    if batches is not None and batches.grows:
        seen = batches.tokens(start) if asked.unit == "tokens" else batches.samples(start)
        before = seen or 0
    whole = asked.model_copy(update={"amount": asked.amount + before})
    found = whole.iterations(batches) - (start if before else 0)
    if found < 1:
        raise ValueError(f"{what} of {asked} is less than one iteration")
    return found


def _tokens_each(experiment: Experiment) -> int | None:
    """Tokens of an iteration, once any growth of the batch is over."""
    batches = experiment.trainer.batches(experiment.slurm.workers)
    if batches is None or batches.tokens_per_sample is None or batches.grows:
        return None
    return batches.size * batches.tokens_per_sample


def _pace(parent: _Parent, own: Experiment) -> float:
    """Iterations of the branch for one of its parent's, with the same number of tokens."""
    workers = own.slurm.workers
    before, after = (each.trainer.batches(workers) for each in (parent.experiment, own))
    if before is None or after is None:
        return 1.0
    each = [x.size * (x.tokens_per_sample or 1) for x in (before, after)]
    return each[0] / each[1]


def _impossible(point: int, branch: Branch, experiment: Experiment, own: Experiment) -> list[str]:
    trainer = experiment.trainer
    if experiment.start is not None:
        return own.trainer.refusals(branch)
    if not branch.iteration:
        return [f"before the first checkpoint, which is at {trainer.save_interval}"]
    if point > trainer.train_iters:
        return [f"beyond the trunk's target of {trainer.train_iters} iterations"]
    return own.trainer.refusals(branch)


def _name(parent: str, branch: Branch, variant: Variant) -> str:
    suffix = f"-{variant.name}" if variant.name else ""
    return f"{parent}-cd{branch.iteration}{suffix}"


def job_of(
    experiment: Experiment,
    output_dir: Path,
    kind: Kind,
    branch: Branch | None,
    save_dir: Path | None = None,
) -> JobSpec:
    """A job that trains and writes in `output_dir`, whose last part is its name.

    ``branch`` is its decay: of a cooldown or of a baseline, by its kind. Raises BadInput when the
    name is too long.
    """
    trainer = experiment.trainer
    save_dir = save_dir or output_dir / "checkpoints"
    return JobSpec(
        name=check_job(output_dir.name),
        kind=kind,
        branch=None if kind is Kind.BASELINE else branch,
        baseline=branch if kind is Kind.BASELINE else None,
        backend=experiment.backend,
        machine=experiment.slurm,
        container=experiment.container,
        nodes=experiment.nodes,
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
