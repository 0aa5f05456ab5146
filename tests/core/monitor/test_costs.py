"""What the monitor costs, in calls and bytes: never in seconds. The seconds are `make bench`."""

import functools
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from autoexp.jobs.record import JobRecord
from autoexp.logs import matcher
from autoexp.logs.engines import Linear
from autoexp.logs.lines import Piece
from autoexp.logs.patterns import Wanted
from autoexp.logs.tail import SEAM
from autoexp.monitor.monitor import Monitor
from autoexp.rules.actions import Start
from autoexp.session.session import Session
from bench.cases import core_tick, log_rules, scheduler_queries, session_disk
from bench.simulate import simulated
from bench.world import sessions
from bench.world.cluster import Rates
from bench.world.measure import counted_calls, traffic
from tests.sources import ROOT

RULES = "monitoring=production"


def calls_of_an_idle_look(folder: Path, jobs: int, events: int = 0) -> Counter[str]:
    """What a look at N jobs calls, N at a time, when nothing is new."""
    session = Session.load(sessions.build(folder, jobs, RULES, lines=5))
    with sessions.unsynced():
        session_disk.remember(session, events)
    monitor = core_tick.settled(session)
    with counted_calls(python=True) as calls:
        monitor.look({})
    return calls


def test_an_idle_job_costs_two_stats_and_no_other_call_into_the_system(tmp_path: Path) -> None:
    calls = calls_of_an_idle_look(tmp_path, 7)
    assert calls["stat"] == 14
    assert not {"open", "pread", "read", "scandir", "listdir", "write", "fsync"} & set(calls)


def test_an_idle_jobs_cost_grows_neither_with_jobs_nor_with_events(tmp_path: Path) -> None:
    few = calls_of_an_idle_look(tmp_path / "few", 5)
    many = calls_of_an_idle_look(tmp_path / "many", 10, events=1000)
    fixed = 2 * few.total() - many.total()
    # Ten jobs cost twice what five do, but for what a look costs by itself.
    assert 0 <= fixed < 60
    assert many.total() - fixed <= 35 * 10, many


def test_an_idle_look_writes_nothing(tmp_path: Path) -> None:
    session = Session.load(sessions.build(tmp_path, 5, RULES, lines=5))
    monitor = core_tick.settled(session)
    assert traffic(functools.partial(monitor.look, {})).written == 0


def test_what_is_read_is_what_is_new_however_big_the_log_is(tmp_path: Path) -> None:
    read = []
    for lines in (10, 3000):
        session = Session.load(sessions.build(tmp_path / str(lines), 2, RULES, lines=lines))
        monitor = core_tick.settled(session)
        new = sessions.grow(session, 10_000, 20)
        read.append(traffic(functools.partial(monitor.look, {})).read)
        # The seam before the cursor is read twice, once to know the file and once to go on.
        assert new <= read[-1] <= new + 2 * 3 * SEAM
    assert read[0] == read[1]


def test_a_resumed_monitor_reads_new_bytes_only(tmp_path: Path) -> None:
    path = sessions.build(tmp_path, 2, RULES, lines=3000, saves=1)
    core_tick.settled(Session.load(path))
    session = Session.load(path)
    new = sessions.grow(session, 10_000, 3)
    monitor = Monitor(session)
    # Checkpoints are looked at once: a tracker and a metadata file each.
    assert traffic(functools.partial(monitor.look, {})).read < new + 2 * (3 * SEAM + 100)


@pytest.mark.parametrize("jobs", [1, 40])
def test_the_scheduler_is_asked_once_per_tick(tmp_path: Path, jobs: int) -> None:
    asked = scheduler_queries.Ticks(tmp_path, jobs)
    asked.cluster.shows([(attempt, "RUNNING") for attempt in asked.attempts])
    assert [asked.tick(), asked.tick()] == [1, 1]
    ended, *others = asked.attempts
    running = [(attempt, "RUNNING") for attempt in others]
    asked.cluster.shows([(ended, "COMPLETED"), *running])
    assert asked.tick() == 1  # its exit file tells the rest
    asked.cluster.shows(running)
    assert asked.tick() == (1 if others else 0)


def test_accounting_is_asked_once_for_all_that_have_left_no_exit_file(tmp_path: Path) -> None:
    asked = scheduler_queries.Ticks(tmp_path, 40)
    asked.cluster.shows([(attempt, "RUNNING") for attempt in asked.attempts])
    asked.tick()
    asked.cluster.shows([(attempt, "COMPLETED") for attempt in asked.attempts])
    for attempt in asked.attempts:
        (Path(attempt.log).parent / "exit.json").unlink()
    assert asked.tick() == 2


