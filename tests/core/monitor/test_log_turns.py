"""One look reads a bounded part of all logs together, in turns: none starves the others."""

import itertools
import math
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from autoexp.backends.megatron.formats import TRACKER
from autoexp.config.compose import compose
from autoexp.jobs.record import JobRecord
from autoexp.logs import tail
from autoexp.logs.tail import LIMIT, MAX_LINES, MOST_BEHIND, LogCursor, read_new
from autoexp.monitor import job_watch
from autoexp.monitor.job_watch import END, EVENTS, MOST_AT_END_S
from autoexp.monitor.monitor import Look, Monitor
from autoexp.monitor.replay import Rehearsal
from autoexp.rules.events import LogLost, LogMatched
from autoexp.schedulers.base import JobStatus
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from bench.world import sessions
from tests.builders import TINY, create

LINE = (
    " [2026-08-01 10:00:00.000] iteration {:8d}/     300 | elapsed time per iteration (ms): 5.0 |"
    " learning rate: 1.0E-02 | lm loss: 2.000000E+00 |\n"
)
BAD = "monitoring.log_events.bad={substring: a rather bad line, every: true}"


class Crowd:
    """Trainings side by side, whose logs the test writes."""

    def __init__(self, folder: Path, jobs: int, *words: str) -> None:
        seeds = ",".join(map(str, range(1, jobs + 1)))
        many = compose("demo", [*TINY, "cooldowns=[]", f"backend.args.seed={seeds}", *words])
        self.path = create(many, folder, session_id="s1")
        self.session = Session.load(self.path)
        self.monitor = Monitor(self.session)
        with sessions.unsynced():
            for job in self.session.jobs.values():
                attempt = self.session.begin_attempt(job)
                assert attempt is not None
                Path(attempt.log).parent.mkdir(parents=True)
                Path(attempt.log).touch()
                self.session.record_submission(job, attempt, f"id-{attempt.key}")
            self.look(dict.fromkeys(self.session.jobs, "RUNNING"))

    @property
    def jobs(self) -> list[JobRecord]:
        return list(self.session.jobs.values())

    def log(self, job: JobRecord) -> Path:
        assert job.attempt is not None
        return Path(job.attempt.log)

    def write(self, job: JobRecord, text: str) -> None:
        with self.log(job).open("a") as file:
            file.write(text)

    def grow(self, job: JobRecord, size: int) -> None:
        """Append empty lines, as holes in the file."""
        log = self.log(job)
        os.truncate(log, log.stat().st_size + size)
        self.write(job, "\n")

    def save(self, job: JobRecord, iteration: int) -> None:
        folder = Path(job.spec.save_dir) / sessions.folder_name(iteration)
        folder.mkdir(parents=True)
        (folder / ".metadata").write_text("")
        (folder / "metadata.json").write_text("{}")
        (Path(job.spec.save_dir) / TRACKER).write_text(str(iteration))

    def look(self, states: dict[str, str] | None = None, **facts: Any) -> Look:
        answers = {}
        for name, state in (states or {}).items():
            attempt = self.session.jobs[name].attempt
            assert attempt is not None
            answers[attempt.key] = JobStatus(state, **facts)
        with sessions.unsynced():
            return self.monitor.look(answers)

    def scanned(self) -> list[int]:
        return [job.cursor.scanned for job in self.jobs]


def test_a_runaway_log_holds_up_neither_the_checkpoint_nor_the_rule_of_a_small_one(
    tmp_path: Path,
) -> None:
    crowd = Crowd(tmp_path, 2, BAD)
    runaway, small = crowd.jobs
    crowd.grow(runaway, 5 * LIMIT)
    places = [0]
    for iteration in (100, 200):
        crowd.write(small, LINE.format(iteration) + f"a rather bad line {iteration}\n")
        crowd.save(small, iteration)
        look = crowd.look()
        assert look.has_more
        assert [e.kind for e in look.events] == ["log_matched", "checkpoint_complete"]
        assert {event.job for event in look.events} == {small.spec.name}
        assert small.iteration == iteration
        places.append(runaway.cursor.scanned)
        assert 0 < places[-1] - places[-2] <= LIMIT
    while crowd.look().has_more:
        pass
    assert runaway.cursor.scanned == crowd.log(runaway).stat().st_size


def test_twenty_runaway_logs_take_no_more_of_a_look_than_one_and_get_as_much_each(
    tmp_path: Path,
) -> None:
    crowd = Crowd(tmp_path, 21)
    *runaway, small = crowd.jobs
    for job in runaway:
        crowd.grow(job, LIMIT)
    before = crowd.scanned()
    for look in (1, 2, 3):
        crowd.write(small, LINE.format(look))
        assert crowd.look().has_more
        assert small.iteration == look
        read = [now - then for now, then in zip(crowd.scanned(), before, strict=True)]
        before = crowd.scanned()
        assert sum(read) <= LIMIT + (1 << 18)
        assert max(read[:-1]) - min(read[:-1]) <= 1 << 16
        assert min(read[:-1]) > 0


