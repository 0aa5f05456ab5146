"""The nodes that are avoided: since when, until when, why, by whose word."""

from pathlib import Path

from pydantic import BaseModel
from rich.table import Table

from autoexp import sinks
from autoexp.errors import BadInput
from autoexp.model import now
from autoexp.nodes.avoid_list import Avoided, AvoidList


class NodeList(BaseModel):
    """`autoexp nodes list --json`."""

    file: str
    nodes: list[Avoided]


def node_list(path: Path) -> NodeList:
    """The nodes that count now; raises BadInput for a file that cannot be read."""
    try:
        found = AvoidList(path).current(now())
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror or error}") from error
    return NodeList(file=str(path), nodes=found)


def node_table(found: NodeList) -> Table:
    """A line for each entry; what others wrote is cleaned."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("node", "since", "until"):
        table.add_column(name, no_wrap=True)
    for name in ("why", "by", "evidence"):
        table.add_column(name)
    for entry in found.nodes:
        since, until = (f"{at.astimezone():%Y-%m-%d %H:%M}" for at in (entry.added, entry.until))
        by = f"{entry.by} (check)" if entry.source == "check" else entry.by
        cells = (entry.node, since, until, entry.why, by, entry.evidence)
        table.add_row(*(sinks.line(cell) for cell in cells))
    return table
