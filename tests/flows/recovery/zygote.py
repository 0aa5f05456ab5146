"""Runs session flows in forks of itself, so that a test of many kills pays the imports once.

Each line on standard input is an order: session, root, the durable step at which to die (0: never),
and the flow run to run again, if any. Answers are two lines: the process id at the start, the exit
code at the end.
"""

import asyncio
import json
import os
import sys
from typing import Any
from uuid import UUID

from prefect import State, get_client
from prefect.flow_engine import run_flow_async

from autoexp.flows.train import train
from tests.killing import die_at


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
    die_at(int(order["kill_at"]))
    state = asyncio.run(run(order["session"], order.get("flow_run_id")))
    os._exit(0 if state.is_completed() else 1)


async def run(session: str, flow_run_id: str | None) -> State[Any]:
    if flow_run_id is None:
        return await train(session=session, return_state=True)  # type: ignore[no-any-return, call-overload]
    async with get_client() as client:
        flow_run = await client.read_flow_run(UUID(flow_run_id))
    again: Any = await run_flow_async(
        train, flow_run=flow_run, parameters={"session": session}, return_type="state"
    )
    return again  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
