"""The cooldowns that checkpoint rules launch: known beforehand, so planned with the rest."""

from collections.abc import Iterator
from typing import NamedTuple

from autoexp.config.experiment import Budgets, Cooldown, Experiment
from autoexp.rules.actions import ConditionalAction, Decay, Launch
from autoexp.rules.rules import CheckpointRule


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
            yield Planned(where, _cooldown(rule, entry.action, experiment), entry)


def _cooldown(rule: CheckpointRule, launch: Launch, experiment: Experiment) -> Cooldown:
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
