"""What is left of a monitor whose CPU time is nearly used up: it starts a successor and waits.

Run as a script by a bare interpreter, in the place of the monitor (`exec`), so that the terminal,
or the script, that waits for the one waits for the other. Needs the standard library alone.
"""

import os
import signal
import sys

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(command: list[str]) -> int:
    """Run a command, hand on signals, and return its exit code as a shell would."""
    successor = 0

    def hand_on(number: int, _frame: object) -> None:
        if successor:
            os.kill(successor, number)

    for number in _SIGNALS:
        # What is ignored stays so, here and there; what is handled has its default there.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, hand_on)
    successor = os.posix_spawn(command[0], command, dict(os.environ))
    while True:
        # Jobs on this machine are children too: each that ends is waited for.
        ended, status = os.wait()
        if ended == successor:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
