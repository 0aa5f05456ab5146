"""Retention, goodput, heartbeat and digest on the cluster, and a log that repeats itself."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from autoexp.model import now
from autoexp.reports.upkeep.digest import digest
from autoexp.reports.upkeep.goodput import NOT_MEASURED, goodput
from autoexp.rules.events import CheckpointDeleted
from tests.flows.commands import autoexp
from tests.flows.sessions import Make, edit_job
from tests.slurm.bench import slurm
from tests.slurm.watching import run_to_the_end

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

STANDS_STILL = """
import time
for n in range(10_000):
    print(f" iteration {n % 3 + 1:8d}/     300 | elapsed time per iteration (ms): 5.0 |"
          " learning rate: 1.0E-02 | lm loss: 2.0E+00 |", flush=True)
    time.sleep(0.2)
"""


@pytest.fixture
def pings() -> Iterator[tuple[str, list[str]]]:
    """A URL on this machine, and the paths that were asked for there."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/alive", asked
    server.shutdown()
    server.server_close()


async def test_what_nothing_needs_is_deleted_and_the_hours_are_those_of_accounting(
    make_session: Make, pings: tuple[str, list[str]]
) -> None:
    url, asked = pings
    path = make_session(
        "retention={keep: [branch_points, {last: 1}]}",
        "cooldowns=[{at: [100], decay: {iterations: 50}}]",
        f"monitoring.heartbeat_url={url}",
    )
    seen = await run_to_the_end(path)
    assert seen.state == "COMPLETED", seen.message
    trunk, _ = seen.session.jobs.values()
    folders = {found.name for found in Path(trunk.spec.save_dir).glob("iter_*")}
    assert {"iter_0000100", "iter_0000300"} <= folders
    gone = [e.event for e in seen.session.journal.entries if isinstance(e.event, CheckpointDeleted)]
    assert gone and {event.job for event in gone} == {trunk.spec.name}
    assert not folders & {Path(event.path).name for event in gone}
    assert set(asked) == {"/alive"}

    rows = {row.job: row for row in goodput([seen.session])}
    for name, job in seen.session.jobs.items():
        (attempt,) = job.attempts
        told = slurm("sacct", "-X", "-n", "-P", "-o", "ElapsedRaw", "-j", str(attempt.job_id))
        row = rows[name]
        parts = row.new + row.twice + row.slow + row.startup + row.saving + row.ending + row.other
        hours = int(told) / 3600 * (attempt.gpus or 1)
        assert parts == pytest.approx(row.hours) == pytest.approx(hours, rel=0.01)
    assert f"**{seen.session.id}**" in digest([seen.session], 3600.0, now())

    # This cluster measures no energy (AcctGatherEnergyType), and that is what is said of it.
    ids = ",".join(str(job.attempts[0].job_id) for job in seen.session.jobs.values())
    joules = set(slurm("sacct", "-n", "-P", "-o", "ConsumedEnergyRaw", "-j", ids).split())
    assert joules <= {"0"}, joules
    shown = autoexp("goodput", path.name, root=path.parent)
    heading, *lines, energy = shown.stdout.splitlines()
    assert heading.split()[-1] == "queued" and energy == NOT_MEASURED
    assert [line.split()[0] for line in lines] == [*seen.session.jobs, "in"]
    as_json = json.loads(autoexp("goodput", path.name, "--json", root=path.parent).stdout)
    assert [row["kwh"] for row in as_json] == [None, None]


async def test_a_log_that_repeats_itself_ends_the_job_with_the_cause(make_session: Make) -> None:
    still = "{after: 4s, counts: progress, actions: [{fail: {reason: it comes no further}}]}"
    path = make_session("cooldowns=[]", f"monitoring.inactivity_events={{still: {still}}}")
    edit_job(path, "demo", lambda _: [sys.executable, "-c", STANDS_STILL])
    seen = await run_to_the_end(path)
    (job,) = seen.session.jobs.values()
    assert job.reason == "it comes no further"
    assert [attempt.state for attempt in job.attempts] == ["CANCELLED"]
