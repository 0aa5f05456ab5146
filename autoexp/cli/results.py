"""`autoexp export`, `compare`, `plot` and `report`: the results of sessions."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.reports.plot import Options
    from autoexp.session.session import Session


def export(
    sessions: options.AnySessions = None,
    output: Annotated[
        list[str] | None,
        options.option(
            "--output",
            "-o",
            metavar="FILE",
            text="A .csv or .parquet file, may be given several times; CSV on the terminal by "
            "default.",
        ),
    ] = None,
    tensorboard: Annotated[
        str | None,
        options.option("--tensorboard", metavar="DIR", text="Loss curves as event files."),
    ] = None,
) -> int:
    """Write a row per job: settings, losses, scores, hours.

    \b
    Examples:
      autoexp export study-1a2b > study.csv
      autoexp export study-1a2b study-3c4d -o study.parquet
    """
    from autoexp.reports import export as tables
    from autoexp.reports import results
    from autoexp.reports.terminal import say

    opened = _opened(sessions or [None])
    found = results.rows(opened)
    for name in output or []:
        tables.write(found, Path(name))
        say(f"{len(found)} rows: {name}", error=True)
    if tensorboard:
        from autoexp.reports.tensorboard import write_events

        folders = write_events(opened, Path(tensorboard))
        say(f"{len(folders)} curves: {tensorboard}", error=True)
    elif not output:
        say(tables.as_csv(found).removesuffix("\n"))
    return 0


def compare(sessions: options.AnySessions = None, as_json: options.AsJson = False) -> int:
    """Print settings that differ, and final losses.

    \b
    Example:
      autoexp compare study-1a2b
    """
    from autoexp.reports import results
    from autoexp.reports.tables import NumberTable
    from autoexp.reports.terminal import console, say_json

    found = results.compared(_opened(sessions or [None]))
    if as_json:
        say_json(found)
        return 0
    if not found:
        raise BadInput("no training in these sessions, so there is nothing to compare")
    columns = list(dict.fromkeys(key for row in found for key in row))
    if len(sessions or [None]) == 1:
        columns.remove("session")
    headings = [name.removeprefix("backend.args.") for name in columns]
    rows = [[_cell(row.get(name)) for name in columns] for row in found]
    out = console()
    out.width = max(out.width, 400) if not out.is_terminal else out.width
    out.print(NumberTable(headings, rows, left=len(columns)))
    return 0


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def plot(
    sessions: options.AnySessions = None,
    output: Annotated[
        str | None,
        options.option(
            "--output",
            "-o",
            metavar="FILE",
            text="A .png, .pdf or .svg file; plot.png in the session by default.",
        ),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Over tokens, instead of iterations.")
    ] = False,
    smooth: Annotated[
        int | None,
        typer.Option(
            "--smooth",
            metavar="POINTS",
            min=1,
            help="Logged points that the line is a mean of; 1: the loss as it was logged.",
        ),
    ] = None,
    no_title: Annotated[bool, typer.Option("--no-title", help="Without a title.")] = False,
    score: Annotated[
        str | None,
        options.option(
            "--score",
            metavar="TASK/METRIC",
            text="A score over the checkpoints instead; score.png in the session by default.",
        ),
    ] = None,
) -> int:
    """Draw loss curves, or a score, of several sessions together.

    \b
    Examples:
      autoexp plot
      autoexp plot study-1a2b --score hellaswag/acc
      autoexp plot study-1a2b -o study.pdf --tokens --no-title
      autoexp plot demo-1a2b demo-3c4d -o both.png
    """
    from autoexp.reports import curves
    from autoexp.reports.plot import Options, Subject, draw
    from autoexp.reports.tables import gains_lines, merges_lines
    from autoexp.reports.terminal import say

    opened = _opened(sessions or [None])
    path = Path(output).absolute() if output else None
    wanted = Options(tokens=tokens, smooth=smooth, title=not no_title)
    if score is not None:
        return _plot_score(opened, score, path, wanted)
    drawn = draw(*map(Subject.of, opened), path=path, options=wanted)
    if drawn is None:
        raise BadInput("no loss has been logged yet, so there is nothing to plot")
    say(drawn)
    for session in opened:
        for line in gains_lines(curves.gains(session), curves.without_seen_start(session)):
            say(line)
        for line in merges_lines(curves.merges(session)):
            say(line)
    return 0


def _plot_score(
    sessions: "Sequence[Session]", score: str, path: Path | None, options: "Options"
) -> int:
    from autoexp.reports.plot import Subject
    from autoexp.reports.terminal import say
    from autoexp.science.score_plot import Scored, draw_scores
    from autoexp.science.trajectory import trajectory

    if options.smooth is not None:
        raise BadInput("--score or --smooth: one of them")
    found = [Scored(Subject.of(session), trajectory(session, score)) for session in sessions]
    say(draw_scores(found, path, options))
    for each in found:
        for line in each.trajectory.lines(each.session.id):
            say(line)
    return 0


def report(
    name: options.AnySession = None,
    output: Annotated[
        str | None,
        options.option(
            "--output", "-o", metavar="HTML", text="report.html in the session by default."
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Serve it on 127.0.0.1, until Ctrl-C; it stays current.")
    ] = False,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Of --live; a free one by default.")
    ] = 0,
) -> int:
    """Write a session as one web page: what was asked, curves, results, events, provenance.

    The file needs no network, and can be sent to anybody.

    \b
    Examples:
      autoexp report
      autoexp report demo-1a2b -o demo.html
      autoexp report demo-1a2b --live
    """
    from autoexp.reports.html.page import page
    from autoexp.reports.terminal import say
    from autoexp.session.find import own_session_path, session_path
    from autoexp.session.session import Session
    from autoexp.storage import atomic

    if live and output:
        raise BadInput("--live or --output: one of them")
    if live:
        return _serve(session_path(name), port)
    # Of another user's session a page can be made, but not into it.
    path = session_path(name) if output else own_session_path(name)
    target = Path(output).absolute() if output else path / "report.html"
    atomic.write(target, page(Session.load(path)), by_umask=output is not None)
    say(target)
    return 0


def _serve(path: Path, port: int) -> int:
    from autoexp.reports.html.server import ReportServer
    from autoexp.reports.terminal import say

    with ReportServer(path, port) as server:
        say(f"{server.url}  (whoever has this address can read it; Ctrl-C ends it)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")
    return 0


def fit(
    sessions: options.AnySessions = None,
    predict: Annotated[
        list[str] | None,
        options.option("--predict", metavar="N=..,D=..", text="The loss of another model."),
    ] = None,
    output: Annotated[
        str | None,
        options.option("--output", "-o", metavar="FILE", text="Picture: .png, .pdf or .svg."),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Fit a scaling law through the ends of cooldowns: L(N, D) = E + A/N^alpha + B/D^beta.

    \b
    Examples:
      autoexp fit
      autoexp fit ladder-1a2b -o law.png
      autoexp fit ladder-1a2b --predict N=1.4B,D=30B --json
    """
    from autoexp.reports.terminal import say, say_json
    from autoexp.science import law
    from autoexp.science.branches import ends_of

    if output:  # said before the fit, which takes long
        from autoexp.reports.plot import format_of

        format_of(Path(output))
    wanted = [_model(text) for text in predict or []]
    opened = _opened(sessions or [None])
    ends = ends_of(opened)
    try:
        found = law.fit(ends.runs)
    except BadInput as error:
        why = "".join(f"\n  left out: {each.name}: {each.reason}" for each in ends.left_out)
        raise BadInput(f"{error}{why}") from error
    if output:
        from autoexp.science.law_plot import draw_law

        title = f"{', '.join(session.id for session in opened)}: {len(found.runs)} cooldowns"
        draw_law(found, title, Path(output).absolute())
    predictions = [(n, d, found.predict(n, d)) for n, d in wanted]
    if as_json:
        say_json(
            {
                "measured": ends.measured,
                "law": {name: each._asdict() for name, each in found.intervals.items()},
                "covered": law.COVERED,
                "runs": [
                    {**run._asdict(), "residual": left}
                    for run, left in zip(found.runs, found.residuals, strict=True)
                ],
                "left_out": [each._asdict() for each in ends.left_out],
                "predictions": [
                    {"parameters": n, "tokens": d, **loss._asdict()} for n, d, loss in predictions
                ],
            }
        )
        return 0
    say(f"L(N, D) = E + A/N^alpha + B/D^beta, {ends.measured.replace('_', ' ')}, "
        f"{len(found.runs)} cooldowns, {law.COVERED:.0%} intervals")  # fmt: skip
    for name, each in found.intervals.items():
        say(f"  {name:5}  {each.value:<10.4g}  {each.low:.4g} to {each.high:.4g}")
    worst = max(found.residuals, key=abs)
    say(f"  largest residual: {worst:+.2%}")
    for left in ends.left_out:
        say(f"left out: {left.name}: {left.reason}")
    for n, d, loss in predictions:
        say(f"N={n:g}, D={d:g}: loss {loss.value:.4f}, {loss.low:.4f} to {loss.high:.4f}")
    if output:
        say(f"plot: {output}")
    return 0


def _model(text: str) -> tuple[float, float]:
    """The size and the tokens of `N=1.4B,D=30B`."""
    from autoexp.config.quantities import read_quantity

    parts = dict(part.strip().partition("=")[::2] for part in text.split(","))
    try:
        if sorted(parts) != ["D", "N"]:
            raise ValueError
        n, d = (read_quantity(parts[key].strip(), "tokens")["amount"] for key in ("N", "D"))
    except ValueError as error:
        raise BadInput(f"--predict {text}: write it as N=1.4B,D=30B") from error
    if not n or not d:
        raise BadInput(f"--predict {text}: both have to be above 0")
    return float(n), float(d)


def _opened(names: Sequence[str | None]) -> "list[Session]":
    from autoexp.session.find import session_path
    from autoexp.session.session import Session

    return [Session.load(session_path(name)) for name in names]
