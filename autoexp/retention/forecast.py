"""The disk space that a plan's checkpoints take at most, however long its jobs queue. Pure.

Checkpoints that stay add up to the end of a session, so the figure is the sum of what each job has
at its end; of what a job has besides until it has finished, which all that were interrupted or have
failed may have at once: one that its last attempt began from, those that a rule may roll back to;
and of what those that may run at once have besides: one that is written, one that is deleted.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from autoexp.jobs.spec import JobSpec, pace
from autoexp.model import FrozenModel
from autoexp.retention.decision import branch_points
from autoexp.retention.policy import Retention
from autoexp.retention.uses import roll_back_rules
from autoexp.rules.metrics import window
from autoexp.rules.rules import MetricRule
from autoexp.rules.ruleset import Rules
from autoexp.states import Kind

BYTES_PER_PARAMETER = 14
"""Of a checkpoint of mixed-precision Adam: weights in bf16, and in fp32 with two moments, as in
ZeRO (Rajbhandari et al., arXiv 1910.02054, section 3.1), without gradients."""
_MOVING = 2  # one that is being written, and one that is being deleted
_ATTEMPT = 1  # the one that the last attempt began from
_BEFORE_TROUBLE = 4  # of a rule that rolls back, besides those in its window


class Forecast(FrozenModel):
    """What a plan's checkpoints take, with its retention."""

    checkpoints: int
    """At most at one time, starts of branches and inputs of merges included."""
    waiting: int
    """Further ones, should every evaluation wait in the queue to the end."""
    bytes: int | None
    """Of both; None where the size of a checkpoint is unknown."""
    size_source: str
    budget: int | None
    whole_after_s: float | None
    """Seconds of training until all of them are there, without queueing; None where unknown."""

    @property
    def is_above(self) -> bool:
        return None not in (self.bytes, self.budget) and (self.bytes or 0) > (self.budget or 0)


def forecast(
    retention: Retention,
    specs: Sequence[JobSpec],
    rules: Rules,
    evaluations: Mapping[str, int],
    seconds_per_iteration: float | None,
) -> Forecast:
    """The most that these jobs take; `evaluations` are launches of rules at checkpoints, by job."""
    by_name = {spec.name: spec for spec in specs}
    most = specs[0].machine.max_jobs if specs else None
    parts = [_part(spec, specs, by_name, retention, rules, evaluations) for spec in specs]
    # Only what runs writes and deletes; the largest of them are taken to run at once.
    running = sorted(parts, key=lambda part: part.moving * (part.size or 1), reverse=True)[:most]
    sizes = [part.size for part in parts]
    known = None if None in sizes else sum(p.bytes(p.at_rest + p.waiting) for p in parts) + sum(
        part.bytes(part.moving) for part in running
    )  # fmt: skip
    return Forecast(
        checkpoints=sum(part.at_rest for part in parts) + sum(part.moving for part in running),
        waiting=sum(part.waiting for part in parts),
        bytes=known,
        size_source=_source(retention, known),
        budget=retention.budget,
        whole_after_s=_ends(by_name, seconds_per_iteration),
    )


class _Part(NamedTuple):
    """The checkpoints of one job."""

    stays: int
    """At its end, with its own start."""
    unfinished: int
    """More than that until it has finished, at most, whether it runs or not."""
    moving: int
    """More than both while it runs, at most."""
    waiting: int
    size: int | None

    @property
    def at_rest(self) -> int:
        """At most while it does not run."""
        return self.stays + self.unfinished

    def bytes(self, count: int) -> int:
        return count * (self.size or 0)


def _part(
    spec: JobSpec,
    specs: Sequence[JobSpec],
    by_name: Mapping[str, JobSpec],
    retention: Retention,
    rules: Rules,
    evaluations: Mapping[str, int],
) -> _Part:
    saved = _saves(spec)
    launched = min(evaluations.get(spec.name, 0), len(saved))
    held = {a.checkpoint for other in specs for a in other.awaits if a.job == spec.name}
    held |= {s.starts_at for s in specs if s.parent == spec.name and s.start_when}
    kept = _stay(spec, saved, specs, retention) | set(sorted(saved)[-retention.last :])
    stays = min(len(saved), len(kept) + launched * retention.evaluated)
    unfinished = min(len(saved) - stays, _ATTEMPT + _rolled_back(spec, rules))
    moving = min(len(saved) - stays - unfinished, _MOVING)
    late = len(held & saved) + launched * (not retention.evaluated)
    return _Part(
        stays + _starts(spec, by_name, retention),
        unfinished,
        moving,
        min(len(saved) - stays - unfinished - moving, late),
        _size(spec, retention),
    )


