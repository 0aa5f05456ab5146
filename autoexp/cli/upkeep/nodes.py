"""`autoexp nodes`: the shared list of nodes that are avoided."""

from pathlib import Path
from typing import Annotated

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

_File = Annotated[
    Path | None,
    typer.Option(
        "--file", metavar="FILE", help="The list, nodes.avoid_file; $AUTOEXP_AVOID_FILE by default."
    ),
]
_OfSession = Annotated[
    str | None,
    options.option(
        "--session",
        metavar="SESSION",
        text="The list that this session names.",
        completion=options.session_ids,
    ),
]
_Nodes = Annotated[list[str], options.argument("NODE", "Their names, as SLURM has them.")]


def _path(file: Path | None, session: str | None) -> Path:
    """The list's file; raises BadInput where nothing names one."""
    import os

    if file is not None:
        return file.absolute()
    if session is not None:
        from autoexp.session.find import session_path
        from autoexp.session.session import Session

        policy = Session.part(session_path(session), [], []).experiment.nodes
        if policy is None or policy.avoid_file is None:
            raise BadInput(f"{session} names no list: see nodes.avoid_file")
        return Path(policy.avoid_file)
    if named := os.environ.get("AUTOEXP_AVOID_FILE"):
        return Path(named).absolute()
    raise BadInput("which list? give --file FILE, --session SESSION, or set $AUTOEXP_AVOID_FILE")


def nodes_list(
    file: _File = None, session: _OfSession = None, as_json: options.AsJson = False
) -> int:
    """List the nodes that are avoided: since when, until when, why, by whose word.

    \b
    Examples:
      autoexp nodes list --session demo-1a2b
      autoexp nodes list --file /proj/team/avoided-nodes.jsonl --json
    """
    from autoexp.reports.terminal import console, say, say_json
    from autoexp.reports.upkeep.nodes import node_list, node_table

    found = node_list(_path(file, session))
    if as_json:
        say_json(found.model_dump(mode="json"))
    elif found.nodes:
        console().print(node_table(found))
    else:
        say(f"{found.file}: no node is avoided")
    return 0


def nodes_add(
    nodes: _Nodes,
    why: Annotated[str, options.option("--why", metavar="TEXT", text="The reason.")],
    expires: Annotated[
        str, options.option("--expires", metavar="TIME", text="For how long: 12h, 7d (default).")
    ] = "7d",
    file: _File = None,
    session: _OfSession = None,
    as_json: options.AsJson = False,
) -> int:
    """Have all sessions that name the list avoid nodes, their queued jobs as well.

    \b
    Example:
      autoexp nodes add n17 n18 --why "ticket 4711" --expires 14d --session demo-1a2b
    """
    from pydantic import TypeAdapter, ValidationError

    from autoexp.model import first_problem
    from autoexp.operations.nodes.shared import add
    from autoexp.rules.durations import Duration

    try:
        seconds: float = TypeAdapter(Duration).validate_python(expires)
    except ValidationError as error:
        raise BadInput(f"--expires {expires}: {first_problem(error)}") from error
    return _said(_path(file, session), add(_path(file, session), nodes, why, seconds), as_json)


def nodes_remove(
    nodes: _Nodes, file: _File = None, session: _OfSession = None, as_json: options.AsJson = False
) -> int:
    """Have nodes avoided no longer.

    \b
    Example:
      autoexp nodes remove n17 --session demo-1a2b
    """
    from autoexp.operations.nodes.shared import remove

    return _said(_path(file, session), remove(_path(file, session), nodes), as_json)


def _said(path: Path, lines: list[str], as_json: bool) -> int:
    from autoexp.reports.terminal import say, say_json
    from autoexp.reports.upkeep.nodes import node_list

    if as_json:
        say_json(node_list(path).model_dump(mode="json"))
    for line in () if as_json else lines:
        say(line)
    return 0
