"""Specifications of jobs: fixed when a job is added to a session."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from autoexp.backends.protocol import Backend, Branch
from autoexp.backends.registry import AnyBackend
from autoexp.jobs.budget import Estimate
from autoexp.model import FrozenModel
from autoexp.names import LONGEST_JOB
from autoexp.nodes.policy import NodePolicy
from autoexp.resources.containers import Container, NoContainer
from autoexp.resources.machines import Machine
from autoexp.rules.conditions import Condition
from autoexp.states import Kind


class Awaited(FrozenModel):
    """A job that another one waits for."""

    job: str
    checkpoint: int | None = None
    """The iteration of its checkpoint; None: its end, with the target reached."""

    def __str__(self) -> str:
        return (
            self.job if self.checkpoint is None else f"checkpoint {self.checkpoint} of {self.job}"
        )


class Draft(FrozenModel):
    """A command whose last values are known only when the job is released: filled in one pass."""

    command: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    backend: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backend, in place of a command."""
    values: dict[str, str]
    """Values known when it was planned, by name."""
    late: dict[str, Awaited]
    """Names of siblings and whose checkpoint `sibling.NAME.checkpoint_path` is."""


class MergeInputs(FrozenModel):
    """Checkpoints of a parent that are merged, each pinned as soon as it is complete."""

    iterations: tuple[int, ...]
    """Ascending; the merge starts at the last one."""
    weights: tuple[float, ...]
    shape: str

    @property
    def at(self) -> int:
        return self.iterations[-1]


class JobSpec(FrozenModel):
    """The specification of a job: fixed when the job is added to the session."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_JOB)
    """Part of file names and of the scheduler's job name."""
    kind: Kind
    parent: str | None = None
    branch: Branch | None = None
    merge: MergeInputs | None = None
    baseline: Branch | None = None
    """Of a baseline: its decay, in a run from scratch."""
    backend: AnyBackend
    """The trainer: how to read its log and where its checkpoints land."""
    machine: Machine
    """The resources that it requests."""
    container: Container = NoContainer()
    nodes: NodePolicy | None = None
    """The check of its nodes before the trainer; None: none is made."""
    command: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    output_dir: str
    save_dir: str
    target_iteration: int | None = None
    launched_by: str | None = None
    """Key of the action that launched it; None: it was planned, or submitted by somebody."""
    start_when: tuple[Condition, ...] = ()
    """Conditions, besides its checkpoint, that have to hold before a cooldown starts."""
    start_within_s: float = 86400.0
    """Deadline for these conditions, in seconds."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """The settings of a branch that are not its parent's, by dotted key."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """The settings of its sweep point that differ from other points, by dotted key."""
    awaits: tuple[Awaited, ...] = ()
    """The jobs or checkpoints that it waits for."""
    draft: Draft | None = None
    """Its command as a template, filled when it is released."""
    reads: tuple[str, ...] = ()
    """Directories and files outside of the session's outputs that its command reads."""
    scores: str | None = None
    """JSON file of scores that it writes."""
    launched_as: Literal["srun", "torchrun"] | None = None
    """The launcher of a command; a trainer has that of its machine."""
    planned: Estimate | None = None
    """Planned GPU hours; None if unknown."""

    @property
    def trainer(self) -> Backend:
        """The backend, as the protocol that all backends implement."""
        return self.backend

    @property
    def decay(self) -> Branch | None:
        """The decay of its learning rate; None: it keeps its rate, or does not train."""
        return self.branch or self.baseline

    @property
    def changes_data(self) -> bool:
        """True if a branch trains on other data than its parent, as far as its settings say."""
        keys = (key.partition(".")[2] for key in self.changes)
        return any(self.trainer.branch_change(key).data for key in keys)

    def samples_at(self, iteration: int) -> int | None:
        """Samples that the model has seen at an iteration, its parent's included."""
        batches = self.trainer.batches(self.machine.workers)
        if batches is None:
            return None
        if self.branch is None or self.branch.samples is None:
            return batches.samples(iteration)
        own = batches.samples(iteration) - batches.samples(self.branch.iteration)
        return self.branch.samples + own

    def tokens_at(self, iteration: int) -> int | None:
        """Tokens that the model has seen at an iteration, its parent's included."""
        batches = self.trainer.batches(self.machine.workers)
        own = None if batches is None else batches.tokens(iteration)
        if batches is None or own is None or self.branch is None or self.branch.tokens is None:
            return own
        return self.branch.tokens + own - (batches.tokens(self.branch.iteration) or 0)

    @property
    def configured_limit_min(self) -> float | None:
        """Configured time limit in minutes, if one is known before submission."""
        return self.machine.configured_limit_min(cooldown=self.kind is Kind.COOLDOWN)

    @property
    def waits(self) -> bool:
        """True if something has to happen in the session before it may be submitted."""
        return self.starts_at is not None or bool(self.awaits)

    @property
    def starts_at(self) -> int | None:
        """The iteration of its parent's checkpoint at which it starts, if it does so."""
        if self.parent is None:
            return None
        if self.merge is not None:
            return self.merge.at
        return self.branch.iteration if self.branch else None

    @property
    def merge_weights(self) -> tuple[float, ...]:
        return self.merge.weights if self.merge else ()

    @property
    def merged_path(self) -> Path:
        """Where a merge writes its model."""
        return Path(self.output_dir) / "merged"

    def input_dir(self, iteration: int) -> Path:
        """Where a merge has its own copy of a checkpoint, in a save directory of its own."""
        return Path(self.output_dir) / "inputs" / str(iteration)

    @property
    def title(self) -> str:
        """Title for display: `train demo`, `cooldown demo @1000`."""
        return f"{self.kind} {self.label}"

    @property
    def label(self) -> str:
        """The title where the kind stands beside it: `demo`, `demo @1000`."""
        if self.merge is not None:
            count = len(self.merge.iterations)
            return f"{self.parent} @{self.merge.at} ({count} {self.merge.shape})"
        if self.baseline is not None:
            return self.name.removeprefix(f"{self.parent}-")
        if self.branch is None:
            return self.name
        named = self.name.rpartition(f"-cd{self.branch.iteration}")[2].replace("-", " ", 1)
        return f"{self.parent or self.name} @{self.branch.iteration}{named}"


