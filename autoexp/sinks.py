"""Makes data from outside safe for its destination: one function for each kind of sink.

Data is text from a log, a scheduler's answer, a file name, or a request. Whoever
passes it on uses the function of the sink; docs/security.md has the table, which a test checks.
The sink of a file to write is `write_targets.path_below`, the one of a command to run `arguments`.
"""

import csv
import html
import io
import json
import logging
import re
import traceback
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from autoexp.errors import AutoexpError, SessionError
from autoexp.logs.lines import without_escapes
from autoexp.logs.numbers import is_number
from autoexp.templates import fill, names_in

_LONGEST_TEXT = 100_000  # bytes of one argument or variable: Linux takes 128 KiB (MAX_ARG_STRLEN)
_LONGEST_TITLE = 80
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}")
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode classes of characters that control a terminal, turn the direction of writing, or are not
seen: C0 and C1 controls, formats (bidi controls, joiners), halves of pairs, separators of lines."""
_ASCII_CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
# Markdown's special characters, with GitHub's tables, strikes and bare links.
_MARKDOWN = re.compile(r"[\\`*_{}\[\]<>|#!~$&]|(?<=[\w.+-])@|:(?=/)|(?i:(?<=\bwww))\.")
_ENTITIES = {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}


def terminal(text: str) -> str:
    """Text for a terminal, without escape or control characters except newlines and tabs.

    C1 and bidi controls are shown escaped; colours are left out.
    """
    if text.isascii() and not _ASCII_CONTROLS.search(text):
        return text
    plain = without_escapes(text.encode("utf-8", "surrogatepass")).decode("utf-8", "surrogatepass")
    if not any(map(_is_unseen, plain)):
        return plain
    return "".join(_shown(c) if _is_unseen(c) else c for c in plain)


def _shown(character: str) -> str:
    number = ord(character)
    if number < 256:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


def _is_unseen(character: str) -> bool:
    return character not in "\n\t" and unicodedata.category(character) in _UNSEEN


def line(text: str) -> str:
    """Text on one line of a terminal or a log: as `terminal`, without newlines and tabs."""
    return terminal(" ".join(text.split()))


def title(text: str) -> str:
    """The name of a task run or an artifact: one short line."""
    short = line(text)
    return short if len(short) <= _LONGEST_TITLE else f"{short[: _LONGEST_TITLE - 1]}…"


class Lines(logging.Filter):
    """A logging filter that applies `terminal` to messages: logs are read on terminals."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = record.getMessage()
        except (TypeError, ValueError, KeyError):
            text = f"{record.msg} {record.args}"  # what does not fit its arguments ends nobody
        record.msg, record.args = terminal(text), ()
        if record.exc_info and record.exc_info[1] is not None:
            # A formatter uses this text in place of its own traceback.
            text = "".join(traceback.format_exception(record.exc_info[1]))
            record.exc_text = terminal(text.rstrip("\n"))
        return True


IS_EVENT = "is_event"
"""Attribute of a log record that says the same as an event: a terminal shows the event."""

LINES = Lines()
"""The instance of this process: a logger keeps it once, however often it is added."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """A context in which exceptions are raised with their text cleaned by `terminal`.

    Prefect shows the text of what a flow or a task raises as the message of its state.
    """
    try:
        yield
    except Exception as error:
        if terminal(str(error)) == str(error):
            raise
        message = f"{type(error).__name__}: {terminal(str(error))}"
        _make_plain(error)
        if terminal(str(error)) == str(error):
            raise
        raise AutoexpError(message) from error  # its text is made of something else


def _make_plain(error: Exception) -> None:
    """Clean the arguments of an exception, of which most exceptions make their text."""
    error.args = tuple(terminal(x) if isinstance(x, str) else x for x in error.args)
    if isinstance(error, OSError):
        for name in ("strerror", "filename", "filename2"):
            if isinstance(value := getattr(error, name), str):
                setattr(error, name, terminal(value))


def markdown(text: str) -> str:
    """Text in a page, or in a cell of a table: shown literally, on one line.

    It cannot make a link, image, tag, code, heading or cell.
    """
    return _MARKDOWN.sub(lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line(text))


def markdown_code(text: str) -> str:
    """A path or a name between backticks, in a page or in a cell of a table."""
    return f"`{line(text).replace('`', chr(39)).replace('|', '¦')}`" if text else ""


def web(text: str) -> str:
    """Text in a web page, or in an attribute between quotes: shown literally, no tag and no end.

    What turns the direction of writing, or is not seen, is shown escaped.
    """
    return html.escape(terminal(text), quote=True)


def script(value: object) -> str:
    """A value as JSON inside of a page's `<script>`: no text in it ends the element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def picture(text: str) -> str:
    """Text in a picture: matplotlib reads text between dollars as a formula."""
    return line(text).replace("$", "\\$")


def table(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV: no cell is a formula for a spreadsheet, and each row stays one row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    shown = line(value)
    return f"'{shown}" if shown.startswith(_FORMULA) else shown


def argument(text: str) -> str:
    """An argument of a command, or the value of a variable: passed on byte for byte.

    Raises SessionError for what no process accepts: a NUL, or more than 100,000 bytes.
    """
    raw = text.encode("utf-8", "backslashreplace")
    if b"\0" in raw or len(raw) > _LONGEST_TEXT:
        raise SessionError(f"{line(text[:80])}…: has a NUL, or is too long to hand to a command")
    return raw.decode()


def arguments(
    templates: Sequence[str], values: Mapping[str, str], captured: Collection[str]
) -> tuple[str, ...]:
    """A command, its templates filled: a value of an event becomes neither option nor program.

    ``captured` are the names of values that come from outside. Raises SessionError for an argument
    that such a value begins, and that a command would read as an option; behind `--` none is one.
    """
    filled: list[str] = []
    for place, template in enumerate(templates):
        text = argument(fill(template, values))
        begins = _first_name(template) in captured
        if place == 0 and set(names_in(template)) & set(captured):
            raise SessionError(f"{line(text)!r}: a value of an event cannot name a program")
        if begins and text.startswith("-") and "--" not in filled and not is_number(text):
            raise SessionError(
                f"{line(text[:80])!r} would be an option of {filled[0]}: write `--name={template}`,"
                " or put `--` in front of it"
            )
        filled.append(text)
    return tuple(filled)


def _first_name(template: str) -> str | None:
    if not template.startswith("{") or template.startswith("{{"):
        return None
    return next(names_in(template), None)


def variables(templates: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """Variables of a command, with their templates filled; a rule itself names them."""
    return {name: argument(fill(text, values)) for name, text in templates.items()}


def node(text: str) -> str:
    """The name of one node, for SLURM; raises SessionError for an invalid one.

    Whether there is such a node is checked with the scheduler before it is excluded.
    """
    if not _NODE.fullmatch(text):
        raise SessionError(f"{line(text[:80])!r} cannot be the name of a node: not excluded")
    return text


def is_node(text: str) -> bool:
    """True if a text is a valid name of a node."""
    return _NODE.fullmatch(text) is not None


def batch_option(text: str) -> str:
    """The value of an option in a batch script: on one line, since the next one is shell.

    Raises ValueError for characters that cannot be printed.
    """
    if not text.isprintable():
        raise ValueError(f"{terminal(text)!r}: an option of sbatch has no newline or control in it")
    return text
