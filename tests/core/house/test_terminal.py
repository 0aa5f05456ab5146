"""Nothing that comes from outside steers a terminal, or what reads a flow run's log."""

import ast
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp import sinks
from tests.sources import MODULES, name_of

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\u202ec\rd[bold]e[/bold]:smile:"
PLAIN = "ared\\x9b2J\\u202ec\\x0dd[bold]e[/bold]:smile:"
# These print into the log of their own job, in a process of their own, or a constant.
JOBS = {
    *("payload.py", "__main__.py", "demo/checkpoints.py", "demo/convert.py", "demo/evaluate.py"),
    *("backends/merge.py", "demo/merge.py", "resources/copies.py", "nodes/check.py"),
}


def _writes(path: Path) -> Iterator[str]:
    """Whatever in a module writes to a terminal by itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Name("print" | "input" | "Console" as name)):
                yield f"{path.name}:{node.lineno} {name}"
            case ast.Attribute(
                value=ast.Attribute(ast.Name("sys"), "stdout" | "stderr"),
                attr="write" | "writelines" | "buffer" as name,
            ):
                yield f"{path.name}:{node.lineno} {name}"
            case ast.ImportFrom(module="rich", names=[*_, ast.alias("print")]):
                yield f"{path.name}:{node.lineno} rich.print"


def test_everything_that_is_printed_goes_through_one_module() -> None:
    found = [
        said
        for path in MODULES
        if not name_of(path).startswith("bench/")
        and name_of(path).removeprefix("autoexp/") not in {*JOBS, "reports/terminal.py"}
        for said in _writes(path)
    ]
    assert found == []


@pytest.fixture
def records() -> Iterator[tuple[logging.Logger, list[str]]]:
    log, handler, said = logging.getLogger("test of plain lines"), logging.Handler(), list[str]()
    handler.emit = lambda record: said.append(handler.format(record))  # type: ignore[method-assign]
    log.propagate = False
    log.addFilter(sinks.LINES)
    log.addFilter(sinks.LINES)
    log.addHandler(handler)
    yield log, said
    log.removeHandler(handler)


def test_a_runs_log_has_no_escape_in_messages_arguments_and_tracebacks(
    records: tuple[logging.Logger, list[str]],
) -> None:
    log, said = records
    log.warning("%s and %d", HOSTILE, 3)
    log.warning("100% of %s", "it")  # fits no arguments, and ends nobody
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("broken")
    assert said[0] == f"{PLAIN} and 3"
    assert said[1] == "100% of %s ('it',)"
    assert said[2].startswith("broken\nTraceback") and said[2].endswith(f"ValueError: {PLAIN}")
    assert len(log.filters) == 1
