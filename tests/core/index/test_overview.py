"""A large session is read by what has changed, and what is shown is what its records say."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from autoexp.errors import BadInput, SessionDamaged
from autoexp.index.overview import Overview
from autoexp.model import now
from autoexp.reports.explain import explain_job
from autoexp.reports.log_end import failed_logs_of
from autoexp.reports.status import Shown, shown, status_of, whole_status
from autoexp.session.action_records import ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from bench.world import sessions
from bench.world.large import large
from bench.world.measure import traffic

JOBS, EVENTS = 60, 400
FEW = 2
"""The indexes of the session and of its jobs."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return large(tmp_path_factory.mktemp("large"), JOBS, EVENTS)


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """The same session for each test: copied, aged, without an index."""
    shutil.copytree(made, tmp_path / "big")
    sessions.age(tmp_path / "big")
    return tmp_path / "big"


def opened(work: Callable[[], object]) -> int:
    """Number of files that `work` opens."""
    with mock.patch.object(os, "open", wraps=os.open) as opening:
        work()
    return opening.call_count


def change(path: Path, name: str, **changes: object) -> None:
    """Give a job another record, as a monitor does."""
    with sessions.unsynced():
        session = Session.load(path)
        session.change_job(session.job(name), **changes)


def test_a_second_look_opens_no_record(path: Path) -> None:
    assert opened(Overview(path).read) >= JOBS
    assert opened(Overview(path).read) <= FEW
    assert opened(lambda: shown(Overview(path).read())) <= FEW + 1


def test_a_look_opens_the_records_that_have_changed(path: Path) -> None:
    Overview(path).read()
    change(path, "f00001-cd3", reason="looked at again")
    overview = Overview(path)
    assert opened(overview.read) <= FEW + 1
    assert overview.jobs["f00001-cd3"].at(now(), None).reason == "looked at again"
    change(path, "f00001-cd3", reason="and again")
    assert opened(overview.read) == 1
    assert overview.jobs["f00001-cd3"].at(now(), None).reason == "and again"


def test_a_record_that_was_put_back_in_place_is_seen(path: Path) -> None:
    Overview(path).read()
    file = path / "jobs" / "f00001.json"
    file.write_text(file.read_text().replace("reached its target", "reached another end"))
    assert Overview(path).read().jobs["f00001"].at(now(), None).reason == "reached another end"


def test_a_fresh_record_is_not_kept_since_it_may_change_within_the_clocks_grain(
    path: Path,
) -> None:
    change(path, "f00001", reason="just now")
    Overview(path).read()
    kept = json.loads((path / "index" / "jobs.json").read_text())["rows"]
    assert len(kept) == JOBS - 1 and "f00001" not in kept


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": "0", "rows": {}}', "\0" * 99])
def test_an_index_that_is_damaged_or_of_another_version_is_made_anew(path: Path, text: str) -> None:
    before = whole_status(Overview(path).read())
    for name in ("jobs", "actions", "session"):
        (path / "index" / f"{name}.json").write_text(text)
    assert whole_status(Overview(path).read()) == before
    assert opened(Overview(path).read) <= FEW


def test_a_session_is_shown_from_its_index_as_from_its_records(path: Path) -> None:
    status = status_of(Session.load(path))
    expected = status.model_dump(mode="json")
    assert len(expected["jobs"]) == JOBS and expected["events"] == EVENTS
    assert expected["actions"]["done"] > 50 and len(expected["checkpoints"]) == EVENTS / 4
    for _ in range(2):
        overview = Overview(path).read()
        assert whole_status(overview).model_dump(mode="json") == expected
        assert shown(overview) == Shown.of(status)


def test_a_lost_record_is_damage_as_ever(path: Path) -> None:
    Overview(path).read()
    (path / "jobs" / "f00001-cd7.json").unlink()
    with pytest.raises(SessionDamaged, match="no file for f00001-cd7"):
        Overview(path).read()
    (path / "jobs" / "f00001-cd7.json").write_text("{")
    with pytest.raises(SessionDamaged, match=r"f00001-cd7\.json does not parse"):
        Overview(path).read()


def test_a_session_is_over_once_no_action_is_left(path: Path) -> None:
    assert not Overview(path).read().is_over
    change(path, "f00000", verdict=Verdict.FINISHED)
    with sessions.unsynced():
        session = Session.load(path)
        job = session.job("f00000")
        session.change_attempt(job, job.attempts[0], {"state": "COMPLETED"})
    assert Overview(path).read().is_over
    with sessions.unsynced():
        session.change_action(next(iter(session.actions.values())), status=ActionStatus.PENDING)
    assert not Overview(path).read().is_over


def test_nobody_but_the_owner_writes_an_index(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    assert len(Overview(path).read().jobs) == JOBS
    assert not (path / "index").exists()


def test_a_session_that_cannot_be_written_is_read_all_the_same(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "read-only file system")

    monkeypatch.setattr("autoexp.storage.atomic.make_directory", refuse)
    assert len(Overview(path).read().jobs) == JOBS


def test_an_explanation_reads_one_job_of_many(path: Path) -> None:
    told = explain_job(path, "f00002-cd3").sentences
    assert told[0] == "f00002-cd3 has finished: reached its target."
    assert any("rule start-f00002-cd3 did" in line for line in told)
    # Records of it, its parent and its action, session.json, an index, and the journal twice.
    assert opened(lambda: explain_job(path, "f00002-cd3").sentences) <= 8
    with pytest.raises(BadInput, match="no such job"):
        explain_job(path, "../../etc/passwd")


def test_logs_of_jobs_that_failed_are_shown_without_their_records(path: Path) -> None:
    for name in ("f00001-cd3", "f00002-cd3"):
        change(path, name, verdict=Verdict.FAILED)
    log = path / "failed.log"
    log.write_text("the end\n")
    with sessions.unsynced():
        session = Session.load(path)
        for name in ("f00001-cd3", "f00002-cd3"):
            job = session.job(name)
            session.change_attempt(job, job.attempts[-1], {"log": str(log)})
    sessions.age(path)
    Overview(path).read()
    overview = Overview(path)
    assert opened(lambda: failed_logs_of(overview.read())) <= FEW
    found = failed_logs_of(overview)
    assert [(each.job, each.lines()) for each in found] == [
        ("f00001-cd3", ["the end"]),
        ("f00002-cd3", ["the end"]),
    ]


def test_a_session_without_jobs_has_no_first_one(path: Path) -> None:
    overview = Overview(path).read()
    assert overview.first_job == "f00000"
    overview.jobs.clear()
    with pytest.raises(BadInput, match="has no jobs yet"):
        _ = overview.first_job


def test_what_a_look_reads_is_its_index(path: Path) -> None:
    Overview(path).read()
    size = sum(file.stat().st_size for file in (path / "index").iterdir())
    records = sum(file.stat().st_size for file in (path / "jobs").iterdir())
    assert traffic(lambda: Overview(path).read()).read <= size < records / 5
