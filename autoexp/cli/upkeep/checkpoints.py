"""`autoexp checkpoints`: what is there, how large, kept why, deleted when."""

from autoexp.cli import options


def checkpoints(name: options.AnySession = None, as_json: options.AsJson = False) -> int:
    """List checkpoints: how large, kept why, deleted when.

    \b
    Example:
      autoexp checkpoints demo-1a2b
    """
    from autoexp.reports.terminal import console, say, say_json
    from autoexp.reports.upkeep.checkpoints import (
        checkpoint_list,
        checkpoint_table,
        summary_lines,
    )
    from autoexp.session.find import session_path
    from autoexp.session.session import Session

    found = checkpoint_list(Session.load(session_path(name)))
    if as_json:
        say_json(found.model_dump(mode="json"))
        return 0
    if found.checkpoints:
        console().print(checkpoint_table(found))
    for line in summary_lines(found):
        say(line)
    return 0
