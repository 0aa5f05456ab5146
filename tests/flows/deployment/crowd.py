"""Watches many sessions at once, each in a process of its own, that pay the imports together.

    python -m tests.flows.deployment.crowd SESSION_DIRECTORY ...

Exits with the number of sessions that did not end as completed.
"""

import asyncio
import os
import sys
from pathlib import Path

from autoexp.flows.train import train


def watch(path: Path) -> int:
    os.environ["AUTOEXP_SESSIONS"] = str(path.parent)
    state = asyncio.run(train(session=path.name, return_state=True))  # type: ignore[call-overload,var-annotated]
    print(f"{path.name}: {state}", flush=True)
    return 0 if state.is_completed() else 1


def main() -> int:
    children = []
    for word in sys.argv[1:]:
        if (child := os.fork()) == 0:
            os._exit(watch(Path(word)))
        children.append(child)
    return sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(main())
