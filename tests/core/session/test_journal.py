"""The journal is read on from where a reader was, and never from the start again."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp.errors import SessionDamaged, SessionHeld
from autoexp.rules.events import StateChanged
from autoexp.session import journal as journals
from autoexp.session.journal import START, Journal
from autoexp.storage import atomic
from tests.disks import FullDisk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.jsonl"


def event(number: int) -> StateChanged:
    return StateChanged(job="t", attempt=1, position=number, old="PENDING", new="RUNNING")


def events(*numbers: int) -> Iterator[StateChanged]:
    return (event(number) for number in numbers)


def positions(entries: "list[journals.Entry]") -> list[int]:
    return [entry.event.position for entry in entries if isinstance(entry.event, StateChanged)]


def written(path: Path, *numbers: int) -> Journal:
    journal = Journal(path)
    journal.append(events(*numbers))
    return journal


def loaded(path: Path) -> Journal:
    journal = Journal(path)
    journal.load()
    return journal


def test_a_reader_is_given_what_is_behind_its_place(path: Path) -> None:
    journal = written(path, 1, 2)
    entries, place = journal.since(START)
    assert positions(entries) == [1, 2]
    assert place == journal.position == (2, path.stat().st_size)
    assert journal.since(place) == ([], place)

    journal.append(events(3))
    entries, after = journal.since(place)
    assert positions(entries) == [3]
    assert after == (3, path.stat().st_size)


@pytest.mark.parametrize("start", range(12))
def test_what_is_no_longer_in_memory_is_read_from_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    monkeypatch.setattr(journals, "_RECENT", 4)
    journal = Journal(path)
    places = []
    for number in range(12):
        places.append(journal.position)
        journal.append(events(number))
    for one in (journal, loaded(path)):
        entries, place = one.since(places[start])
        assert positions(entries) == list(range(start, 12))
        assert place == journal.position
        assert positions(one.last(3)) == [9, 10, 11]


class Reading:
    """Counts the bytes that are read of files that are opened from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        opened = Path.open

        def opening(path: Path, *args: Any, **kwargs: Any) -> Any:
            file = opened(path, *args, **kwargs)
            reading = self

            class Counted:
                def __enter__(self) -> "Counted":
                    return self

                def __exit__(self, *_: object) -> None:
                    file.close()

                def __iter__(self) -> Iterator[bytes]:
                    for line in file:
                        reading.bytes += len(line)
                        yield line

                def read(self, size: int) -> bytes:
                    reading.bytes += size
                    return bytes(file.read(size))

                def seek(self, place: int) -> None:
                    file.seek(place)

            return Counted()

        monkeypatch.setattr(Path, "open", opening)


def test_a_publication_reads_no_byte_of_the_journal(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = written(path, *range(20_000))
    place = journal.position
    reading = Reading(monkeypatch)
    for number in range(20_000, 20_100):
        journal.append(events(number))
        entries, place = journal.since(place)
        assert positions(entries) == [number]
        assert positions(journal.last(12))[-1] == number
        assert reading.bytes == 0


def test_a_reader_in_another_process_reads_new_bytes_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = written(path, *range(1000))
    reader = loaded(path)
    before = journal.position.size
    journal.append(events(1000, 1001))
    reading = Reading(monkeypatch)
    assert positions(list(reader.new_entries())) == [1000, 1001]
    assert reading.bytes <= 2 * (journal.position.size - before)
    assert list(reader.new_entries()) == []


@pytest.mark.parametrize("then", [(7, 2, 3), (2, 3), (123456, 3)])
def test_a_reader_that_saw_what_a_full_disk_took_back_is_told_each_event_once(
    path: Path, then: tuple[int, ...]
) -> None:
    journal = written(path, 1)
    size = journal.position.size
    reader = loaded(path)
    journal.append(events(2, 3))
    os.truncate(path, journal.position.size - 20)
    assert positions(list(reader.new_entries())) == [2]

    os.truncate(path, size)
    again = loaded(path)
    again.append(events(*then))

    assert positions(list(reader.new_entries())) == [number for number in then if number != 2]
    assert list(reader.new_entries()) == []


def test_an_event_that_stands_twice_comes_once(path: Path) -> None:
    written(path, 1, 2)
    path.write_bytes(path.read_bytes() * 2)
    reader = Journal(path)
    assert positions(list(reader.new_entries())) == [1, 2]
    assert len(reader) == 2
    assert reader.position == (4, path.stat().st_size)
    entries, _ = reader.since(START)
    assert positions(entries) == [1, 2]


def test_a_torn_last_line_is_cut_in_place(path: Path) -> None:
    whole = written(path, 1, 2).position.size
    with path.open("ab") as file:
        file.write(b'{"time": "2026')
    inode = path.stat().st_ino
    journal = loaded(path)
    journal.repair()
    assert (path.stat().st_size, path.stat().st_ino) == (whole, inode)
    journal.append(events(3))
    assert positions(loaded(path).entries) == [1, 2, 3]


def test_a_damaged_line_is_named_by_its_number_from_any_place(path: Path) -> None:
    written(path, 1, 2)
    reader = loaded(path)
    with path.open("ab") as file:
        file.write(b"{}\n")
    with pytest.raises(SessionDamaged, match="line 3 does not parse"):
        list(reader.new_entries())


def test_who_finds_another_monitors_events_writes_no_more(path: Path) -> None:
    first, second = written(path, 1), loaded(path)
    second.append(events(2))
    whole = path.read_bytes()
    with pytest.raises(SessionHeld, match="another monitor has written into it"):
        first.append(events(3))
    assert path.read_bytes() == whole


def test_a_part_that_could_not_be_taken_back_at_once_is_taken_back_before_the_next_append(
    path: Path, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = written(path, 1)
    size = journal.position.size

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is away")

    with monkeypatch.context() as patch, full_disk(size + 50):
        patch.setattr(os, "ftruncate", broken)
        for number in (2, 3):
            with pytest.raises(OSError):
                journal.append(events(number))
            assert path.stat().st_size == size + 50
    journal.append(events(4))
    assert positions(loaded(path).entries) == [1, 4]


def test_a_journal_that_was_taken_away_is_waited_for(path: Path) -> None:
    journal = written(path, 1, 2)
    away = path.rename(path.with_name("away"))
    with pytest.raises(FileNotFoundError):
        journal.append(events(3))
    away.rename(path)
    os.truncate(path, 100)
    with pytest.raises(OSError, match="shorter than this monitor left it") as raised:
        journal.append(events(3))
    assert atomic.is_passing(raised.value)
