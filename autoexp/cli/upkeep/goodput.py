"""`autoexp goodput`: where the hours went."""

from autoexp.cli import options


def goodput(sessions: options.AnySessions = None, as_json: options.AsJson = False) -> int:
    """Show where the hours went: new iterations, done twice, start-up, saving, slow, queueing.

    \b
    Examples:
      autoexp goodput demo-1a2b
      autoexp goodput demo-1a2b demo-3c4d --json
    """
    from autoexp.reports.terminal import console, say, say_json
    from autoexp.reports.upkeep import goodput as hours
    from autoexp.session.find import session_path
    from autoexp.session.session import Session

    names: list[str | None] = list(sessions) if sessions else [None]
    opened = [Session.load(session_path(name)) for name in names]
    rows = [row for one in opened for row in hours.with_energy(one, hours.goodput([one]))]
    if as_json:
        say_json([row.model_dump(mode="json") for row in rows])
        return 0
    if not rows:
        say("no job has started yet")
        return 0
    out = console()
    out.width = max(out.width, 160) if not out.is_terminal else out.width
    out.print(hours.goodput_table(rows))
    if not hours.is_energy_known(rows):
        say(hours.NOT_MEASURED)
    return 0
