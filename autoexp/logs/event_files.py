"""Scalars in TensorBoard's event files, which trainers append to beside their logs.

A file is a row of records (length, checksum, bytes, checksum), each an `Event` in protocol buffers.
Source: tensorboard/compat/proto/event.proto and summary.proto; torch 2.13, utils/tensorboard.
Checksums are not looked at: a length that no record has ends the reading of its file.
"""

import re
import struct
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

from autoexp.logs.numbers import MOST_ITERATIONS

CHUNK = 1 << 18
"""Bytes of a file that one look reads: what is behind them is read by the next."""
_MOST = 1 << 30  # bytes of a record: more is no length
_HEAD, _TAIL = 12, 4  # bytes around a record: its length, and checksums of both
_LONGEST_VARINT = 10


class Scalar(NamedTuple):
    """A number of one step."""

    tag: bytes
    step: int
    value: float


class RateFiles(NamedTuple):
    """Where a trainer writes its learning rates beside the log."""

    folder: Path
    names: str
    """Pattern of its event files below the folder."""
    tag: re.Pattern[bytes]
    """Tags of learning rates, of which it may have several."""


class RateReader:
    """Reads the learning rates of one job as they come, from the newest of its event files."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._at = 0
        self._last: tuple[int, float] | None = None
        self._differ = False

    def read(self, files: RateFiles) -> list[tuple[int, float]]:
        """New rates by step; none where parameter groups have several. Raises OSError alone."""
        path = _newest(files)
        if path != self._path:
            self._path, self._at, self._last, self._differ = path, 0, None, False
        if path is None or self._differ:
            return []
        with path.open("rb") as file:
            file.seek(self._at)
            data = file.read(CHUNK)
        found, length = scalars(data)
        self._at += length or _length_of_one(data)
        rates: list[tuple[int, float]] = []
        for tag, step, rate in found:
            if files.tag.fullmatch(tag) is None:
                continue
            if self._last is None or self._last[0] != step:
                self._last = (step, rate)
                rates.append(self._last)
            elif self._last[1] != rate:
                self._differ = True
        return [] if self._differ else rates


def scalars(data: bytes) -> tuple[list[Scalar], int]:
    """Numbers in the whole records that data begins with, and how many bytes those records are."""
    found: list[Scalar] = []
    at = 0
    while at + _HEAD <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        end = at + _HEAD + length
        if end + _TAIL > len(data):
            break
        try:
            found += _scalars(data[at + _HEAD : end])
        except ValueError:
            pass  # a record of something else, or garbled: the next one has its own length
        at = end + _TAIL
    return found, at


def _length_of_one(data: bytes) -> int:
    """Bytes of a first record that is longer than a chunk; 0 where it is still being written."""
    if len(data) < CHUNK:
        return 0
    (length,) = struct.unpack_from("<Q", data)
    # Behind every file's end where that is no length.
    return _HEAD + _TAIL + min(int(length), _MOST)


def _newest(files: RateFiles) -> Path | None:
    """The event file that was written to last: each start of a trainer makes one."""
    found = [(path.stat().st_mtime_ns, path) for path in files.folder.glob(files.names)]
    return max(found)[1] if found else None


def _scalars(record: bytes) -> Iterator[Scalar]:
    """The numbers of an `Event`; raises ValueError where it is none."""
    event = dict(_fields(record))
    step, summary = event.get(2, 0), event.get(5, b"")
    if not isinstance(step, int) or not isinstance(summary, bytes) or step >= MOST_ITERATIONS:
        return
    for number, value in _fields(summary):
        if number == 1 and isinstance(value, bytes):
            fields = dict(_fields(value))
            tag, simple = fields.get(1), fields.get(2)
            if isinstance(tag, bytes) and isinstance(simple, bytes) and len(simple) == 4:
                (read,) = struct.unpack("<f", simple)
                if isfinite(read):
                    yield Scalar(tag, step, read)


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Numbers and values of a message's fields; raises ValueError where it is none."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield key >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"no field is of the kind {kind}")
        if at + size > len(message):
            raise ValueError("it ends within a field")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, and where it ends; raises ValueError where it does not."""
    value = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise ValueError("a number without an end")
