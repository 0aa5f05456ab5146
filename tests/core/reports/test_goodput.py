"""Where the hours went: parts that add up to the scheduler's hours, whatever the log says."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from autoexp.jobs.limits import spent_gpu_hours
from autoexp.monitor.line_events import metrics_row
from autoexp.reports import results
from autoexp.reports.upkeep.goodput import PARTS, Goodput, goodput, goodput_of, with_energy
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.metrics import Logged
from autoexp.schedulers.slurm.energy import read_energy
from autoexp.session.session import Session
from tests.builders import attempt_of
from tests.core.story import StoryOf
from tests.fakes.slurm import Fakes

BEGUN = datetime(2026, 3, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return BEGUN + timedelta(seconds=seconds)


def attempt(
    number: int, start: float, first: float | None, last: float | None, end: float, **changes: Any
) -> Any:
    return attempt_of(
        f"a{number}",
        number=number,
        submitted_at=at(start - 1800),
        started_at=at(start),
        first_logged_at=None if first is None else at(first),
        last_logged_at=None if last is None else at(last),
        ended_at=at(end),
        gpus=4,
        job_id=str(100 + number),
        **changes,
    )


def logged(session: Session, *lines: tuple[int, float | None]) -> None:
    rows = [metrics_row(Logged(iteration, 2.0, 0.1, each)) for iteration, each in lines]
    session.log_progress(session.jobs["tiny"], rows)


def parts(found: Goodput) -> dict[str, float]:
    return {part: round(getattr(found, part) / 4 * 3600, 3) for part in PARTS}


def test_hours_are_divided_into_what_was_new_lost_slow_and_waited_for(story_of: StoryOf) -> None:
    session = story_of().session
    job = session.jobs["tiny"]
    # 100 s of start-up, 40 iterations of a second and 100 s of saving; then it hangs for 200 s and
    # begins again at 20: 20 iterations are done twice, and 10 new ones take three seconds each.
    job.attempts = [attempt(1, 0, 110, 240, 440), attempt(2, 440, 550, 590, 600)]
    first = [(n, 1.0) for n in (10, 20, 30, 40)]
    logged(session, *first, (30, 1.0), (40, 1.0), (50, 3.0))
    found = goodput_of(session, job)
    assert parts(found) == {
        "new": 50.0,
        "twice": 20.0,
        "slow": 20.0,
        "startup": 200.0,
        "saving": 100.0,
        "ending": 210.0,
        "other": 0.0,
    }
    assert (found.unit, found.hours) == ("GPU hours", pytest.approx(4 * 600 / 3600))
    assert found.queued_h == pytest.approx(1.0)
    assert found.share == pytest.approx(50 / 600)


numbers = st.floats(0, 1e5)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    times=st.lists(st.tuples(numbers, numbers, numbers), max_size=4),
    lines=st.lists(
        st.tuples(st.integers(1, 1000), st.one_of(st.none(), st.floats(0, 1e4))), max_size=12
    ),
    seen=st.booleans(),
)
def test_the_parts_add_up_to_the_hours_of_accounting(
    session_factory: Any, times: list[Any], lines: list[Any], seen: bool
) -> None:
    session = session_factory()
    job = session.jobs["tiny"]
    job.attempts = [
        attempt(n, 0, first if seen else None, last if seen else None, end, earlier_gpu_hours=n)
        for n, (first, last, end) in enumerate(times)
    ]
    logged(session, *lines)
    found = goodput_of(session, job)
    hours = sum(map(spent_gpu_hours, job.attempts))
    assert found.hours == pytest.approx(hours)
    assert sum(getattr(found, part) for part in PARTS) == pytest.approx(hours, rel=0.01)
    assert all(getattr(found, part) >= 0 for part in PARTS)


@pytest.fixture
def session_factory(session_path: Path) -> Any:
    def make() -> Session:
        (session_path / "metrics" / "tiny.csv").unlink(missing_ok=True)
        return Session.load(session_path)

    return make


def test_what_the_monitor_read_is_what_is_divided(story_of: StoryOf) -> None:
    story = story_of()
    story.log(10)
    story.look()
    story.log(20)
    story.look()
    attempt = Session.load(story.path).jobs["tiny"].attempts[0]
    assert attempt.first_logged_at is not None and attempt.last_logged_at is not None
    assert attempt.first_logged_at <= attempt.last_logged_at


def test_exports_have_each_part_and_comparisons_the_share(story_of: StoryOf) -> None:
    session = story_of().session
    session.jobs["tiny"].attempts = [attempt(1, 0, 10, 40, 40)]
    logged(session, (10, 1.0), (20, 1.0))
    (row, *_) = results.rows([session])
    assert row["goodput"] == pytest.approx(0.5)
    assert sum(row[f"hours_{part}"] for part in PARTS) == pytest.approx(row["gpu_hours_spent"])
    assert results.compared([session])[0]["goodput"] == pytest.approx(0.5)


def test_energy_is_that_of_accounting_and_else_it_is_not_measured(
    story_of: StoryOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_energy(["101|7200000", "101.batch|3600000", "102|", "102.0|36", "x"]) == {
        "101": 2.0,
        "102": 1e-5,
    }
    assert read_energy(["103|4294967294", "104|0"]) == {}
    session = story_of().session
    session.jobs["tiny"].attempts = [attempt(1, 0, None, None, 40)]
    rows = goodput([session])
    assert [row.kwh for row in with_energy(session, rows)] == [None]
    (tmp_path / "bin").mkdir()
    fakes = Fakes(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    changes = {"slurm": SlurmCluster()}
    session.meta.experiment = session.experiment.model_copy(update=changes)
    fakes.says("sacct", "101|7200000")
    assert [row.kwh for row in with_energy(session, rows)] == [2.0]
    fakes.fails("sacct", "slurm_persist_conn_open_without_init: failed")
    assert [row.kwh for row in with_energy(session, rows)] == [None]
