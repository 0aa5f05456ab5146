"""What a publication reads: nothing of the journal that was read before."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from autoexp.config.compose import compose
from autoexp.flows.publishing import page
from autoexp.flows.publishing.artifacts import ArtifactPublisher, share_done
from autoexp.flows.publishing.events import EventEmitter
from autoexp.model import now
from autoexp.reports.status import JobSummary, Status, status_of
from autoexp.rules.events import LogMatched
from autoexp.session.journal import Journal, Position
from autoexp.session.session import Session
from tests.builders import create

MANY = 20_000


def line(number: int) -> LogMatched:
    return LogMatched.model_validate(
        {
            "job": "demo",
            "attempt": 1,
            "rule": "r",
            "severity": "warning",
            "iteration": 1,
            "generation": 0,
            "offset": number,
            "line": "x",
            "values": {},
            "every": True,
        }
    )


@pytest.fixture(scope="module")
def long_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = create(compose("demo", ["cooldowns=[]"]), tmp_path_factory.mktemp("root"))
    time = now().isoformat()
    with (path / "events.jsonl").open("w") as file:
        for number in range(MANY):
            event = line(number)
            content = {"time": time, "key": event.key, "event": event.model_dump(mode="json")}
            file.write(json.dumps(content) + "\n")
    return path


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many lines stand before each that is read from disk."""
    numbers: list[int] = []
    parse = Journal._parse

    def counted(journal: Journal, line: bytes, start: Position) -> object:
        numbers.append(start.entries)
        return parse(journal, line, start)

    monkeypatch.setattr(Journal, "_parse", counted)
    return numbers


def test_a_publication_reads_nothing_of_a_long_journal_again(
    long_session: Path, parsed: list[int]
) -> None:
    session = Session.load(long_session)
    assert len(parsed) == MANY
    parsed.clear()
    emitter = EventEmitter(session)
    for number in range(MANY, MANY + 5):
        session.record([line(number)])
        text = page.session_page(session, status_of(session))
        assert status_of(session).events == number + 1
        emitter._note_journal()

    assert parsed == []
    assert text.count("\n- ") >= 12
    pending = [event.key for event in emitter._pending]
    assert pending == [line(number).key for number in range(MANY, MANY + 5)]


def test_who_looks_at_a_session_again_reads_what_is_new_in_its_journal(
    long_session: Path, parsed: list[int]
) -> None:
    writer, seen = Session.load(long_session), Session.load(long_session)
    before = len(seen.journal)
    writer.record([line(MANY + 100), line(MANY + 101)])
    parsed.clear()

    again = Session.load(long_session, seen.journal)

    assert parsed == [before, before + 1]
    assert len(again.journal) == before + 2


async def test_a_publication_works_out_the_status_of_its_session_once(
    long_session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = Session.load(long_session)
    calls: list[Session] = []
    bars: list[str] = []

    def counted(of: Session) -> Status:
        calls.append(of)
        return status_of(of)

    async def run(function: Any, *arguments: Any) -> Any:
        return function(*arguments)

    async def nothing(*arguments: Any) -> None:
        del arguments

    async def note(job: JobSummary) -> None:
        bars.append(job.name)

    monkeypatch.setattr("autoexp.reports.status.status_of", counted)
    monkeypatch.setattr("autoexp.flows.publishing.artifacts.status_of", counted)
    face = ArtifactPublisher.__new__(ArtifactPublisher)
    face._session, face._artifacts, face._started = session, {"plan": uuid4()}, set(session.jobs)
    face._writer = SimpleNamespace(run=run)  # type: ignore[assignment]
    face._began_at = face._plotted_at = time.monotonic()
    face._is_ending = False
    for name, stub in (("_tag", nothing), ("_publish_page", nothing), ("_publish_bar", note)):
        monkeypatch.setattr(face, name, stub)
    await face._publish_artifacts()
    assert calls == [session]
    assert bars == list(session.jobs)


@pytest.mark.parametrize(
    ("iteration", "share"), [(None, 0.0), (0, 0.0), (30, 50.0), (60, 100.0), (70, 100.0)]
)
def test_no_progress_beyond_its_end_is_given_to_prefect(
    tmp_path: Path, iteration: int | None, share: float
) -> None:
    path = create(compose("demo", ["cooldowns=[]"]), tmp_path)
    (job,) = status_of(Session.load(path)).jobs
    changed = job.model_copy(update={"iteration": iteration, "target_iteration": 60})
    assert share_done(changed) == share