def test_twenty_logs_of_short_progress_lines_take_a_bounded_number_of_lines(
    tmp_path: Path,
) -> None:
    crowd = Crowd(tmp_path, 20)
    for job in crowd.jobs:
        crowd.write(job, "".join(map(LINE.format, range(1, 6001))))
    least = LINE.format(1)
    for _ in range(2):
        before = sum(crowd.scanned())
        assert crowd.look().has_more
        assert sum(crowd.scanned()) - before <= 1.2 * MAX_LINES * len(least)
    while crowd.look().has_more:
        pass
    assert {job.iteration for job in crowd.jobs} == {6000}


def test_a_log_whose_every_line_is_an_event_leaves_turns_to_the_others_and_loses_none(
    tmp_path: Path,
) -> None:
    crowd = Crowd(tmp_path, 2, BAD)
    runaway, small = crowd.jobs
    count, found, most = 10_000, 0, 0
    crowd.write(runaway, "a rather bad line\n" * count)
    for look in range(1, 1000):
        crowd.write(small, LINE.format(look))
        seen = crowd.look()
        events = [event for event in seen.events if isinstance(event, LogMatched)]
        found, most = found + len(events), max(most, len(events))
        assert small.iteration == look
        if not seen.has_more:
            break
    assert found == count
    assert most <= 3 * EVENTS


def test_a_log_that_had_no_turn_has_the_first_one_in_the_next_look(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 12)
    with mock.patch.object(tail, "_MOST_OVER", -0.5), mock.patch.object(tail, "LIMIT", 65536):
        for job in crowd.jobs:
            crowd.grow(job, 1 << 17)
            crowd.write(job, LINE.format(7))
        looks = [tuple(n > 0 for n in crowd.scanned())]
        while not all(looks[-1]):
            assert crowd.look().has_more
            looks.append(tuple(n > 0 for n in crowd.scanned()))
    # Each look reads of one log; nobody has a second turn before all had their first.
    assert [sum(look) for look in looks] == list(range(13))


def test_a_job_that_ended_with_gigabytes_unread_has_its_verdict_in_a_bounded_number_of_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tmp_path, 2, BAD)
    job, other = crowd.jobs
    crowd.write(job, "a rather bad line that nobody will read\n")
    crowd.grow(job, 3 << 30)
    crowd.write(job, "a rather bad line at the end\n" + LINE.format(300))
    crowd.save(job, 300)
    size = crowd.log(job).stat().st_size
    # However long it takes here.
    monkeypatch.setattr(job_watch, "MOST_AT_END_S", math.inf)
    events = list(crowd.look({job.spec.name: "COMPLETED"}, exit_code=0).events)
    looks = 1
    while job.verdict is None:
        assert looks <= MOST_BEHIND / LIMIT + 2
        crowd.write(other, LINE.format(looks))
        events += crowd.look().events
        assert other.iteration == looks
        looks += 1
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, 300)
    (lost,) = [event for event in events if isinstance(event, LogLost)]
    assert lost.skipped == size - MOST_BEHIND
    assert str(crowd.log(job)) in lost.message and f"{lost.skipped} bytes" in lost.message
    assert job.warning == lost.message
    assert [e.line for e in events if isinstance(e, LogMatched)] == ["a rather bad line at the end"]


def test_an_ended_log_of_which_reading_takes_too_long_is_read_at_its_end_alone(
    tmp_path: Path,
) -> None:
    crowd = Crowd(tmp_path, 1, BAD)
    (job,) = crowd.jobs
    crowd.grow(job, 12 * LIMIT)
    crowd.write(job, "a rather bad line at the end\n" + LINE.format(300))
    crowd.save(job, 300)
    with mock.patch.object(job_watch, "MOST_AT_END", 4.0):
        look = crowd.look({job.spec.name: "COMPLETED"}, exit_code=0)
        events = list(look.events)
        looks = 1
        while look.has_more:
            look = crowd.look()
            events += look.events
            looks += 1
    assert looks < 8
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, 300)
    (lost,) = [event for event in events if isinstance(event, LogLost)]
    assert lost.skipped > 6 * LIMIT and "the last 1 MiB alone" in lost.message
    assert [e.line for e in events if isinstance(e, LogMatched)] == ["a rather bad line at the end"]


