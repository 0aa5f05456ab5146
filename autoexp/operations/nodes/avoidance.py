"""Nodes to avoid, as submissions and queued jobs get them; sick ones into the shared list, once."""

import logging
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from autoexp.model import now
from autoexp.nodes.avoid_list import Avoided, AvoidList, user, within_cap
from autoexp.nodes.policy import NodePolicy
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.rules.events import NodesFoundSick
from autoexp.schedulers.base import AttemptRef, Scheduler
from autoexp.schedulers.slurm.queue import nodes_of_partition
from autoexp.session.session import Session

_log = logging.getLogger(__name__)


class ToAvoid(NamedTuple):
    """The nodes that a session's jobs are to avoid, before the shared list is read."""

    named: tuple[str, ...]
    """By rules, which name one at a time."""
    sick: tuple[str, ...] = ()
    """By checks of this session, the oldest first."""
    policy: NodePolicy | None = None

    def names(self, machine: LocalMachine | SlurmCluster) -> tuple[str, ...]:
        """All of them, with those of the shared list, within its cap; it may read and ask SLURM.

        A list that cannot be read is a warning.
        """
        if self.policy is None:
            return self.named
        entries: list[Avoided] = []
        if self.policy.avoid_file is not None:
            try:
                entries = AvoidList(Path(self.policy.avoid_file)).current(now())
            except OSError as error:
                _log.warning("%s cannot be read: %s", self.policy.avoid_file, error)
        if not (self.sick or entries):
            return self.named
        size = nodes_of_partition(machine) if isinstance(machine, SlurmCluster) else None
        most = self.policy.most_at_once(size)
        found, left_out = within_cap(self.sick, entries, most)
        if left_out:
            _log.warning(
                "checks named %d nodes more than may be avoided at once (%d; nodes.most, "
                "nodes.share): those are used",
                left_out,
                most,
            )
        return tuple(sorted({*self.named, *found}))


def to_avoid(session: Session) -> ToAvoid:
    """What the jobs of a session are to avoid now."""
    at = now()
    return ToAvoid(session.excluded.current(at), session.sick_nodes(at), session.experiment.nodes)


class Avoidance(NamedTuple):
    """Exclude nodes for jobs that wait in the queue."""

    refs: tuple[AttemptRef, ...]
    nodes: ToAvoid
    machine: LocalMachine | SlurmCluster

    @property
    def title(self) -> str:
        return "avoid nodes"

    def run(self, scheduler: Scheduler) -> None:
        if names := self.nodes.names(self.machine):
            scheduler.avoid(self.refs, names)


def avoidance(session: Session) -> Avoidance | None:
    """What tells SLURM of the nodes that queued jobs are to avoid; None: there is nothing to do."""
    nodes = to_avoid(session)
    refs = queued(session)
    if not refs or not (nodes.named or nodes.sick or nodes.policy):
        return None
    return Avoidance(refs, nodes, session.experiment.slurm)


def queued(session: Session) -> tuple[AttemptRef, ...]:
    """The attempts of a session that wait in the queue."""
    return tuple(
        session.ref(attempt)
        for job in session.jobs.values()
        for attempt in job.open_attempts
        if attempt.job_id is not None and attempt.state == "PENDING"
    )


class Listing(NamedTuple):
    """Add sick nodes to the list that sessions share, each once."""

    path: Path
    entries: tuple[Avoided, ...]
    most: int

    @property
    def title(self) -> str:
        return f"list {', '.join(entry.node for entry in self.entries)}"

    def run(self, scheduler: Scheduler) -> str:
        """Append what is not there yet; returns what came of it."""
        del scheduler
        listed = AvoidList(self.path)
        there = {e.node for e in listed.current(now()) if e.source == "check"}
        free = max(0, self.most - len(there))
        fresh = [entry for entry in self.entries if entry.node not in there]
        listed.add([*(e for e in self.entries if e.node in there), *fresh[:free]])
        if left := [entry.node for entry in fresh[free:]]:
            refused = (
                f"{', '.join(left)} not added to {self.path}: {len(there)} nodes are in it because "
                f"checks said so, and nodes.most is {self.most}"
            )
            _log.warning("%s", refused)
            return refused
        return f"{', '.join(entry.node for entry in self.entries)}: in {self.path}"


def listing(session: Session, key: str) -> Listing | None:
    """The entries for an event's sick nodes; None where the session names no list."""
    policy, event = session.experiment.nodes, session.actions[key].event
    if policy is None or policy.avoid_file is None or not isinstance(event, NodesFoundSick):
        return None
    folder = session.path / "attempts" / event.key_of_attempt / "check"
    until = now() + timedelta(seconds=policy.expires)
    entries = tuple(
        Avoided(
            id=f"{event.key_of_attempt}/{node}",
            node=node,
            until=until,
            why=why[:200],
            evidence=str(folder),
            by=user(),
            source="check",
        )
        for node, why in event.nodes.items()
    )
    return Listing(Path(policy.avoid_file), entries, policy.most)
