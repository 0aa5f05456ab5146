"""GPU hours: planned, spent, and where nothing more is launched."""

from datetime import timedelta
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput, SessionNotFound
from autoexp.jobs.budget import total
from autoexp.jobs.limits import spent
from autoexp.model import now
from autoexp.operations import requests
from autoexp.planning.plan import Plan
from autoexp.planning.study import plan_study
from autoexp.reports.status import status_of
from autoexp.rules.events import BudgetPassed
from autoexp.session.inbox import BudgetRequest, RetryRequest, enqueue
from autoexp.session.measured_speed import with_measured_speed
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, create
from tests.core.story import Story

GPUS = "slurm.gpus_per_node=4"
SPEED = "budget.seconds_per_iteration=9"


def plan(*overrides: str) -> Plan:
    return plan_study(with_measured_speed(compose("demo", [*TINY, *overrides])), Path("/out"))


def hours(found: Plan) -> list[float | None]:
    return [None if job.planned is None else job.planned.gpu_hours for job in found.jobs]


def test_hours_are_iterations_times_speed_times_gpus_and_a_branch_has_its_decay_alone() -> None:
    found = plan(GPUS, SPEED)
    assert hours(found) == [300 * 9 / 3600 * 4, 50 * 9 / 3600 * 4, 50 * 9 / 3600 * 4]
    assert str(total(found.jobs)) == "4.00 GPU hours"


def test_points_of_a_sweep_can_have_speeds_of_their_own() -> None:
    found = plan(GPUS, "cooldowns=[]", "budget.seconds_per_iteration=9,18")
    assert hours(found) == [3.0, 6.0]


def test_without_a_speed_the_time_limit_counts_and_without_either_nobody_can_tell() -> None:
    assert hours(plan(GPUS, "cooldowns=[]", "slurm.time_limit_min=30")) == [2.0]
    unknown = plan(GPUS, "cooldowns=[]")
    assert hours(unknown) == [None]
    assert "1 jobs of unknown length" in str(total(unknown.jobs))


def test_a_cooldown_with_a_time_of_its_own_counts_with_that_one() -> None:
    times = ["slurm.time_limit_min=60", "slurm.cooldown_time_limit_min=15"]
    assert hours(plan("slurm=local_cluster", GPUS, *times)) == [4.0, 1.0, 1.0]


def test_a_stage_counts_with_its_own_minutes_and_gpus() -> None:
    stage = "stages={s: {command: [x], minutes: 15, slurm: {gpus_per_node: 1}}}"
    assert hours(plan(GPUS, SPEED, "cooldowns=[]", stage)) == [3.0, 0.25]


def test_a_speed_can_be_what_another_session_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path))
    earlier = Session.load(create(compose("demo", TINY), tmp_path, session_id="earlier"))
    measured = (GPUS, "cooldowns=[]", "budget.measured_in=earlier")
    with pytest.raises(BadInput, match="earlier: no training has measured its speed yet"):
        plan(*measured)
    earlier.change_job(earlier.jobs["tiny"], mean_seconds_per_iteration=9.0)
    assert hours(plan(*measured)) == [3.0]
    assert hours(plan(*measured, "backend.args.seed=1,2")) == [3.0, 3.0]
    assert "9 s per iteration, measured in earlier" in str(plan(*measured).jobs[0].planned)
    with pytest.raises(SessionNotFound, match="nope"):
        plan(GPUS, "budget.measured_in=nope")


@pytest.fixture
def story(tmp_path: Path) -> Story:
    """Two trainings of a sweep, one of which has run for an hour on four GPUs."""
    overrides = [*TINY, GPUS, "budget.stop_above=3.5", "cooldowns=[]", "backend.args.seed=1,2"]
    story = Story(create(compose("demo", overrides), tmp_path / "sessions", session_id="s1"))
    story.submit("tiny-seed1")
    hour_ago = now() - timedelta(hours=1)
    story.look(name="tiny-seed1", state="RUNNING", started_at=hour_ago)
    return story


def test_above_its_budget_a_session_launches_nothing_more_and_cancels_nothing(
    story: Story,
) -> None:
    session = story.session
    story.look(name="tiny-seed1")
    assert 3.9 < spent(session.jobs.values()) < 4.1
    events = [e.event for e in session.journal.entries if isinstance(e.event, BudgetPassed)]
    assert [event.rule for event in events] == ["budget.stop_above"]

    waiting = story.job("tiny-seed2")
    assert session.room() == 0
    assert session.begin_attempt(waiting) is None
    said = status_of(session).jobs[1].reason
    assert said is not None
    assert said.startswith("not submitted: 4 GPU hours are used, above budget.stop_above (3.5)")
    running = story.job("tiny-seed1")
    assert (running.cancel_requested, running.verdict, waiting.verdict) == (None, None, None)


def test_when_the_last_job_has_ended_the_others_are_given_up_with_the_budget_as_reason(
    story: Story,
) -> None:
    story.save(300, name="tiny-seed1")
    story.look(name="tiny-seed1", state="COMPLETED", exit_code=0, ended_at=now())
    story.look(name="tiny-seed1")
    assert story.job("tiny-seed1").verdict is Verdict.FINISHED
    waiting = story.job("tiny-seed2")
    assert waiting.verdict is Verdict.FAILED
    assert waiting.reason is not None
    assert "budget.stop_above" in waiting.reason

    # Somebody answers for more: the point goes on in the same session.
    enqueue(story.path, BudgetRequest(stop_above=10, by="ann"))
    enqueue(story.path, RetryRequest(by="ann"))
    assert requests.process_requests(story.session) == [
        "ann: sets budget.stop_above to 10",
        "ann: retries tiny-seed2",
    ]
    story.open()
    story.look(name="tiny-seed1")
    story.submit("tiny-seed2")
    assert story.job("tiny-seed2").attempt is not None
