"""Ends what a drill has started once the drill is gone, as after a `kill -9`.

    python -m autoexp.operations.drill.guard SESSION HOME

A process of its own, which waits at a pipe: a drill that ends by itself says so there. The end of
the pipe without a word is the end of a drill that could not.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from autoexp import sinks
from autoexp.errors import AutoexpError
from autoexp.operations.cancel import cancel_directly
from autoexp.operations.drill import setting
from autoexp.operations.drill.monitor import Monitor
from autoexp.session.session import Session

BY = "autoexp drill"
_ENDS_WITHIN_S = 10.0


class Guard:
    """The drill's end of the pipe."""

    def __init__(self, session: Path, home: Path, log: Path) -> None:
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(session), str(home)],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the drill
            )

    def dismiss(self) -> None:
        """Tell it that nothing is left."""
        try:
            self._process.communicate(b"ended", _ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def let_go(session: Path, *exercises: str) -> None:
    """Have the training go on where it waits, or would, for these exercises."""
    for exercise in exercises:
        (setting.holds_below(session) / str(setting.HOLDS[exercise])).unlink(missing_ok=True)


def end_jobs(session: Path, notify: Callable[[str], None]) -> None:
    """Cancel the jobs of a session whose monitor has ended, and let go of the training."""
    if not Session.load(session).is_over:
        notify(f"cancelling its jobs, as `autoexp cancel {session.name}` does")
        outcome = cancel_directly(session, (), BY)
        if outcome.problem:
            notify(outcome.problem)
    # Not before: a training that is let go would run on to its end meanwhile.
    let_go(session, *setting.HOLDS)


def main(session: Path, home: Path) -> int:
    """Wait for the end of the drill, and end what it has left."""
    if sys.stdin.buffer.read():
        return 0

    def note(text: str) -> None:
        with setting.log_of(session).open("a") as log:
            log.write(f"{sinks.terminal(text)}\n")

    note("the drill was killed: ending its monitor, its server and its jobs")
    monitor = Monitor(session, home, setting.log_of(session))
    monitor.end_left_over()
    try:
        end_jobs(session, note)
    except AutoexpError as error:
        # Somebody watches it by now, and can cancel it.
        note(str(error))
    monitor.wait_for_server_to_end()
    shutil.rmtree(home, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
