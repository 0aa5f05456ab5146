"""The live view of a session that waits costs next to nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.reports.live import Pause, stamps
from autoexp.rules.events import CheckpointComplete
from autoexp.session.session import Session


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
