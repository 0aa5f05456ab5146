"""The only module that writes to a terminal: text from outside cannot control it.

All output of autoexp comes through here; tests/core/house/test_terminal.py looks for exceptions.
"""

import io
import json
import re
import sys
import traceback
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from autoexp import sinks
from autoexp.logs.lines import with_newlines

_PADDING = re.compile(r"[ ]+$", re.MULTILINE)


def say(text: object, *, error: bool = False) -> None:
    """Print a line, or lines, to stdout or to stderr."""
    print(sinks.terminal(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def say_json(value: Any, *, indent: int | None = 1) -> None:
    """Print JSON in ASCII, so that no terminal's encoding changes it or is controlled by it."""
    print(json.dumps(value, indent=indent), flush=True)


def say_log(lines: Iterable[bytes]) -> int:
    """Print lines of a log without their colours; what redraws a line begins one here.

    Returns how many bytes there were.
    """
    printed = 0
    for line in lines:
        text = with_newlines(line.replace(b"\r\n", b"\n")).decode(errors="replace")
        print(sinks.terminal(text), end="")
        printed += len(line)
    sys.stdout.flush()
    return printed


def say_what_broke(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an uncaught exception, for `sys.excepthook`: its message may quote a log."""
    say("".join(traceback.format_exception(kind, error, trace)).rstrip(), error=True)


def ask(question: str) -> str:
    """Ask a question on the terminal; returns the answer."""
    return input(sinks.terminal(question))


def console() -> Console:
    """A console with colours only on a terminal, which cuts no path in a file or a pipe."""
    out = _Console()
    return out if out.is_terminal else _Console(width=160, file=_Unpadded())


def canvas(file: TextIO, width: int, *, colours: bool) -> Console:
    """A console that records its output instead of writing it."""
    return _Console(width=width, file=file, record=True, force_terminal=colours or None)


class _Unpadded(io.TextIOBase):
    """Standard output without the blanks that fill a table's lines up to its width."""

    def write(self, text: str) -> int:
        sys.stdout.write(_PADDING.sub("", text))
        return len(text)

    def flush(self) -> None:
        sys.stdout.flush()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return sys.stdout.encoding


class _Console(Console):
    """Colours come from our styles alone: in text are no markup, no escapes and no controls."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        # Before rich drops some of the controls, and so the end of an escape sequence.
        return super().render_str(sinks.terminal(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control:  # rich's own: it moves the cursor of a live table
                yield segment
            else:
                yield Segment(sinks.terminal(segment.text), segment.style)
