"""The view of a running session: a live table on a terminal, a line per event elsewhere."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live

from autoexp.errors import AutoexpError
from autoexp.reports.status import status_of
from autoexp.reports.tables import status_view
from autoexp.rules.describe import describe
from autoexp.session.journal import Journal
from autoexp.session.session import Session

_REFRESH_S = 0.5
# Reading a thousand jobs takes a while: the view may use at most a twentieth of the time.
_SHARE = 20


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
            pause = _REFRESH_S
            while not self._done.wait(pause):
                began = time.monotonic()
                try:
                    session = Session.load(self._path, journal)
                except AutoexpError:
                    continue  # the monitor itself says what is wrong
                live.update(status_view(status_of(session)), refresh=True)
                pause = max(_REFRESH_S, _SHARE * (time.monotonic() - began))

    def _run_lines(self) -> None:
        while not self._done.wait(_REFRESH_S):
            self._print_new()
        self._print_new()

    def _print_new(self) -> None:
        try:
            for entry in self._journal.new_entries():
                when = entry.time.astimezone().strftime("%H:%M:%S")
                self._out.print(f"{when}  {describe(entry.event)}")
        except AutoexpError:
            return