def _saves(spec: JobSpec) -> set[int]:
    """The iterations at which a job saves."""
    if spec.target_iteration is None:
        return set()
    start, interval = spec.branch.iteration if spec.branch else 0, spec.trainer.save_interval
    grid = range(interval * (start // interval + 1), spec.target_iteration + 1, interval)
    extra = () if spec.branch else spec.trainer.extra_saves
    return {*grid, *extra, spec.target_iteration}


def _stay(
    spec: JobSpec, saved: set[int], specs: Sequence[JobSpec], retention: Retention
) -> set[int]:
    """Those that stay for good by `keep`."""
    stays = {at for at in saved for every in retention.every if at % every == 0}
    if retention.branch_points:
        stays |= branch_points(specs, spec.name) & saved
    if retention.evaluated:
        awaited = (a for other in specs if other.kind is Kind.EVALUATE for a in other.awaits)
        stays |= {a.checkpoint for a in awaited if a.job == spec.name and a.checkpoint in saved}
    return stays


def _starts(spec: JobSpec, by_name: Mapping[str, JobSpec], retention: Retention) -> int:
    """A branch's own start, or a merge's inputs and its model, where they take space."""
    if spec.starts_at is None:
        return 0
    inputs = len(spec.merge.iterations) + 1 if spec.merge else 1
    is_linked = spec.trainer.pins_by_links and spec.parent in by_name
    return (spec.merge is not None) if is_linked and retention.branch_points else inputs


def _rolled_back(spec: JobSpec, rules: Rules) -> int:
    """Further ones that a rule may go back to."""
    about = [rule for rule in roll_back_rules(rules) if rule.is_about(spec.name, str(spec.kind))]
    if not about or spec.target_iteration is None:
        return 0
    metric = [r for r in rules.metric_events.values() if isinstance(r, MetricRule)]
    looked_at = max((window(rule) for rule in metric), default=0)
    span = looked_at * (spec.trainer.log_interval or 1)
    return span // spec.trainer.save_interval + _BEFORE_TROUBLE


def _size(spec: JobSpec, retention: Retention) -> int | None:
    trains = spec.target_iteration is not None or spec.merge is not None
    if retention.checkpoint_size is not None or not trains:
        return retention.checkpoint_size or 0
    parameters = spec.trainer.parameter_count()
    return None if parameters is None else BYTES_PER_PARAMETER * parameters


def _source(retention: Retention, known: int | None) -> str:
    if retention.checkpoint_size is not None:
        return "retention.checkpoint_size"
    if known is None:
        return "give retention.checkpoint_size"
    return (
        f"{BYTES_PER_PARAMETER} bytes for each parameter; retention.checkpoint_size says it better"
    )


def _ends(by_name: Mapping[str, JobSpec], each_s: float | None) -> float | None:
    """Seconds until the last job has reached its target."""
    if each_s is None:
        return None
    reached = _clock(by_name, each_s)
    trained = (spec for spec in by_name.values() if spec.target_iteration is not None)
    return max((reached(spec, spec.target_iteration or 0) for spec in trained), default=None)


def _clock(by_name: Mapping[str, JobSpec], each_s: float) -> Callable[[JobSpec, int], float]:
    def reached(spec: JobSpec, iteration: int) -> float:
        parent = by_name.get(spec.parent or "")
        if parent is None or spec.branch is None:
            return iteration * each_s
        own_s = (iteration - spec.branch.iteration) * each_s * pace(spec, parent)
        return reached(parent, spec.branch.iteration) + own_s

    return reached


def evaluations(launches: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Launches of rules at checkpoints, by job."""
    found: dict[str, int] = {}
    for job, count in launches:
        found[job] = found.get(job, 0) + count
    return found