def root_of(spec: JobSpec, specs: Mapping[str, JobSpec]) -> JobSpec:
    """The training that a job comes from: the point of a sweep."""
    seen = {spec.name}
    while (parent := specs.get(spec.parent or "")) is not None and parent.name not in seen:
        spec = parent
        seen.add(spec.name)
    return spec


def tokens_of_curve(
    spec: JobSpec, specs: Mapping[str, JobSpec], iterations: Sequence[int]
) -> list[int] | None:
    """Tokens until each iteration; up to its branch point its parent's, whose batch may differ.

    None where they are not known.
    """
    found = [_tokens_until(spec, specs, iteration) for iteration in iterations]
    known = [tokens for tokens in found if tokens is not None]
    return known if len(known) == len(found) else None


def _tokens_until(spec: JobSpec, specs: Mapping[str, JobSpec], iteration: int) -> int | None:
    found = 0
    seen: set[str] = set()
    while True:
        seen.add(spec.name)
        batches = spec.trainer.batches(spec.machine.workers)
        parent = specs.get(spec.parent or "")
        has_parent = parent is not None and parent.name not in seen
        start = spec.starts_at if has_parent else None
        first = min(start or 0, iteration)
        ends = [None if batches is None else batches.tokens(at) for at in (iteration, first)]
        if ends[0] is None or ends[1] is None:
            return None
        found += ends[0] - ends[1]
        if parent is None or start is None:
            return found + ends[1]
        spec, iteration = parent, first


def pace(spec: JobSpec, other: JobSpec) -> float:
    """How many tokens an iteration of a job has for one of another job's; 1 where unknown."""
    found = [each.trainer.batches(each.machine.workers) for each in (spec, other)]
    if found[0] is None or found[1] is None or found[0] == found[1]:
        return 1.0
    own, others = (each.size * (each.tokens_per_sample or 1) for each in found if each)
    return own / others
