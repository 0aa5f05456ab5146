"""The view of a running session: a live table on a terminal, a line per event elsewhere."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from rich.console import Console
from rich.live import Live

from autoexp.errors import AutoexpError
from autoexp.reports.status import Status, status_of
from autoexp.reports.tables import status_view
from autoexp.rules.describe import describe
from autoexp.session.journal import Journal
from autoexp.session.session import Session

_REFRESH_S = 0.5
# Reading a thousand jobs takes a while: the view may use at most a twentieth of the time.
_SHARE = 20
# A session that only trains on is looked at less and less often, and its numbers are drawn anew
# less often still: drawing takes more than all the monitor does meanwhile.
_LONGEST_PAUSE_S = 5.0
_NUMBERS_S = 60.0
_PAUSE_SHARE, _NUMBERS_SHARE = 60, 20


class Stamps(NamedTuple):
    """What tells whether a session has changed, without reading it."""

    events: tuple[int, ...]
    """Of the journal and the actions: something has happened."""
    records: tuple[int, ...]
    """Of the jobs' records, which are replaced whenever their numbers are saved."""


def stamps(path: Path) -> Stamps:
    """The stamps of a session as it is now; those of what is not there are zero."""
    return Stamps(
        (*_stamp(path / "events.jsonl"), *_stamp(path / "actions"), *_stamp(path)),
        _stamp(path / "jobs"),
    )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def _as_watched(status: Status) -> Status:
    """A session of which this process is about to be the monitor is not stopped."""
    if status.state != "stopped":
        return status
    return status.model_copy(update={"state": "starting"})


class Pause:
    """How long the view waits: not long after something has happened, longer later on."""

    def __init__(self, now: float) -> None:
        self._event_at = self._drawn_at = now
        self._least_s = _REFRESH_S

    def note_event(self, now: float) -> None:
        self._event_at = now

    def note_drawing(self, began: float, ended: float) -> None:
        self._drawn_at = ended
        self._least_s = max(_REFRESH_S, _SHARE * (ended - began))

    def seconds(self, now: float) -> float:
        """Until the next look."""
        calm_s = now - self._event_at
        return max(self._least_s, min(_LONGEST_PAUSE_S, calm_s / _PAUSE_SHARE))

    def may_draw_numbers(self, now: float) -> bool:
        """True when it is time to draw what has changed in nothing but its numbers."""
        calm_s = now - self._event_at
        return now - self._drawn_at >= min(_NUMBERS_S, calm_s / _NUMBERS_SHARE)


class LiveView:
    """Shows a session from its directory, as any other process would, in its own thread."""

    def __init__(self, path: Path, out: Console) -> None:
        self._path = path
        self._out = out
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="live view")
        self._journal = Journal(path / "events.jsonl")
        self._journal.load()
        self.note = ""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        if self._out.is_terminal:
            self._run_table()
        else:
            self._run_lines()

    def _run_table(self) -> None:
        journal = Journal(self._path / "events.jsonl")
        with Live(console=self._out, auto_refresh=False, transient=True) as live:
            pause = Pause(time.monotonic())
            drawn: Stamps | None = None
            while not self._done.wait(pause.seconds(time.monotonic())):
                began, found = time.monotonic(), stamps(self._path)
                happened = drawn is None or found.events != drawn.events
                if happened:
                    pause.note_event(began)
                elif found == drawn or not pause.may_draw_numbers(began):
                    continue
                try:
                    session = Session.load(self._path, journal)
                except AutoexpError:
                    continue  # the monitor itself says what is wrong
                live.update(status_view(_as_watched(status_of(session))), refresh=True)
                drawn = found
                pause.note_drawing(began, time.monotonic())

    def _run_lines(self) -> None:
        pause = Pause(time.monotonic())
        printed: Stamps | None = None
        while not self._done.wait(pause.seconds(time.monotonic())):
            found = stamps(self._path)
            if printed is None or found.events != printed.events:
                self._print_new()
                pause.note_event(time.monotonic())
                printed = found
        self._print_new()

    def _print_new(self) -> None:
        try:
            for entry in self._journal.new_entries():
                when = entry.time.astimezone().strftime("%H:%M:%S")
                self._out.print(f"{when}  {describe(entry.event)}")
        except AutoexpError:
            return
