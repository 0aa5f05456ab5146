"""The session flow, end to end: real jobs, a real Prefect server."""

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.flows.publishing import job_logs
from autoexp.flows.train import train
from autoexp.reports.curves import gains
from autoexp.reports.upkeep.goodput import PARTS
from autoexp.rules.events import AttemptJudged, CheckpointComplete
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.runs import artifacts, subflows, task_runs, task_runs_in
from tests.flows.sessions import LEARNS, Make, edit_job

pytestmark = pytest.mark.prefect


@pytest.fixture
def lines() -> Iterator[list[tuple[str, str]]]:
    """What is handed to Prefect for the logs of jobs' runs: the run's id, the line."""
    found: list[tuple[str, str]] = []
    handler, logger = logging.Handler(), logging.getLogger(job_logs.NAME)
    handler.emit = lambda record: found.append((record.flow_run_id, record.getMessage()))  # type: ignore[attr-defined, method-assign]
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)


async def run_to_the_end(path: Path) -> tuple[Session, str, str]:
    state = await train(session=path.name, return_state=True)
    return Session.load(path), state.type.value, state.message or ""


async def test_a_training_and_its_cooldowns_are_one_flow_run_with_all_it_shows(
    make_session: Make, lines: list[tuple[str, str]]
) -> None:
    session, state, _ = await run_to_the_end(make_session(*LEARNS))

    assert state == "COMPLETED"
    assert {n: j.verdict for n, j in session.jobs.items()} == {
        "demo": "finished",
        "demo-cd100": "finished",
        "demo-cd200": "finished",
    }
    # The branches end below the trunk at the same iteration.
    found = gains(session)
    assert [gain.iteration for gain in found] == [150, 250]
    assert all(gain.gain > 0.05 for gain in found), found

    drawn = await subflows(session)
    assert {run.name for run in drawn} == {"demo", "demo @100", "demo @200"}
    assert {run.state_type.value for run in drawn if run.state_type} == {"COMPLETED"}

    # The page of a cooldown tells its story alone.
    (cooldown,) = [run for run in drawn if run.name == "demo @100"]
    job_id = session.jobs["demo-cd100"].attempts[0].job_id
    story = [
        f"cooldown demo @100: submitted as job {job_id}",
        "demo-cd100 attempt 1: finished (reached iteration 150)",
    ]
    told = [line for run, line in lines if run == str(cooldown.id)]
    assert [line for line in told if line in story] == story
    assert not any("cd200" in line for line in told)

    # A task run per effect and none per poll: one submission per job, two for each launch.
    names = Counter(run.name.split()[0] for run in await task_runs(session))
    effects = {k: v for k, v in names.items() if k in ("submit", "checkpoint", "pin", "cancel")}
    assert effects == {"submit": 3, "checkpoint": 2, "pin": 2}

    # Each lies in the run of its job; where arrows begin, in the session's.
    of_job = {run.name: {task.name for task in await task_runs_in(run.id)} for run in drawn}
    assert of_job["demo"] == {"submit demo a1"}
    assert of_job["demo @100"] == {"pin demo-cd100", "submit demo-cd100 a1"}
    tagged = {task.name.split()[0] for task in await task_runs(session) if task.tags}
    assert tagged.isdisjoint(effects)

    shown = {a.key: a for a in await artifacts(session)}
    prefix = session.id.lower()
    page = str(shown[f"{prefix}-session"].data)
    assert f"# {session.id}: finished" in page
    for job in session.jobs.values():
        assert f"**{job.spec.name}** | finished | {job.iteration} / {job.iteration}" in page
        assert str(job.attempts[0].job_id) in page
        assert f"`{job.spec.output_dir}`" in page
    assert "demo-cd200 attempt 1: finished (reached iteration 250)" in page
    assert "demo @100" in str(shown[f"{prefix}-plan"].data)
    assert {f"{prefix}-{job}-progress" for job in session.jobs} <= set(shown)
    assert all(shown[f"{prefix}-{job}-progress"].data == 100.0 for job in session.jobs)
    assert str(shown[f"{prefix}-plot"].data).startswith("data:image/png;base64,")
    assert (session.path / "plot.png").read_bytes().startswith(b"\x89PNG")
    hours = json.loads(str(shown[f"{prefix}-goodput"].data))
    assert [row["job"] for row in hours] == list(session.jobs)
    for row in hours:
        assert sum(row[part] for part in PARTS) == pytest.approx(row["hours"], abs=0.01)


