"""Jobs as they are specified: fixed when they enter a session."""

from typing import Any

from pydantic import Field

from autoexp.backends.protocol import Backend, Branch
from autoexp.backends.registry import AnyBackend
from autoexp.jobs.budget import Estimate
from autoexp.model import Closed
from autoexp.names import LONGEST_JOB
from autoexp.resources.containers import Container, NoContainer
from autoexp.resources.machines import Machine
from autoexp.rules.conditions import Condition
from autoexp.states import Kind


class Awaited(Closed):
    """A job that another one waits for."""

    job: str
    checkpoint: int | None = None
    """The iteration of its checkpoint; None: its end, with the target reached."""

    def __str__(self) -> str:
        return (
            self.job if self.checkpoint is None else f"checkpoint {self.checkpoint} of {self.job}"
        )


class Draft(Closed):
    """What a job runs, where its last values are known when it is released: filled in one pass."""

    command: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)
    backend: dict[str, Any] = Field(default_factory=dict)
    """Changes to the backend, in place of a command."""
    values: dict[str, str]
    """What was known when it was planned, by name."""
    late: dict[str, Awaited]
    """Names of siblings and whose checkpoint `sibling.NAME.checkpoint_path` is."""


class JobSpec(Closed):
    """What is submitted: fixed when the job enters the session."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=LONGEST_JOB)
    """Part of file names and of the scheduler's job name."""
    kind: Kind
    parent: str | None = None
    branch: Branch | None = None
    backend: AnyBackend
    """Which trainer it runs: how to read its log and where its checkpoints land."""
    machine: Machine
    """What it asks of the scheduler."""
    container: Container = NoContainer()
    command: tuple[str, ...]
    environment: dict[str, str] = Field(default_factory=dict)
    output_dir: str
    save_dir: str
    target_iteration: int | None = None
    launched_by: str | None = None
    """Key of the action that launched it; None: it was planned, or submitted by somebody."""
    start_when: tuple[Condition, ...] = ()
    """What has to hold, besides its checkpoint being there, before a cooldown starts."""
    start_within_s: float = 86400.0
    """How long that may take."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """What tells its sweep point from the others, by dotted key."""
    awaits: tuple[Awaited, ...] = ()
    """What it waits for, when it follows other jobs."""
    draft: Draft | None = None
    """Its command as it is written, filled when it is released."""
    scores: str | None = None
    """JSON file of numbers that it writes."""
    planned: Estimate | None = None
    """GPU hours that it is planned to take; None: nobody can tell."""

    @property
    def trainer(self) -> Backend:
        """The backend, seen as the protocol that all backends keep."""
        return self.backend

    @property
    def configured_limit_min(self) -> float | None:
        """Minutes that it asks for, or may at most, as far as one can tell before it is begun."""
        return self.machine.configured_limit_min(cooldown=self.kind is Kind.COOLDOWN)

    @property
    def waits(self) -> bool:
        """Whether something has to happen in the session before it may be submitted."""
        branches = self.branch is not None and self.parent is not None
        return branches or bool(self.awaits)

    @property
    def title(self) -> str:
        """What people read: `train demo`, `cooldown demo @1000`."""
        if self.branch is None:
            return f"{self.kind} {self.name}"
        return f"{self.kind} {self.parent or self.name} @{self.branch.iteration}"
