"""Keeps a copy of each save of a trainer that has one checkpoint file and writes over it.

A copy of this file lies beside the payload, which loads it, so the standard library alone. It runs
with the job and needs no monitor. A copy is made under another name and renamed, and never written
again: it is a checkpoint as any other, and branches are seeded from it. Before an attempt starts,
the newest copy takes the file's place, whatever a killed save has left there.
"""

from __future__ import annotations

import json
import os
import pickletools
import re
import shutil
import sys
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_EVERY_S = 1.0
_PART = ".autoexp-copy"
_LARGEST = 64 * 2**20
_STRINGS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}


def iteration_in(path: Path, key: str) -> int | None:
    """The iteration in a file of `torch.save`, or of JSON, under a key of its outermost object.

    None for one that is incomplete, or does not say. Nothing of it is loaded: of torch's archive,
    whose end is written last, the pickle is read as a list of instructions.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            if archive.getinfo(name).file_size > _LARGEST:
                return None
            found = set(_numbers_of(archive.read(name), key))
    except zipfile.BadZipFile:
        return _of_json(path, key)
    # StopIteration: no pickle. What stands in a file can be anything.
    except (OSError, ValueError, StopIteration, KeyError, NotImplementedError, RuntimeError):
        return None
    return found.pop() if len(found) == 1 else None


def _of_json(path: Path, key: str) -> int | None:
    try:
        if path.stat().st_size > _LARGEST:
            return None
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    found = content.get(key) if isinstance(content, dict) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found >= 0 else None


def _numbers_of(pickled: bytes, key: str) -> Iterator[int]:
    """The whole numbers that follow a key in a pickle."""
    after_key, memo, keys = False, 0, set()
    for code, argument, _ in pickletools.genops(pickled):
        if code.name in _PUTS or code.name == "MEMOIZE":
            if after_key:
                keys.add(int(argument) if argument is not None else memo)
            memo += 1
            continue
        if after_key and code.name in _NUMBERS and isinstance(argument, int) and argument >= 0:
            yield argument
        named = code.name in _STRINGS and argument == key
        after_key = named or (code.name in _GETS and int(argument or 0) in keys)


class Copies:
    """Copies of one file, made while it is entered as a context."""

    def __init__(self, told: Mapping[str, str]) -> None:
        self._file, self._name, self._key = Path(told["file"]), told["name"], told["key"]
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._copied: tuple[int, int, int] | None = None
        self._said: set[str] = set()

    def __enter__(self) -> None:
        self.keep()
        self.restore()
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.keep()

    def _watch(self) -> None:
        while not self._done.wait(_EVERY_S):
            self.keep()

    def keep(self) -> None:
        """Copy the file if it is whole and not yet copied; an error is logged, and tried again."""
        try:
            mark = _mark(self._file)
            if mark is None or mark == self._copied:
                return
            iteration = iteration_in(self._file, self._key)
            if iteration is None:
                return
            target = self._file.with_name(self._name.replace("{iteration}", str(iteration)))
            # One that changes meanwhile is the next save: what was copied is a part of both.
            if target.exists() or self._copy(self._file, target, mark):
                self._copied = mark
        except OSError as error:
            self._say(f"no copy of {self._file}: {error.strerror or error}")

    def restore(self) -> None:
        """Put the newest copy in the file's place, unless it is there."""
        copies = self._copies()
        if not copies or iteration_in(self._file, self._key) == max(copies):
            return
        newest = copies[max(copies)]
        self._copy(newest, self._file, _mark(newest))
        self._say(f"{self._file} is that of iteration {max(copies)}")

    def _copies(self) -> dict[int, Path]:
        before, _, after = self._name.partition("{iteration}")
        pattern = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        folder = self._file.parent
        there = folder.iterdir() if folder.is_dir() else ()
        matches = [(pattern.fullmatch(path.name), path) for path in there]
        return {int(match[1]): path for match, path in matches if match}

    def _copy(self, source: Path, target: Path, mark: tuple[int, int, int] | None) -> bool:
        """Copy a file, whole or not at all; False where it changed meanwhile."""
        part = target.with_name(_PART)
        shutil.copyfile(source, part)
        shutil.copymode(source, part)
        if _mark(source) != mark:
            part.unlink()
            return False
        with part.open("rb") as copied:
            os.fsync(copied.fileno())
        part.replace(target)
        return True

    def _say(self, words: str) -> None:
        """Write a line into the job's log, once."""
        if words not in self._said:
            self._said.add(words)
            print(f"autoexp: {words}", file=sys.stderr, flush=True)


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written; None: there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