async def test_a_cooldown_starts_while_the_training_goes_on(make_session: Make) -> None:
    path = make_session()
    begun = path / "cooldown-begun"
    # The training's last word waits for the cooldown; if that never comes, it ends without.
    last = f'"$@"; code=$?; n=0; until [ -e {begun} ]; do sleep 0.1; n=$((n + 1)); '
    last += "[ $n -lt 1200 ] || break; done; exit $code"
    edit_job(path, "demo", lambda command: ["/bin/sh", "-c", last, "sh", *command])
    first = f'touch {begun}; exec "$@"'
    edit_job(path, "demo-cd100", lambda command: ["/bin/sh", "-c", first, "sh", *command])

    session, _, _ = await run_to_the_end(path)

    trunk, branch = session.jobs["demo"].attempts[0], session.jobs["demo-cd100"].attempts[0]
    assert branch.started_at is not None
    assert trunk.ended_at is not None
    assert branch.started_at < trunk.ended_at


async def test_a_failed_cooldown_leaves_its_siblings_running(make_session: Make) -> None:
    path = make_session()
    edit_job(path, "demo-cd100", lambda command: [*command, "--no-such-argument"])

    session, state, message = await run_to_the_end(path)

    failed = session.jobs["demo-cd100"]
    assert failed.verdict is Verdict.FAILED
    assert session.jobs["demo"].verdict is Verdict.FINISHED
    assert session.jobs["demo-cd200"].verdict is Verdict.FINISHED
    assert state == "FAILED"
    assert failed.attempt is not None
    assert "demo-cd100" in message
    assert "exit code 2" in message
    assert failed.attempt.log in message
    assert "--no-such-argument" in Path(failed.attempt.log).read_text()


async def test_a_killed_cooldown_leaves_its_siblings_running(make_session: Make) -> None:
    path = make_session()
    # A trainer that dies of SIGKILL at once, as under an out-of-memory killer.
    edit_job(path, "demo-cd200", lambda _: ["/bin/sh", "-c", "kill -9 $$"])

    session, state, _ = await run_to_the_end(path)

    assert state == "FAILED"
    assert session.jobs["demo-cd200"].attempts[0].signal == 9
    assert session.jobs["demo-cd200"].reason == "FAILED (signal 9)"
    assert session.jobs["demo-cd100"].verdict is Verdict.FINISHED


async def test_a_checkpoint_written_slowly_launches_nothing_before_it_is_complete(
    make_session: Make,
) -> None:
    session, state, _ = await run_to_the_end(make_session("backend.args.slow_save_s=1.0"))

    assert state == "COMPLETED"
    tracker_moved = {}
    for entry in session.journal.entries:
        if isinstance(entry.event, CheckpointComplete) and entry.event.job == "demo":
            tracker_moved[entry.event.iteration] = Path(entry.event.path).stat().st_ctime
    for name, iteration in (("demo-cd100", 100), ("demo-cd200", 200)):
        intended = session.jobs[name].attempts[0].intended_at.timestamp()
        # The folder got its name (its ctime) only after the slow save.
        assert intended >= tracker_moved[iteration]


async def test_a_run_that_ends_early_goes_on_until_its_target(make_session: Make) -> None:
    # Twelve seconds are not enough for 300 iterations of 60 ms: the limit warns, the trainer
    # saves and exits 0, and that is not the end.
    path = make_session(
        "cooldowns=[]",
        "backend.args.sleep_per_iteration_ms=60",
        "slurm.time_limit_min=0.2",
        "slurm.warn_before_limit_s=3",
    )

    session, state, _ = await run_to_the_end(path)

    assert state == "COMPLETED"
    attempts = session.jobs["demo"].attempts
    assert len(attempts) >= 2
    assert [a.verdict for a in attempts[:-1]] == [Verdict.CONTINUE] * (len(attempts) - 1)
    judged = [e.event for e in session.journal.entries if isinstance(e.event, AttemptJudged)]
    assert judged[-1].verdict is Verdict.FINISHED