def test_a_progress_line_costs_a_bounded_number_of_calls(tmp_path: Path) -> None:
    session = Session.load(sessions.build(tmp_path, 1, RULES, lines=100))
    monitor = core_tick.settled(session)
    totals = []
    with sessions.unsynced():
        for first, lines in ((101, 100), (201, 300)):
            sessions.grow(session, first, lines)
            with counted_calls(python=True) as calls:
                monitor.look({})
            totals.append(calls.total())
    assert totals[1] - totals[0] <= 142 * 200


def test_an_event_writes_as_much_among_many_jobs_and_events_as_among_few(tmp_path: Path) -> None:
    written = []
    for jobs, events in ((2, 0), (30, 2000)):
        session = Session.load(sessions.build(tmp_path / str(jobs), jobs, lines=5))
        with sessions.unsynced():
            session_disk.remember(session, events)
            monitor = core_tick.settled(session)
            change = session_disk.change_state(session, monitor, 1)
            written.append((change, session_disk.complete_checkpoint(session, monitor, 1)))
    assert written[0] == pytest.approx(written[1], abs=20)


def test_lines_that_no_rule_wants_are_not_looked_at_one_by_one(engine: type) -> None:
    rules = matcher.matcher(log_rules.production(), engine)
    data = b"".join(b"rank %d: nothing to see in step %d\n" % (n % 8, n) for n in range(5000))
    with counted_calls() as calls:
        assert list(rules.search(Piece(0, 0, data))) == []
    # A search or two per pattern in the whole, and none in its five thousand lines.
    assert calls.total() < 100


def test_lines_that_rules_want_are_matched_once_each(engine: type) -> None:
    rules = matcher.matcher([Wanted("r", "boom (?P<n>[0-9]+)", True)], engine)
    data = b"".join(b"boom %d\n" % n if n % 100 == 0 else b"fine\n" for n in range(5000))
    with counted_calls() as calls:
        assert len(list(rules.search(Piece(0, 0, data)))) == 50
    # RE2 is asked once a line; as the engine it finds each of them, and then no more.
    assert calls["Match"] == 50 + (51 if engine is Linear else 0), calls


def test_the_help_imports_nothing_that_takes_long() -> None:
    heavy = {"prefect", "pydantic", "hydra", "matplotlib", "numpy", "rich", "submitit", "hyperscan"}
    assert not heavy & modules_of("--help")


def test_a_plan_imports_neither_prefect_nor_what_draws() -> None:
    assert not {"prefect", "matplotlib", "numpy", "submitit"} & modules_of("plan", "demo")


def test_reading_a_session_imports_nothing_that_composes_or_draws(tmp_path: Path) -> None:
    with sessions.unsynced():
        path = sessions.build(tmp_path, 1, lines=1)
    heavy = {"prefect", "hydra", "omegaconf", "antlr4", "matplotlib", "numpy", "submitit"}
    for words in (("status", path), ("explain", path, "run00000"), ("events", path)):
        assert not heavy & modules_of(*map(str, words)), words


def modules_of(*words: str) -> set[str]:
    """Packages that a command has imported by its end."""
    code = (
        "import sys\n"
        "from autoexp.cli.main import main\n"
        "try:\n"
        f"    main({list(words)!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stderr.split("\n")[-2].split())


def test_a_simulated_week_loses_nothing_and_doubles_nothing() -> None:
    rates = Rates(answers_lost_per_submission=0.2, refused_for_now_per_submission=0.1)
    with simulated(jobs=60, days=4, seed=3, rates=rates) as (simulation, session):
        simulation.check(session)
        assert simulation.fate.kills > 0 and len(session.jobs) == 60
        assert simulation.cluster.calls["squeue --name"] > 0  # answers were lost, too

        key = session.meta.key("f0000", 1)
        simulation.cluster.submissions[key] += 1
        with pytest.raises(AssertionError, match="more than once"):
            simulation.check(session)
        simulation.cluster.submissions[key] -= 1
        key = next(k for k, a in session.actions.items() if isinstance(a.action, Start))
        session.actions["again"] = session.actions[key]
        with pytest.raises(AssertionError, match="decided twice"):
            simulation.check(session)


def test_a_look_saves_the_progress_of_as_many_jobs_as_it_has_time_for_and_the_next_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.load(sessions.build(tmp_path, 9, RULES, lines=5))
    monitor = core_tick.settled(session)
    clock, saved = [time.monotonic() + 3600.0], list[str]()
    save = session.save_job

    def slow(job: JobRecord) -> None:
        clock[0] += 0.04
        saved.append(job.spec.name)
        save(job)

    monkeypatch.setattr(session, "save_job", slow)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    names, looks = list(session.jobs), list[int]()
    for _ in range(6):
        sessions.grow(session, 6, 1)
        before = len(saved)
        monitor.look({})
        looks.append(len(saved) - before)
    assert looks == [3, 3, 3, 0, 0, 0]
    assert saved == names  # those that have waited longest come first, and none twice
