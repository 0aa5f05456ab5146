"""The nodes that a session excludes, each with the evidence and an expiry: `blame.json`."""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from autoexp import sinks
from autoexp.storage import atomic, migrations


class ExcludedNode(BaseModel):
    """One node and why it is excluded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    evidence: str
    """Key of the event that named it."""
    reason: str
    until: datetime


class NodesFile(BaseModel):
    """`blame.json`: the list as it lies on disk."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    nodes: list[ExcludedNode] = Field(default_factory=list)


class ExcludedNodes:
    """The excluded nodes of one session; only the holder of the lease adds to them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.nodes: list[ExcludedNode] = []

    def load(self) -> None:
        """Read the list; raises SessionDamaged when it does not parse."""
        if self._path.exists():
            self.nodes = migrations.read(self._path, NodesFile).nodes

    def add(self, blamed: Iterable[ExcludedNode]) -> None:
        """Add nodes to the list; known evidence is kept once.

        Raises SessionError for what cannot be the name of a node: it may come from a log, and goes
        to SLURM.
        """
        known = {(entry.node, entry.evidence) for entry in self.nodes}
        fresh = [entry for entry in blamed if (entry.node, entry.evidence) not in known]
        for entry in fresh:
            sinks.node(entry.node)
        if fresh:
            content = NodesFile(nodes=[*self.nodes, *fresh])
            atomic.write(self._path, content.model_dump_json(indent=1) + "\n")
            self.nodes = content.nodes

    def current(self, at: datetime) -> tuple[str, ...]:
        """The nodes to exclude at a time."""
        current = {entry.node for entry in self.nodes if entry.until > at}
        # Whoever wrote the file: an invalid name reaches no command line.
        return tuple(sorted(node for node in current if sinks.is_node(node)))
