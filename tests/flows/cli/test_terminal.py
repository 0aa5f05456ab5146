"""What the one module that writes to terminals lets through."""

import io
import json
import sys

import pytest
from rich.console import Console
from rich.control import Control
from rich.table import Table
from rich.text import Text

from autoexp.cli import main, requests
from autoexp.errors import BadInput
from autoexp.reports import terminal

HOSTILE = "a\x1b[31mred\x1b]0;title\x07\x9b2J\u202ec\rd[bold]e[/bold]:smile:"
PLAIN = "ared\\x9b2J\\u202ec\\x0dd[bold]e[/bold]:smile:"


def test_what_is_said_has_no_escape_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.say(HOSTILE)
    terminal.say(HOSTILE, error=True)
    terminal.say_json([HOSTILE])
    said = capsys.readouterr()
    assert said.err == f"{PLAIN}\n"
    assert said.out.startswith(f"{PLAIN}\n") and said.out.isascii() and "\x1b" not in said.out
    assert json.loads(said.out.removeprefix(f"{PLAIN}\n")) == [HOSTILE]


def test_a_log_is_printed_without_what_steers_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = b"\x1b[32mloss\x1b[0m: 1\t2\r\n10%\r20%\x1b[2J\xff\x9b\0end \xc3\xa9"
    assert terminal.say_log(data.splitlines(keepends=True)) == len(data)
    assert capsys.readouterr().out == "loss: 1\t2\n10%\n20%��\nend é"


def test_a_console_shows_text_as_it_is_and_colours_of_our_own() -> None:
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    file = io.StringIO()
    out = terminal.canvas(file, 200, colours=True)
    for shown in (HOSTILE, Text(HOSTILE, "red"), table):
        out.print(shown)
    said = file.getvalue()
    assert said.count(PLAIN) == 3 and said.count("[bold]") == 4
    assert said.count("\x1b[31m") == 1 and "\x1b]" not in said  # the one that is ours
    assert not {"\x07", "\r", "\x9b", "\u202e"} & set(said)


def test_a_live_table_still_moves_the_cursor() -> None:
    file = io.StringIO()
    terminal.canvas(file, 80, colours=True).print(Control.home(), end="")
    assert file.getvalue() == _as_rich_does()


def _as_rich_does() -> str:
    file = io.StringIO()
    Console(file=file, force_terminal=True).print(Control.home(), end="")
    return file.getvalue()


def test_an_error_and_what_breaks_are_told_in_plain_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> int:
        raise BadInput(HOSTILE)

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(requests, "retry", fail)
    assert main.main(["retry", "s"]) == 2
    assert capsys.readouterr().err == f"autoexp: {PLAIN}\n"
    error = ValueError(HOSTILE)
    sys.excepthook(ValueError, error, None)
    assert capsys.readouterr().err == f"ValueError: {PLAIN}\n"


def test_a_pipe_gets_no_padding(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(box=None)
    for name in ("job", "note"):
        table.add_column(name)
    table.add_row("a", "")
    table.add_row("longer", "x")
    terminal.console().print(table)
    said = capsys.readouterr().out
    assert "longer" in said and not [line for line in said.splitlines() if line != line.rstrip()]
