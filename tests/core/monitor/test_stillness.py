"""While the files stay as they are, a stat for each of them is all that a tick takes."""

from pathlib import Path

import pytest

from autoexp.flows.engine.stillness import ADDING_UP_S, LONGEST_S, Stillness
from autoexp.monitor.monitor import Monitor
from autoexp.session.session import Session
from bench.cases import core_tick
from bench.world import sessions
from bench.world.measure import counted_calls, traffic


class Clock:
    """The monotonic clock, which stands until the test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def still(folder: Path, jobs: int = 1, *overrides: str) -> tuple[Session, Monitor, Stillness]:
    """A session that was looked at until nothing was new."""
    session = Session.load(sessions.build(folder, jobs, *overrides, lines=5))
    monitor = core_tick.settled(session)
    stillness = Stillness(monitor)
    for _ in range(2):  # the first learns which files there are
        look(monitor, stillness)
    return session, monitor, stillness


def look(monitor: Monitor, stillness: Stillness) -> None:
    with sessions.unsynced():
        stillness.begin_look()
        monitor.look({})
        monitor.worklist.next_work()
        stillness.end_look()


def test_a_tick_without_news_stats_each_file_and_does_nothing_else(
    tmp_path: Path, clock: Clock
) -> None:
    _, _, stillness = still(tmp_path, 7)
    with counted_calls(python=True) as calls:
        assert stillness.holds
    assert calls["stat"] == 14
    assert calls.total() < 14 * 4
    assert traffic(lambda: stillness.holds).written == 0


def test_a_log_that_grows_calls_for_a_look(tmp_path: Path, clock: Clock) -> None:
    session, monitor, stillness = still(tmp_path)
    sessions.grow(session, 10_000, 1)
    assert not stillness.holds
    look(monitor, stillness)
    assert stillness.holds
    assert next(iter(session.jobs.values())).iteration == 10_000


def test_a_checkpoint_calls_for_a_look(tmp_path: Path, clock: Clock) -> None:
    session, _, stillness = still(tmp_path)
    (job,) = session.jobs.values()
    sessions.save(Path(job.spec.save_dir), 400)
    assert not stillness.holds


def test_what_changes_while_it_is_looked_at_calls_for_another_look(
    tmp_path: Path, clock: Clock
) -> None:
    session, monitor, stillness = still(tmp_path)
    stillness.begin_look()
    monitor.look({})
    monitor.worklist.next_work()
    sessions.grow(session, 10_000, 1)
    stillness.end_look()
    assert not stillness.holds


def test_it_is_looked_at_now_and_then_whatever_the_files_say(tmp_path: Path, clock: Clock) -> None:
    _, monitor, stillness = still(tmp_path)
    clock.now += LONGEST_S - 1
    assert stillness.holds
    clock.now += 1
    assert not stillness.holds
    look(monitor, stillness)
    assert stillness.holds


@pytest.mark.parametrize(
    "budget",
    [
        "budget.stop_above=100",
        "monitoring.session_events.much={gpu_hours_above: 5, actions: [{log: {message: much}}]}",
    ],
)
def test_the_hours_of_a_budget_are_added_up_more_often(
    budget: str, tmp_path: Path, clock: Clock
) -> None:
    _, _, stillness = still(tmp_path, 1, budget)
    clock.now += ADDING_UP_S
    assert not stillness.holds


def test_a_log_that_has_to_count_as_silent_is_looked_at_in_time(
    tmp_path: Path, clock: Clock
) -> None:
    rule = "monitoring.inactivity_events.stuck={after: 3s, actions: [{log: {message: stuck}}]}"
    _, _, stillness = still(tmp_path, 1, rule)
    clock.now += 2
    assert stillness.holds
    clock.now += 1.5
    assert not stillness.holds


def test_numbers_that_are_not_saved_yet_are_saved_in_time(tmp_path: Path, clock: Clock) -> None:
    session, monitor, stillness = still(tmp_path, 1, "monitoring.save_progress_every_s=4")
    (name,) = session.jobs
    for first in (10_000, 20_000):  # the first is saved at once, the second has to wait
        sessions.grow(session, first, 1)
        look(monitor, stillness)
    assert monitor.watches[name].dirty and stillness.holds
    clock.now += 4
    assert not stillness.holds
    look(monitor, stillness)
    assert not monitor.watches[name].dirty


def test_whoever_changes_records_has_the_next_look_made(tmp_path: Path, clock: Clock) -> None:
    _, _, stillness = still(tmp_path)
    stillness.forget()
    assert not stillness.holds


def test_a_session_that_could_not_be_written_is_looked_at_again(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, monitor, stillness = still(tmp_path)
    monkeypatch.setattr(type(monitor.recorder), "is_behind", property(lambda self: True))
    look(monitor, stillness)
    assert not stillness.holds


def test_a_file_that_cannot_be_asked_about_is_left_to_the_look(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, stillness = still(tmp_path)
    monkeypatch.setattr("os.stat", _fail)
    assert not stillness.holds


def _fail(*_args: object) -> None:
    raise PermissionError
