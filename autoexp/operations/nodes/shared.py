"""The shared list, changed by a person: queued jobs of sessions that name it are told as well."""

import secrets
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path

from autoexp import sinks
from autoexp.errors import AutoexpError, BadInput
from autoexp.model import now
from autoexp.nodes.avoid_list import Avoided, AvoidList, user
from autoexp.operations.nodes.avoidance import queued, to_avoid
from autoexp.schedulers.registry import scheduler_for
from autoexp.session.find import session_paths
from autoexp.session.session import Session


def add(path: Path, nodes: Sequence[str], why: str, expires_s: float) -> list[str]:
    """Add nodes to the list and tell queued jobs; returns a line for each thing that was done.

    Raises BadInput for a file that cannot be written, and SessionError for no name of a node.
    """
    until = now() + timedelta(seconds=expires_s)
    # Each addition is one of its own: it prolongs an earlier one, or comes after a removal.
    added = [
        Avoided(
            id=f"{user()}/{secrets.token_hex(6)}/{node}",
            node=node,
            until=until,
            why=why[:200],
            by=user(),
            source="person",
        )
        for node in dict.fromkeys(nodes)
    ]
    try:
        AvoidList(path).add(added)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error
    named = ", ".join(entry.node for entry in added)
    return [f"{named}: avoided until {until.astimezone():%Y-%m-%d %H:%M}", *_tell(path)]


def remove(path: Path, nodes: Sequence[str]) -> list[str]:
    """Remove nodes from the list; raises BadInput for nodes that are not in it."""
    try:
        gone = AvoidList(path).remove(nodes)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error
    if unknown := [node for node in nodes if node not in gone]:
        raise BadInput(f"{path}: {', '.join(map(sinks.line, unknown))} not in it")
    return [f"{', '.join(gone)}: avoided no longer", *_tell(path)]


def _tell(path: Path) -> Iterator[str]:
    """Tell SLURM of the list for queued jobs of sessions that name it; a line for each session."""
    for place in session_paths():
        try:
            session = Session.load(place)
            policy, refs = session.experiment.nodes, queued(session)
            if policy is None or policy.avoid_file != str(path) or not refs:
                continue
            names = to_avoid(session).names(session.experiment.slurm)
            scheduler_for(session.experiment).avoid(refs, names)
        except (AutoexpError, OSError) as error:
            yield f"{place.name}: its queued jobs were not told: {error}"
        else:
            yield f"{session.id}: {len(refs)} queued jobs were told"
