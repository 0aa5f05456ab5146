"""Runs session flows in forks of itself, so that a test of many kills pays the imports once.

Each line on standard input is an order: session, root, and the durable step at which to die (0:
never). Answers are two lines: the process id at the start, the exit code at the end.
"""

import asyncio
import json
import os
import sys

from autoexp import durable
from flows.train import train


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            watch(order)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def watch(order: dict[str, str]) -> None:
    os.dup2(2, 1)  # answers are the parent's
    os.environ["AUTOEXP_SESSIONS"] = order["root"]
    durable._kill_at = int(order["kill_at"])
    state = asyncio.run(train(session=order["session"], return_state=True))  # type: ignore[var-annotated, arg-type]
    os._exit(0 if state.is_completed() else 1)


if __name__ == "__main__":
    main()
