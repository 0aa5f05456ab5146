"""How many runs and events a session makes in Prefect, and what a week of it would make."""

import asyncio
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from prefect import get_client
from prefect.client.orchestration import PrefectClient

from autoexp.flows.train import train
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.runs import subflows
from tests.flows.sessions import Make
from tests.patience import PATIENCE_S
from tests.sources import ROOT

pytestmark = pytest.mark.prefect

COOLDOWNS = 20
MOST_RUNS, MOST_EVENTS = 300, 3000
WEEK_S = 7 * 24 * 3600
# A training of a week saves every half hour, and is resubmitted at a limit of a day.
SAVES, RESUBMISSIONS = WEEK_S // 1800, 6
IN_QUEUE = 2  # `Pending in queue` and `Running` again, which no job of this machine has
SAVED, BEAT = "autoexp.checkpoint.saved", "prefect.flow-run.heartbeat"


async def post(client: PrefectClient, path: str, body: dict[str, Any]) -> Any:
    return (await client.request("POST", path, json=body)).json()


async def events_since(client: PrefectClient, since: datetime) -> Counter[str]:
    """Events by name, once no more of them come."""
    asked = {"filter": {"occurred": {"since": since.isoformat()}}}
    found, before = Counter[str](), Counter[str](none=1)
    async with asyncio.timeout(PATIENCE_S):
        while found != before or "autoexp.cooldowns.finished" not in found:
            before = found
            await asyncio.sleep(2)
            counts = await post(client, "/events/count-by/event", asked)
            found = Counter({each["value"]: each["count"] for each in counts})
    return found


def heartbeats_of_a_week() -> int:
    """Of a session's own run, as `prefect.yaml` deploys it."""
    deployed = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][0]
    variables = deployed["work_pool"]["job_variables"]["env"]
    return WEEK_S // int(variables["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])


async def test_a_week_of_a_session_with_twenty_cooldowns_makes_few_runs_and_events(
    make_session: Make,
) -> None:
    points = list(range(30, 30 + 10 * COOLDOWNS, 10))
    path = make_session(
        f"cooldowns=[{{at: {points}, decay: {{iterations: 10}}}}]",
        *("backend.args.train_iters=230", "backend.args.save_interval=10", "slurm.max_jobs=4"),
    )
    began = datetime.now(UTC)

    state = await train(session=path.name, return_state=True)  # type: ignore[var-annotated]

    assert state.is_completed(), state.message
    session = Session.load(path)
    assert [job.verdict for job in session.jobs.values()] == [Verdict.FINISHED] * (1 + COOLDOWNS)
    async with get_client() as client:
        tagged = {"tags": {"all_": ["autoexp", f"session:{session.id}"]}}
        flow_runs = await post(client, "/flow_runs/count", {"flow_runs": tagged})
        own = [str(run.id) for run in await subflows(session)]
        inside = {"flow_run_id": {"any_": [session.meta.flow_run_ids[-1], *own]}}
        task_runs = await post(client, "/task_runs/count", {"task_runs": inside})
        found = await events_since(client, began)
    assert flow_runs == 1 + 1 + COOLDOWNS
    # A resubmission is one task run; of what is done again and again there is none.
    runs = flow_runs + task_runs + RESUBMISSIONS
    assert runs <= MOST_RUNS, (flow_runs, task_runs)

    # What the two of them make, and how often: all else is of things, of which a week has no more.
    saves, beats = found.pop(SAVED), found.pop(BEAT, 0)
    assert beats <= 2 and saves >= len(points)
    per_job = found.total() / len(session.jobs) + IN_QUEUE
    found["in a queue"] = IN_QUEUE * len(session.jobs)
    events = found.total() + RESUBMISSIONS * per_job + SAVES + COOLDOWNS + heartbeats_of_a_week()
    print(f"{runs} runs, {events:.0f} events of a week: {dict(found)}, {saves} saves")
    assert events <= MOST_EVENTS, found
