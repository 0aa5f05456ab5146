"""A session whose process dies at every start is given up by what it has written down itself."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from autoexp.errors import SessionGivenUp
from autoexp.monitor import monitor_starts
from autoexp.rules.events import AttemptRefused
from autoexp.session.session import Session
from autoexp.storage import migrations
from autoexp.storage.lease import look


def start(path: Path, by: str | None = "run", act: Callable[[Session], object] = id) -> None:
    with Session.hold(path, monitor_starts.counted(path, by)) as (session, _):
        act(session)


def die(path: Path, by: str | None = "run", act: Callable[[Session], object] = id) -> None:
    """Take the session up in a process that is killed meanwhile, and leaves all as it is."""

    def killed(session: Session) -> None:
        act(session)
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        try:
            start(path, by, killed)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def is_counted(path: Path) -> bool:
    return (path / monitor_starts.FILE).exists()


def test_the_start_after_five_deaths_without_progress_gives_up(session_path: Path) -> None:
    for _ in range(monitor_starts.MOST_DEATHS):
        die(session_path)
    with pytest.raises(SessionGivenUp, match=r"s1: its process died 5 times .* `autoexp resume s1"):
        start(session_path)
    assert look(session_path) is None, "the lease was kept"


def test_one_that_dies_as_it_is_read_is_given_up_too(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "load", lambda path: os.kill(os.getpid(), signal.SIGKILL))
    for _ in range(monitor_starts.MOST_DEATHS):
        die(session_path)
    with pytest.raises(SessionGivenUp):
        start(session_path)


def an_event(session: Session) -> None:
    number = len(session.journal.entries)
    session.record([AttemptRefused(job="tiny", attempt=number, reason="no")])


def an_iteration(session: Session) -> None:
    job = session.jobs["tiny"]
    session.change_job(job, iteration=(job.iteration or 0) + 1)


@pytest.mark.parametrize("progress", [an_event, an_iteration])
def test_deaths_with_progress_in_between_are_no_reason_to_give_up(
    session_path: Path, progress: Callable[[Session], object]
) -> None:
    for _ in range(3 * monitor_starts.MOST_DEATHS):
        die(session_path, act=progress)
    start(session_path)


def test_a_start_that_ends_in_an_orderly_way_is_no_death(session_path: Path) -> None:
    def interrupted(session: Session) -> None:
        raise KeyboardInterrupt

    for _ in range(2 * monitor_starts.MOST_DEATHS):
        with pytest.raises(KeyboardInterrupt):
            start(session_path, act=interrupted)
    assert not is_counted(session_path)


def test_a_monitor_that_watched_for_long_before_it_died_was_no_death_at_the_start(
    session_path: Path,
) -> None:
    for _ in range(2 * monitor_starts.MOST_DEATHS):
        die(session_path, act=lambda session: monitor_starts.forget(session.path))
    start(session_path)


def test_a_person_and_a_flow_run_that_is_new_here_always_go_on(session_path: Path) -> None:
    for by in (None, "another"):
        for _ in range(monitor_starts.MOST_DEATHS):
            die(session_path)
        start(session_path, by)
        assert not is_counted(session_path)


def test_a_session_that_was_given_up_may_be_started_again_by_a_person(session_path: Path) -> None:
    for _ in range(2):
        for _ in range(monitor_starts.MOST_DEATHS):
            die(session_path)
        with pytest.raises(SessionGivenUp):
            start(session_path)


def test_a_second_monitor_that_is_refused_counts_nothing(session_path: Path) -> None:
    with Session.hold(session_path, monitor_starts.counted(session_path, "run")):
        before = (session_path / monitor_starts.FILE).read_bytes()
        with pytest.raises(Exception, match="held by the monitor"):
            start(session_path, "other")
        assert (session_path / monitor_starts.FILE).read_bytes() == before


def test_a_kill_at_any_step_of_counting_leaves_a_file_that_parses(
    session_path: Path, killed_at: Callable[[int, Callable[[], object]], bool]
) -> None:
    n = 1
    while killed_at(n, lambda: start(session_path)):
        if is_counted(session_path):
            migrations.read(session_path / monitor_starts.FILE, monitor_starts.Starts)
        n += 1
    assert n > 4
