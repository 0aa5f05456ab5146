"""`python -m bench [CASE ...]`: run benchmarks and print a table of what they found."""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.cases import whole
from bench.world.measure import RESULTS, save

CASES = {
    "idle": "bench.cases.core_tick:idle",
    "busy": "bench.cases.core_tick:busy",
    "engine": "bench.cases.flow_tick:engine",
    "scan": "bench.cases.log_rules:scan",
    "first_look": "bench.cases.session_disk:first_look",
    "loading": "bench.cases.session_disk:loading",
    "large": "bench.cases.large_session:large_session",
    "session_io": "bench.cases.session_disk:session_io",
    "scheduler": "bench.cases.scheduler_queries:scheduler",
    "reaction": "bench.cases.served:reaction",
    "blocking": "bench.cases.served:blocking",
    "prefect": "bench.cases.served:prefect",
    "burst": "bench.cases.served:burst",
    "memory": "bench.cases.memory:memory",
    "start": "bench.cases.cli_start:start",
    "whole": "bench.cases.whole:whole",
    "many": "bench.cases.whole:many",
}
"""The cases by name, each with the function that measures it."""
_LONG = {"whole", "many"}
"""Cases that take real minutes: measured when they are named."""


def main() -> int:
    """Run the named cases, or all; returns 1 when one of them broke."""
    options = _options()
    if len(options.cases) == 1:
        _measure(options.cases[0])
        broken = []
    else:
        broken = [name for name in options.cases if not _measured_apart(name)]
    out = Console(width=None if sys.stdout.isatty() else 150)
    out.print(_table([name for name in options.cases if name not in broken]))
    for name in broken:
        out.print(f"{name}: crashed, see above", style="red")
    return 1 if broken else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)}")
    parser.add_argument(
        "--seconds", type=float, help="how long `whole` measures (600); shorter for a try"
    )
    options = parser.parse_args()
    unknown = [name for name in options.cases if name not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; there are: {', '.join(CASES)}")
    options.cases = options.cases or [name for name in CASES if name not in _LONG]
    if options.seconds is not None:
        os.environ[whole.SECONDS] = str(options.seconds)
    return options


def _measure(name: str) -> None:
    module, _, function = CASES[name].partition(":")
    before = os.getloadavg()[0]
    figures = getattr(importlib.import_module(module), function)()
    save(name, figures, (before, os.getloadavg()[0]))


def _measured_apart(name: str) -> bool:
    """Measure in a process of its own: what one case leaves behind is not another's."""
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "bench", name], stdout=subprocess.DEVNULL)
    print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True)
    return done.returncode == 0


def _table(names: list[str]) -> Table:
    table = Table("case", "measured", "median", "spread", "mark", "")
    for name in names:
        content = json.loads((RESULTS / f"{name}.json").read_text())
        for number, figure in enumerate(content["figures"]):
            table.add_row(*_row(name if number == 0 else "", figure))
    return table


def _row(name: str, figure: dict[str, Any]) -> tuple[str, ...]:
    values, unit = figure["repeats"], figure["unit"]
    spread = f"{min(values):.3g} to {max(values):.3g}" if len(values) > 1 else ""
    mark = ""
    if figure["at_most"] is not None:
        mark = f"at most {figure['at_most']:.4g} {unit}"
    if figure["at_least"] is not None:
        mark = f"at least {figure['at_least']:g} {unit}"
    colour = {"met": "green", "missed": "red", "": "default"}[figure["verdict"]]
    verdict = f"[{colour}]{figure['verdict']}[/{colour}]" if figure["verdict"] else figure["note"]
    return name, figure["what"], f"{figure['median']:.4g} {unit}", spread, mark, verdict


if __name__ == "__main__":
    raise SystemExit(main())
