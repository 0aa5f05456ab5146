"""A job that prints as fast as it can beside one that saves checkpoints and has cooldowns."""

from pathlib import Path

import pytest

from autoexp.jobs.record import JobRecord
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp, interrupt, start_monitor
from tests.flows.sessions import Make, edit_job
from tests.patience import until

pytestmark = pytest.mark.prefect

# In pieces of 64 MB and up to two gigabytes, until it may go no further; then it says nothing.
PRINT = """
n=0
while [ ! -e {gate} ] && [ $n -lt 32 ]; do yes "{line}" | head -c 64000000; n=$((n+1)); done
exec sleep 100000
"""
LINE = "iteration 7/ 300 | elapsed time per iteration (ms): 5.0 | lm loss: 2.0 | " + "x" * 900


def is_behind(job: JobRecord) -> bool:
    assert job.attempt is not None
    log = Path(job.attempt.log)
    return log.exists() and log.stat().st_size - job.cursor.scanned > 64_000_000


def test_a_runaway_log_holds_up_no_cooldown_heartbeat_signal_or_cancellation(
    make_session: Make,
) -> None:
    path = make_session("backend.args.seed=1,2")
    trainings = [job for job in Session.load(path).jobs.values() if job.spec.parent is None]
    runaway = trainings[0].spec.name
    gate = path / "enough"
    script = PRINT.format(gate=gate, line=LINE)
    edit_job(path, runaway, lambda _: ["/bin/sh", "-c", script])
    others = [
        job.spec.name
        for job in Session.load(path).jobs.values()
        if runaway not in (job.spec.name, job.spec.parent)
    ]
    assert len(others) == 3
    monitor = start_monitor(path)
    beats: set[int] = set()

    def others_have_ended() -> bool:
        if (path / "monitor.json").exists():
            beats.add((path / "monitor.json").stat().st_mtime_ns)
        jobs = Session.load(path).jobs
        return len(beats) > 2 and all(jobs[name].is_over for name in others)

    until(others_have_ended, "cooldowns and heartbeats beside the runaway log")
    jobs = Session.load(path).jobs
    assert {jobs[name].verdict for name in others} == {Verdict.FINISHED}
    assert is_behind(jobs[runaway]) and jobs[runaway].cursor.scanned > 0
    output = interrupt(monitor)
    assert monitor.returncode == 130, output
    assert is_behind(Session.load(path).jobs[runaway])

    monitor = start_monitor(path)
    until(lambda: (path / "monitor.json").exists(), "a monitor")
    answer = autoexp("cancel", path.name, runaway, root=path.parent)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    gate.touch()
    output, _ = monitor.communicate(timeout=300)
    assert monitor.returncode == 1, output
    job = Session.load(path).jobs[runaway]
    assert job.verdict is Verdict.FAILED and "cancelled" in (job.reason or "")
    assert not is_behind(job)
