"""Every complete line once and in order, however it was written, replaced or truncated."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from autoexp.logs import tail
from autoexp.logs.lines import LogLine
from autoexp.logs.tail import BLOCK, LIMIT, MAX_LINE, SEAM, LogCursor, Reading, read_new


class Monitor:
    """A reader that is killed after every look: only the cursor's JSON outlives it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stored = LogCursor().model_dump_json()
        self.lines: list[LogLine] = []
        self.lost: list[str] = []

    @property
    def cursor(self) -> LogCursor:
        return LogCursor.model_validate_json(self.stored)

    @property
    def texts(self) -> list[bytes]:
        return [line.text for line in self.lines]

    def look(self, *, final: bool = False, limit: int = LIMIT) -> Reading:
        reading = read_new(self.path, self.cursor, final=final, limit=limit)
        self.stored = reading.cursor.model_dump_json()
        self.lines += reading.lines
        self.lost += [reading.lost] if reading.lost else []
        return reading

    def look_until_done(self, *, final: bool = False, limit: int = LIMIT) -> None:
        while self.look(final=final, limit=limit).more:
            pass


class Writer:
    """A job that writes a log, with a clock of its own: every write has another time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "train.log"
        self.clock = 0
        self.replaced = 0

    def write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
        self._touch()

    def truncate(self, data: bytes = b"") -> None:
        with self.path.open("r+b") as file:
            file.truncate(0)
            file.write(data)
        self._touch()

    def replace(self, data: bytes = b"") -> None:
        self.replaced += 1
        self.path.rename(self.path.with_name(f"train.log.{self.replaced}"))
        self.write(data)

    def _touch(self) -> None:
        self.clock += 1
        os.utime(self.path, ns=(self.clock, self.clock))


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path)


@pytest.fixture
def monitor(writer: Writer) -> Monitor:
    return Monitor(writer.path)


@contextmanager
def counted_calls() -> Iterator[dict[str, int]]:
    """Counts the bytes read, and how often the file system is asked."""
    counts = {"bytes": 0, "stat": 0, "fstat": 0, "scandir": 0, "FileIO": 0}

    def counting(name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            counts[name] += 1
            return real(*args, **kwargs)

        return call

    def pread(fd: int, count: int, offset: int, real: Callable[..., bytes] = os.pread) -> bytes:
        data = real(fd, count, offset)
        counts["bytes"] += len(data)
        return data

    with (
        mock.patch.object(os, "pread", pread),
        mock.patch.object(os, "stat", counting("stat", os.stat)),
        mock.patch.object(os, "fstat", counting("fstat", os.fstat)),
        mock.patch.object(os, "scandir", counting("scandir", os.scandir)),
        mock.patch.object(tail, "FileIO", counting("FileIO", FileIO)),
    ):
        yield counts


@contextmanager
def small_bounds() -> Iterator[int]:
    """Bounds so small that a few bytes meet all of them."""
    with (
        mock.patch.object(tail, "MAX_LINE", 12),
        mock.patch.object(tail, "MAX_LINES", 3),
        mock.patch.object(tail, "BLOCK", 5),
    ):
        yield 12


def lines_in(content: bytes, generation: int = 0, longest: int = MAX_LINE) -> list[LogLine]:
    """What a reader with the whole file in its hands calls its lines."""
    return [
        LogLine(generation, found.start(), found[0][:longest])
        for found in re.finditer(rb"[^\n\r\x00]+", content)
    ]


# --- growing


def test_lines_are_read_once_and_know_where_they_start(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"one\ntwo\n")
    assert monitor.look().lines == [(0, 0, b"one"), (0, 4, b"two")]
    writer.write(b"three\n")
    assert monitor.look().lines == [(0, 8, b"three")]
    assert monitor.lost == []


def test_a_line_cut_at_any_byte_is_read_whole(tmp_path: Path) -> None:
    content = "größe\r\n\u2713\n".encode()
    for cut in range(len(content) + 1):
        path = tmp_path / f"{cut}.log"
        monitor = Monitor(path)
        path.write_bytes(content[:cut])
        monitor.look()
        path.write_bytes(content)
        monitor.look()
        assert monitor.texts == ["größe".encode(), "\u2713".encode()]


def test_empty_lines_are_passed_over(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"a\r\n\nb\r\r\n\r\n\n")
    assert monitor.look().lines == [(0, 0, b"a"), (0, 4, b"b")]


def test_each_piece_of_a_progress_bar_is_a_line_as_soon_as_the_next_one_begins(
    writer: Writer, monitor: Monitor
) -> None:
    for percent in range(0, 101, 10):
        writer.write(b"\r%d%%" % percent)
        monitor.look()
    assert monitor.texts == [b"%d%%" % percent for percent in range(0, 100, 10)]
    writer.write(b"RuntimeError\n")
    assert monitor.look().lines[0].text == b"100%RuntimeError"


def test_a_block_of_nul_bytes_is_passed_over(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"before" + bytes(5 * BLOCK) + b"behind\n")
    reading = monitor.look()
    assert reading.lines == [(0, 0, b"before"), (0, 6 + 5 * BLOCK, b"behind")]
    assert not reading.more


def test_bytes_that_are_no_text_are_handed_on_as_they_are(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"\xff\xfe\n\xc3\n")
    monitor.look()
    assert monitor.texts == [b"\xff\xfe", b"\xc3"]


def test_a_named_pipe_in_the_place_of_a_log_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train.log")
    assert Monitor(tmp_path / "train.log").look().lines == []


def test_a_missing_log_changes_nothing_and_may_appear_later(
    writer: Writer, monitor: Monitor
) -> None:
    for final in (False, True):
        assert monitor.look(final=final) == Reading([], LogCursor(), None, False)
    writer.write(b"here\n")
    monitor.look()
    assert monitor.texts == [b"here"]
    writer.path.unlink()
    before = monitor.cursor
    for final in (False, True):
        assert monitor.look(final=final) == Reading([], before, None, False)


def test_a_missing_folder_is_a_missing_log(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "nowhere" / "train.log")
    known = LogCursor(inode=12, generation=3)
    assert monitor.look(final=True) == Reading([], LogCursor(), None, False)
    assert read_new(monitor.path, known, final=True) == Reading([], known, None, False)


def test_what_the_file_system_refuses_is_raised(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        read_new(tmp_path, LogCursor())
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        read_new(tmp_path / "file" / "train.log", LogCursor())
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        read_new(tmp_path / "loop", LogCursor())


def test_an_error_while_reading_is_raised(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"a\n")
    with (
        mock.patch.object(os, "pread", side_effect=OSError(5, "Input/output error")),
        pytest.raises(OSError, match="Input/output"),
    ):
        monitor.look()
    assert monitor.look().lines == [(0, 0, b"a")]


def test_a_misspelt_or_changed_cursor_is_refused() -> None:
    with pytest.raises(ValidationError, match="ofset"):
        LogCursor.model_validate({"ofset": 3})
    with pytest.raises(ValidationError, match="frozen"):
        LogCursor().offset = 3  # type: ignore[misc]


# --- the end of the job


def test_when_the_job_has_ended_the_unterminated_rest_is_a_line(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"done\nKilled")
    assert monitor.look().lines == [(0, 0, b"done")]
    assert monitor.look(final=True).lines == [(0, 5, b"Killed")]
    assert monitor.cursor.offset == len(b"done\nKilled")
    for final in (True, False):
        assert monitor.look(final=final).lines == []


def test_the_last_look_may_be_the_only_one(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"a\nb")
    assert monitor.look(final=True).lines == [(0, 0, b"a"), (0, 2, b"b")]


def test_what_is_written_after_the_last_look_is_still_read(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"a\nb")
    monitor.look(final=True)
    writer.write(b"c\nd\n")
    assert monitor.look(final=True).lines == [(0, 3, b"c"), (0, 5, b"d")]


# --- what it costs


def test_nothing_new_costs_one_stat(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"a\nhalf a line")
    monitor.look()
    before = monitor.cursor
    with counted_calls() as counts:
        assert monitor.look() == Reading([], before, None, False)
    assert counts == {"bytes": 0, "stat": 1, "fstat": 0, "scandir": 0, "FileIO": 0}


def test_new_lines_cost_their_own_bytes(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"x" * 99 + b"\n")
    writer.write((b"x" * 99 + b"\n") * 10_000)
    monitor.look()
    writer.write(b"new\n")
    with counted_calls() as counts:
        monitor.look()
    assert counts["bytes"] <= len(b"new\n") + 2 * SEAM
    assert counts["scandir"] == 0


def test_a_line_that_grows_slowly_is_read_at_most_twice(writer: Writer, monitor: Monitor) -> None:
    looks, piece = 200, b"=" * 1000
    with counted_calls() as counts:
        for _ in range(looks):
            writer.write(piece)
            monitor.look()
        writer.write(b"\n")
        monitor.look()
    assert monitor.texts == [piece * looks]
    assert counts["bytes"] <= 2 * looks * len(piece) + (looks + 1) * 2 * SEAM + 1


@pytest.mark.parametrize("step", [1 << 16, 1 << 20, 10 << 20])
def test_a_huge_line_is_cut_and_its_rest_is_passed_over_once(
    writer: Writer, monitor: Monitor, step: int
) -> None:
    size = 10 << 20
    with counted_calls() as counts:
        for _ in range(size // step):
            writer.write(b"x" * step)
            monitor.look_until_done()
            assert monitor.cursor.offset <= monitor.cursor.scanned <= monitor.cursor.size
        assert monitor.cursor.skipping
        assert counts["bytes"] <= size + MAX_LINE + 2 * BLOCK + (size // step + 2) * 2 * SEAM
    writer.write(b"end of it\nnext\n")
    monitor.look()
    assert monitor.texts == [b"x" * MAX_LINE, b"next"]
    assert monitor.lines[1].offset == size + len(b"end of it\n")


def test_a_huge_line_that_never_ends_is_no_second_line_at_the_end_of_the_job(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"x" * (MAX_LINE + 1))
    monitor.look()
    writer.write(b"x")
    assert monitor.look(final=True).lines == []
    assert monitor.texts == [b"x" * MAX_LINE]


@pytest.mark.parametrize("end", [b"", b"\r"])
def test_a_line_of_just_the_greatest_length_is_whole(
    writer: Writer, monitor: Monitor, end: bytes
) -> None:
    writer.write(b"x" * MAX_LINE + end + b"\ny\n")
    monitor.look()
    assert monitor.texts == [b"x" * MAX_LINE, b"y"]


def test_a_call_stops_at_its_bound_and_says_that_there_is_more(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"0123456789\n" * 20)
    with counted_calls() as counts:
        reading = monitor.look(limit=25)
    assert (len(reading.lines), reading.more) == (2, True)
    assert counts["bytes"] <= 25 + SEAM
    monitor.look_until_done(limit=3)
    assert monitor.lines == lines_in(b"0123456789\n" * 20)


def test_a_quarter_of_a_million_short_lines_come_in_several_calls(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"a\n" * BLOCK)
    reading = monitor.look()
    assert reading.more and len(reading.lines) <= tail.MAX_LINES + BLOCK
    monitor.look_until_done()
    assert len(monitor.lines) == BLOCK


def test_a_bound_without_a_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="limit is 0"):
        read_new(tmp_path / "train.log", LogCursor(), limit=0)


# --- replacement


def test_a_replaced_log_is_read_from_its_start_and_what_is_lost_is_said(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"a\n" * 50)
    monitor.look(limit=10)
    writer.replace(b"b\n")
    reading = monitor.look()
    assert reading.lines == [(1, 0, b"b")]
    assert reading.lost is not None
    assert "truncated or replaced" in reading.lost and "at least 90 bytes" in reading.lost
    assert monitor.look().lost is None


def test_a_log_is_looked_for_nowhere_but_at_its_path(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"a\n")
    monitor.look()
    writer.path.rename(writer.path.with_name("train.log.1"))
    before = monitor.cursor
    with counted_calls() as counts:
        assert monitor.look(final=True) == Reading([], before, None, False)
    assert counts["scandir"] == 0


def test_a_new_file_with_the_inode_of_the_deleted_one_is_read_from_its_start(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"first file\n")
    monitor.look()
    writer.path.unlink()
    writer.write(b"second file, longer\n")
    # ext4 gives the inode out again at once; elsewhere the cursor is told so.
    reused = monitor.cursor.model_copy(update={"inode": writer.path.stat().st_ino})
    reading = read_new(writer.path, reused)
    assert reading.lines == [(1, 0, b"second file, longer")]
    assert reading.lost is not None and "truncated or replaced" in reading.lost


# --- truncation


@pytest.mark.parametrize(
    "new", [b"x\n", b"new, as long\n", b"new, and longer than before\n"], ids=len
)
def test_a_truncated_log_is_read_from_its_start(
    writer: Writer, monitor: Monitor, new: bytes
) -> None:
    writer.write(b"old contents\n")
    monitor.look()
    writer.truncate(new)
    reading = monitor.look()
    assert reading.lines == [(1, 0, new.rstrip())]
    assert reading.lost is not None and "behind byte 13 is lost" in reading.lost
    assert monitor.look() == Reading([], reading.cursor, None, False)


def test_bytes_cut_off_before_they_were_read_are_said(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"a\n" * 50)
    monitor.look(limit=10)
    writer.truncate(b"a\n" * 20)
    reading = monitor.look()
    assert reading.lines == lines_in(b"a\n" * 20, 1)
    assert reading.lost is not None and "at least 90 bytes" in reading.lost


def test_a_log_whose_time_alone_has_changed_is_not_read_again(
    writer: Writer, monitor: Monitor
) -> None:
    writer.write(b"a\nhalf")
    monitor.look()
    writer.write(b"")
    assert monitor.look()[:3:2] == ([], None)
    writer.write(b" and half\n")
    assert monitor.look().lines == [(0, 2, b"half and half")]


def test_an_emptied_log_is_said_once(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"old\nhalf")
    monitor.look()
    writer.truncate()
    reading = monitor.look()
    assert reading.lines == []
    assert reading.lost is not None and "at least 4 bytes" in reading.lost
    assert monitor.look().lost is None


def test_a_log_that_is_truncated_while_it_is_read_is_said(writer: Writer, monitor: Monitor) -> None:
    writer.write(b"half a line")
    monitor.look()
    writer.write(b", and its end\n")

    def truncated(fd: int, count: int, offset: int, real: Callable[..., bytes] = os.pread) -> bytes:
        data = real(fd, count, offset)
        if offset:
            writer.truncate()
        return data

    with mock.patch.object(os, "pread", truncated):
        reading = monitor.look()
    assert (reading.lines, reading.more) == ([], False)
    assert reading.lost is not None and "shrank" in reading.lost
    writer.write(b"new\n")
    assert monitor.look().lines == [(1, 0, b"new")]


# --- any history


LINES = st.lists(
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [b"", b"\r", b"a\r", b"10%\r20%", "é✓".encode(), b"\x00", b"a\0\0b", b"\xff"]
        ),
    ).map(lambda line: line.replace(b"\n", b"")),
    max_size=25,
)
PIECES = st.tuples(st.just("write"), st.integers(0, 40))
LOOKS = st.tuples(st.just("look"), st.integers(1, 60))
CHANGES = {name: st.tuples(st.just(name), st.just(0)) for name in ("replace", "truncate")}


@settings(max_examples=250, deadline=None)
@given(lines=LINES, ended=st.booleans(), steps=st.lists(PIECES | LOOKS))
def test_any_cutting_and_bounding_yields_each_line_once_and_in_order(
    lines: list[bytes], ended: bool, steps: list[tuple[str, int]]
) -> None:
    stream = content = b"\n".join(lines) + (b"\n" if ended else b"")
    with tempfile.TemporaryDirectory() as folder, small_bounds() as longest:
        writer = Writer(Path(folder))
        monitor = Monitor(writer.path)
        writer.write(b"")
        for step, number in [*steps, ("write", len(stream))]:
            if step == "write":
                writer.write(stream[:number])
                stream = stream[number:]
            else:
                monitor.look(limit=number)
        monitor.look_until_done(final=True, limit=7)
        assert monitor.look(final=True).lines == []
    assert monitor.lines == lines_in(content, 0, longest)
    assert monitor.lost == []


class Omniscient:
    """The reader as specified, with every byte of the log in its hands: compares, never guesses."""

    def __init__(self) -> None:
        self.inode: int | None = None
        self.content = b""  # of that file at the last look
        self.generation = 0
        self.lines: list[LogLine] = []

    def look(self, content: bytes, inode: int, *, final: bool) -> bool:
        """Whether something was lost, given what the log holds now."""
        lost = self.inode not in (None, inode) or not self._continues(content)
        if lost:
            self.content = b""
            self.generation += 1
        self.inode = inode
        self._extend(content, final=final)
        return lost

    def _continues(self, content: bytes) -> bool:
        if content.startswith(self.content):
            return True
        end = len(self.content)
        seam = slice(max(0, end - SEAM), end)
        assume(len(content) < end or content[seam] != self.content[seam])
        return False

    def _extend(self, content: bytes, *, final: bool) -> None:
        def complete(part: bytes, rest: bool) -> list[LogLine]:
            end = max(part.rfind(byte) for byte in (b"\n", b"\r", b"\0")) + 1
            return lines_in(part if rest else part[:end], self.generation)

        before = complete(self.content, rest=False)
        self.lines += complete(content, rest=final)[len(before) :]
        self.content = content


@settings(max_examples=250, deadline=None)
@given(
    lines=LINES,
    steps=st.lists(
        PIECES | st.just(("look", LIMIT)) | CHANGES["replace"] | CHANGES["truncate"], max_size=40
    ),
)
def test_any_history_with_truncations_and_replacements_says_when_bytes_were_lost(
    lines: list[bytes], steps: list[tuple[str, int]]
) -> None:
    stream = b"".join(b"%s %d\n" % (line, number) for number, line in enumerate(lines))
    reference = Omniscient()
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(Path(folder))
        monitor = Monitor(writer.path)
        writer.write(b"")
        for step, number in [*steps, ("write", len(stream)), ("end", 0)]:
            if step == "write":
                writer.write(stream[:number])
                stream = stream[number:]
            elif step == "truncate":
                writer.truncate()
            elif step == "replace":
                writer.replace()
            else:
                content, inode = writer.path.read_bytes(), writer.path.stat().st_ino
                lost = reference.look(content, inode, final=step == "end")
                reading = monitor.look(final=step == "end")
                assert not reading.more
                assert (reading.lost is not None) == lost
        assert monitor.lines == reference.lines