def test_an_ended_log_of_which_reading_takes_many_seconds_is_read_at_its_end_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crowd = Crowd(tmp_path, 2)
    job, other = crowd.jobs
    # Lines as a loop prints them, of which each says something, on a machine that is slow.
    crowd.write(job, LINE.format(7) * 300_000 + LINE.format(300))
    crowd.save(job, 300)
    clock = itertools.count(step=4)
    monkeypatch.setattr(job_watch, "perf_counter", lambda: next(clock))
    look = crowd.look({job.spec.name: "COMPLETED"}, exit_code=0)
    events, looks = list(look.events), 1
    while job.verdict is None:
        assert looks < MOST_AT_END_S
        crowd.write(other, LINE.format(looks))
        look = crowd.look()
        events += look.events
        assert other.iteration == looks
        looks += 1
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, 300)
    (lost,) = [event for event in events if isinstance(event, LogLost)]
    assert lost.skipped > END and "the last 1 MiB alone" in lost.message


def test_of_a_log_that_is_cut_twice_both_cuts_are_told(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 1)
    (job,) = crowd.jobs
    crowd.grow(job, 20 * LIMIT)
    crowd.write(job, LINE.format(300))
    crowd.save(job, 300)
    with (
        mock.patch.object(job_watch, "MOST_AT_END", 4.0),
        mock.patch.object(tail, "MOST_BEHIND", 12 * LIMIT),
    ):
        look = crowd.look({job.spec.name: "COMPLETED"}, exit_code=0)
        events = list(look.events)
        while look.has_more:
            look = crowd.look()
            events += look.events
    assert len([event for event in events if isinstance(event, LogLost)]) == 2


def test_many_logs_that_ended_together_are_read_whole(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 4)
    for job in crowd.jobs:
        crowd.grow(job, 2 * LIMIT)
        crowd.write(job, LINE.format(300))
        crowd.save(job, 300)
    with mock.patch.object(job_watch, "MOST_AT_END", 3.0):
        look = crowd.look(dict.fromkeys(crowd.session.jobs, "COMPLETED"), exit_code=0)
        events, looks = list(look.events), 1
        while look.has_more:
            look = crowd.look()
            events += look.events
            looks += 1
    assert looks > 3
    assert not [event for event in events if isinstance(event, LogLost)]
    assert {job.verdict for job in crowd.jobs} == {Verdict.FINISHED}


def test_a_running_jobs_log_is_read_whole_however_far_behind(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"first\n")
    os.truncate(log, MOST_BEHIND + 100)
    reading = read_new(log, LogCursor())
    assert reading.cursor.scanned == LIMIT and not reading.skipped and reading.more


def test_what_is_left_of_an_ended_log_begins_with_a_whole_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with mock.patch.object(tail, "MOST_BEHIND", 25):
        log.write_bytes(b"0123456789\n" * 10)
        reading = read_new(log, LogCursor(), final=True)
        assert [(line.offset, line.text) for line in reading.lines] == [
            (88, b"0123456789"),
            (99, b"0123456789"),
        ]
        assert (reading.skipped, reading.more) == (85, False)
        again = read_new(log, reading.cursor, final=True)
        assert (again.lines, again.lost) == ([], None)


def test_the_end_of_a_cancelled_job_waits_for_the_end_of_its_log(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 1, BAD)
    (job,) = crowd.jobs
    crowd.grow(job, 3 * LIMIT)
    crowd.write(job, "a rather bad line\n")
    job.cancel_requested = "by ann"
    look = crowd.look({job.spec.name: "CANCELLED"})
    assert look.has_more and not job.is_over
    while look.has_more:
        look = crowd.look()
    assert [event.kind for event in look.events][:2] == ["log_matched", "attempt_judged"]
    assert job.reason == "cancelled: by ann"


def test_a_job_that_is_over_leaves_no_log_to_read_on(tmp_path: Path) -> None:
    crowd = Crowd(tmp_path, 1)
    (job,) = crowd.jobs
    crowd.grow(job, 3 * LIMIT)
    assert crowd.look().has_more
    with sessions.unsynced():
        crowd.session.settle(job, Verdict.FAILED, "as somebody wished")
    assert not crowd.look().has_more


@pytest.mark.parametrize("jobs", [1, 3])
def test_a_look_that_finds_nothing_says_that_nothing_is_left(tmp_path: Path, jobs: int) -> None:
    assert not Crowd(tmp_path, jobs).look().has_more


def test_a_rehearsal_reads_a_log_whole_that_an_ended_job_would_not_be_read_of(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    log.write_text("a rather bad line\n" * 100 + "a rather bad line")
    with mock.patch.object(tail, "MOST_BEHIND", 25):
        rehearsal = Rehearsal(compose("demo", [*TINY, BAD]).experiment, log, Kind.TRAIN)
        assert len(list(rehearsal.run())) == 101
    assert rehearsal.warning is None
