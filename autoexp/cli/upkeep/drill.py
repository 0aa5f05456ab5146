"""`autoexp drill`: the demo's training on a cluster, disturbed on purpose, and what held."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from autoexp.cli import options
from autoexp.cli import plan as planning
from autoexp.storage.places import sessions_root

if TYPE_CHECKING:
    from rich.table import Table

    from autoexp.config.compose import Composed
    from autoexp.operations.drill.judgement import Outcome

_WIDTH = 80
_ENDS = (signal.SIGTERM, signal.SIGHUP)

_Overrides = Annotated[
    list[str] | None,
    options.argument("OVERRIDE", "Overrides such as slurm=lumi slurm.account=project_123."),
]


def drill(overrides: _Overrides = None, as_json: options.AsJson = False) -> int:
    """Train the demo on a cluster, kill what can be killed, and show what held.

    Kills of the monitor, of the training's step and of its job, an outage of Prefect's server, a
    full budget, a full disk, a node that counts as sick. It takes some minutes of two nodes, in a
    session of its own. The exit code is 0 only if all held that can be tried there.

    \b
    Examples:
      autoexp drill slurm=lumi
      autoexp drill slurm=local
    """
    from autoexp.model import now
    from autoexp.operations.drill import cluster, setting
    from autoexp.operations.drill.exercises import conduct
    from autoexp.operations.drill.judgement import Outcome, all_held, lines
    from autoexp.reports.terminal import console, say, say_json
    from autoexp.session.create import create, plan_of
    from autoexp.session.meta import new_id
    from autoexp.session.provenance import provenance

    words = list(overrides or [])
    setting.refuse(words)
    name = new_id(setting.CONFIG)
    path = sessions_root().absolute() / name
    machine = _composed(words, path, pretends=False).experiment.slurm
    blocked = setting.not_possible(machine, cluster.usable_nodes(machine))
    composed = _composed(words, path, pretends=setting.SICK_NODE not in blocked)
    plan = plan_of(composed, name)
    setting.refuse_plan(plan)
    planning.ask_slurm(plan)
    with _interrupted_by_signals(), _prefect_home() as home:
        began = now()
        create(composed, plan, path.parent, session_id=name, provenance=provenance())
        done = conduct(path, Path(home), blocked, lambda text: say(text, error=True))
    table = lines(done.trials, blocked, done.records, done.stopped)
    outcome = Outcome(
        session=name,
        path=str(path),
        site=composed.origins.chosen("slurm") if composed.origins else "",
        began=began,
        ended=now(),
        all_held=all_held(table, blocked),
        lines=table,
    )
    if as_json:
        say_json(outcome.model_dump(mode="json"))
    else:
        out = console()
        out.width = min(out.width, _WIDTH)
        out.print(drill_table(outcome))
        out.print(f"session: {path}", soft_wrap=True)
    return int(not outcome.all_held)


def _composed(words: list[str], path: Path, *, pretends: bool) -> "Composed":
    """The drill's experiment; raises BadInput."""
    from autoexp.config.compose import compose
    from autoexp.flows.engine.compose import filling_in
    from autoexp.operations.drill import setting

    blocks = filling_in()

    def fill_in(values: dict[str, Any]) -> dict[str, Any]:
        return setting.fill_in(blocks(values), path, pretends=pretends)

    return compose(setting.CONFIG, words, fill_in)


def _prefect_home() -> "tempfile.TemporaryDirectory[str]":
    """A directory on this host's own disk, where Prefect's database has its locks."""
    return tempfile.TemporaryDirectory(prefix="autoexp-drill-", ignore_cleanup_errors=True)


def drill_table(outcome: "Outcome") -> "Table":
    """The table of what held."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("exercise", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("s", no_wrap=True, justify="right")
    table.add_column("done, seen")
    for line in outcome.lines:
        took = "" if line.seconds is None else f"{line.seconds:.0f}"
        text = f"{line.did}: {line.seen}" if line.did else line.seen
        table.add_row(line.exercise, line.result, took, text)
    return table


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Have a `kill` and a lost terminal end it as Ctrl-C does: with its jobs cancelled."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
