"""The events of one job are read where they lie, and never where they are not."""

from pathlib import Path

import pytest

from autoexp.errors import SessionDamaged
from autoexp.index import events as module
from autoexp.index.events import EventIndex
from autoexp.rules.events import CheckpointComplete, StateChanged
from autoexp.session.journal import Entry, Journal
from bench.world.measure import traffic

MANY = 2000
BLOCK = 8192
"""Bytes that a buffered reading takes at least."""


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session's folder with a long journal: each hundredth event is of `mine`."""
    append(tmp_path, 0, MANY)
    return tmp_path


def append(session: Path, first: int, count: int) -> None:
    journal = Journal(session / "events.jsonl")
    journal.load()
    journal.append(event(number) for number in range(first, first + count))


def event(number: int) -> StateChanged | CheckpointComplete:
    if number % 100 == 7:
        return CheckpointComplete(job="mine", iteration=number, path=f"/saves/{number}")
    job = "mine" if number % 100 == 0 else f"other{number % 50}"
    return StateChanged(job=job, attempt=1, position=number, old="PENDING", new="RUNNING")


def keys(entries: list[Entry]) -> list[str]:
    return [entry.event.key for entry in entries]


def expected(session: Path, job: str = "mine") -> list[str]:
    every = Journal(session / "events.jsonl").entries
    return [entry.event.key for entry in every if entry.event.job == job]


def test_the_events_of_a_job_are_read_without_the_others(session: Path) -> None:
    assert keys(EventIndex(session).read().of_job("mine")) == expected(session)
    index = (session / "index" / "events.json").stat().st_size
    size = (session / "events.jsonl").stat().st_size
    found = EventIndex(session)
    assert traffic(found.read).read <= index + BLOCK
    assert found.count == MANY and len(found.checkpoints) == MANY / 100
    assert keys(found.of_job("other3")) == expected(session, "other3")
    assert index < size / 4


def test_what_was_appended_since_is_read_alone(session: Path) -> None:
    EventIndex(session).read()
    append(session, MANY, 10)
    index = (session / "index" / "events.json").stat().st_size
    found = EventIndex(session)
    assert traffic(found.read).read <= index + 2 * BLOCK
    assert found.count == MANY + 10
    assert keys(found.of_job("mine")) == expected(session)


def test_the_index_is_written_again_once_that_saves_work(session: Path) -> None:
    EventIndex(session).read()
    file = session / "index" / "events.json"
    before = file.read_bytes()
    append(session, MANY, 10)
    EventIndex(session).read()
    assert file.read_bytes() == before
    append(session, MANY + 10, module._WORTH)
    EventIndex(session).read()
    assert file.read_bytes() != before


def test_a_journal_that_was_put_back_is_read_anew(session: Path) -> None:
    EventIndex(session).read()
    file = session / "events.jsonl"
    text = file.read_text()
    file.write_text(text.replace('"mine"', '"more"'))  # in place, and no byte longer
    assert EventIndex(session).read().of_job("mine") == []
    assert keys(EventIndex(session).read().of_job("more")) == expected(session, "more")
    file.unlink()
    file.write_text(text[: text.index("\n", len(text) // 2) + 1])
    found = EventIndex(session).read()
    assert found.count < MANY and keys(found.of_job("mine")) == expected(session)


@pytest.mark.parametrize("was, becomes", [('"mine":[', '"mine":[5,'), ('"mine":[0,', '"mine":[')])
def test_an_index_with_wrong_places_is_found_out_or_harmless(
    session: Path, was: str, becomes: str
) -> None:
    EventIndex(session).read()
    file = session / "index" / "events.json"
    text = file.read_text()
    assert was in text
    file.write_text(text.replace(was, becomes))
    found = keys(EventIndex(session).read().of_job("mine"))
    assert set(found) <= set(expected(session))
    if "5," in becomes:
        assert found == expected(session)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"version": "0"}'])
def test_a_damaged_index_is_made_anew(session: Path, text: str) -> None:
    EventIndex(session).read()
    (session / "index" / "events.json").write_text(text)
    assert keys(EventIndex(session).read().of_job("mine")) == expected(session)


def test_a_damaged_line_behind_the_index_is_named_by_its_number(session: Path) -> None:
    EventIndex(session).read()
    with (session / "events.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(SessionDamaged, match=f"line {MANY + 1} does not parse"):
        EventIndex(session).read()


# The newest events, without an index


def test_the_newest_events_are_read_from_the_end(session: Path) -> None:
    file = session / "events.jsonl"
    every = [entry.event.key for entry in Journal(file).entries]
    journal = Journal(file)
    newest: list[Entry] = []
    assert traffic(lambda: newest.extend(journal.newest(5))).read < file.stat().st_size / 2
    assert keys(newest) == every[-5:]
    assert keys(Journal(file).newest(MANY + 5)) == keys(Journal(file).newest(MANY)) == every


def test_a_reader_of_the_newest_goes_on_behind_them(session: Path) -> None:
    journal = Journal(session / "events.jsonl")
    journal.newest(5)
    assert list(journal.new_entries()) == []
    append(session, MANY, 3)
    assert len(list(journal.new_entries())) == 3


def test_a_line_that_is_being_written_is_none_of_the_newest(session: Path) -> None:
    file = session / "events.jsonl"
    last = keys(Journal(file).newest(1))
    with file.open("a") as opened:
        opened.write('{"time": "2026')
    assert keys(Journal(file).newest(1)) == last


def test_a_damaged_line_among_the_newest_is_named_by_its_number(session: Path) -> None:
    with (session / "events.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(SessionDamaged, match=f"line {MANY + 1} does not parse"):
        Journal(session / "events.jsonl").newest(3)


def test_there_may_be_no_events_yet(tmp_path: Path) -> None:
    assert Journal(tmp_path / "events.jsonl").newest(3) == []
    assert EventIndex(tmp_path).read().of_job("mine") == []
