"""Commands on a session of ten thousand jobs: the first that reads it, and those that follow."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from bench.world import yardstick
from bench.world.large import large
from bench.world.measure import Figure
from bench.world.yardstick import children_cpu_s

JOBS, EVENTS = 10_000, 100_000
_REPEATS = 5
_COMPLETE = {
    "_AUTOEXP_COMPLETE": "complete_bash",
    "COMP_WORDS": "autoexp explain big f00",
    "COMP_CWORD": "3",
}
_COMMANDS: list[tuple[str, list[str], float | None]] = [
    ("status", ["status", "big"], 0.3),
    ("explain", ["explain", "big", "f00007-cd3"], 0.5),
    ("events -n 100", ["events", "big", "-n", "100"], 0.5),
    ("events --job", ["events", "big", "--job", "f00007-cd3"], 0.5),
    ("completion of a job", [], 0.5),
    ("status --json: all jobs", ["status", "big", "--json"], None),
    ("events: all of them", ["events", "big"], None),
]


def large_session() -> list[Figure]:
    """Seconds of CPU of commands, whatever runs beside them; no command waits for anything."""
    with tempfile.TemporaryDirectory() as folder:
        large(Path(folder), JOBS, EVENTS)
        environment = {**os.environ, "AUTOEXP_SESSIONS": folder}
        firsts = [
            Figure(f"the first {what}, without an index", "s", [_cpu_s(words, environment)])
            for what, words in (("status", ["status", "big"]), ("explain", _COMMANDS[1][1]))
        ]
        scale = yardstick.scale()
        figures = []
        for what, words, mark in _COMMANDS:
            repeats = 1 if what.startswith("events:") else _REPEATS
            values = [_cpu_s(words, environment) for _ in range(repeats)]
            figures.append(Figure(what, "s", values, below=mark, scale=scale))
    return figures + firsts


def _cpu_s(words: list[str], environment: dict[str, str]) -> float:
    command = [sys.executable, "-m", "autoexp", *words]
    if not words:
        environment = {**environment, **_COMPLETE}
    run = partial(subprocess.run, command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return children_cpu_s(run)
