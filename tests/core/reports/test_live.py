"""The live view of a session that waits costs next to nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.model import now
from autoexp.reports.live import Pause, _as_watched, stamps
from autoexp.reports.status import status_of, waits
from autoexp.rules.events import CheckpointComplete
from autoexp.session.session import Session
from tests.core.story import Story


@pytest.fixture
def session(session_path: Path) -> Iterator[Session]:
    with Session.hold(session_path) as (held, _):
        yield held


def test_a_session_that_has_not_changed_is_not_read_again(session: Session) -> None:
    before = stamps(session.path)
    assert stamps(session.path) == before
    Session.load(session.path)
    assert stamps(session.path) == before


def test_saved_numbers_are_told_from_events(session: Session) -> None:
    before = stamps(session.path)
    job = next(iter(session.jobs.values()))
    job.iteration = 10
    session.save_job(job)
    numbers = stamps(session.path)
    assert numbers.events == before.events
    assert numbers.records != before.records
    session.journal.append([CheckpointComplete(job=job.spec.name, iteration=10, path="/c")])
    assert stamps(session.path).events != numbers.events


def test_a_session_that_was_removed_has_stamps_too(tmp_path: Path) -> None:
    assert stamps(tmp_path / "gone") == stamps(tmp_path / "gone")


def test_a_view_calls_no_session_stopped_that_it_is_about_to_watch(session_path: Path) -> None:
    status = status_of(Session.load(session_path))
    assert status.state == "stopped"
    assert _as_watched(status).state == "starting"
    running = status.model_copy(update={"state": "running"})
    assert _as_watched(running) is running


def test_a_job_that_logs_is_running_whatever_the_scheduler_has_yet_to_say(
    session_path: Path,
) -> None:
    story = Story(session_path)
    assert waits(story.job()) == "is about to be submitted"
    story.submit()
    story.look(state="PENDING", reason="Priority")
    assert status_of(story.session).jobs[0].state == "PENDING"
    story.log(10)
    story.look()
    job = status_of(story.session).jobs[0]
    assert (job.state, job.reason) == ("RUNNING", None)
    story.look(state="RUNNING", started_at=now())
    story.look(state="PENDING")  # requeued, its earlier lines are there still
    assert status_of(story.session).jobs[0].state == "PENDING"


def test_the_view_looks_less_and_less_often_until_something_happens() -> None:
    pause = Pause(0.0)
    assert pause.seconds(1.0) == 0.5
    assert 0.5 < pause.seconds(60.0) <= 1.0
    assert pause.seconds(86400.0) == 5.0
    pause.note_event(86400.0)
    assert pause.seconds(86401.0) == 0.5


def test_numbers_are_drawn_at_once_in_a_new_session_and_once_a_minute_in_an_old_one() -> None:
    def drawings(start: float, seconds: int) -> int:
        pause, drawn = Pause(0.0), 0
        pause.note_drawing(start, start)
        for second in range(seconds):
            now = start + second
            if pause.may_draw_numbers(now):
                pause.note_drawing(now, now)
                drawn += 1
        return drawn

    assert drawings(0.0, 20) == 20
    assert drawings(3600.0, 600) == 9


def test_a_view_that_takes_long_to_draw_takes_a_twentieth_of_the_time_at_most() -> None:
    pause = Pause(0.0)
    pause.note_drawing(1.0, 2.0)
    assert pause.seconds(3.0) == 20.0
