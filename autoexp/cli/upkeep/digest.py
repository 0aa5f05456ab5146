"""`autoexp digest`: what happened lately, for a chat."""

from typing import Annotated

from autoexp.cli import options
from autoexp.errors import BadInput


def digest(
    sessions: Annotated[
        list[str] | None,
        options.argument(
            "SESSION", "Their ids, or directories; all by default.", options.session_ids
        ),
    ] = None,
    since: Annotated[
        str, options.option("--since", metavar="TIME", text="How far back: 12h, 7d (the default).")
    ] = "7d",
) -> int:
    """Say in Markdown what happened lately, for a chat: what runs, what failed, what it took.

    \b
    Examples:
      autoexp digest
      autoexp digest demo-1a2b --since 24h
    """
    from pydantic import TypeAdapter, ValidationError

    from autoexp.model import first_problem, now
    from autoexp.reports.terminal import say
    from autoexp.reports.upkeep.digest import digest as written
    from autoexp.rules.durations import Duration
    from autoexp.session.find import session_path, session_paths
    from autoexp.session.session import Session

    try:
        seconds: float = TypeAdapter(Duration).validate_python(since)
    except ValidationError as error:
        raise BadInput(f"--since {since}: {first_problem(error)}") from error
    paths = [session_path(name) for name in sessions] if sessions else session_paths()
    say(written([Session.load(path) for path in paths], seconds, now()))
    return 0
