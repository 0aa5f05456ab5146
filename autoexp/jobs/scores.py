"""Scores: numbers that a job wrote, such as an evaluation's."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.dotted import flat
from autoexp.jobs import lm_eval
from autoexp.storage import atomic

_LARGEST = 1 << 20
_LARGEST_RESULTS = 1 << 24  # lm-eval puts the configuration of each task beside its results
_MOST = 2000
_LONGEST = 400  # digits: a float has 309 at most


class NoScores(Exception):
    """The file is missing, or holds no numbers; the message says which."""


class Scores(NamedTuple):
    """The content of a scores file; texts and switches are left out."""

    numbers: dict[str, float]
    """By dotted name, or TASK/METRIC of lm-eval, printable; all of them finite."""
    not_finite: tuple[str, ...]
    """Names of values that are NaN, infinite, or too large for a float."""


def read_scores(path: Path) -> Scores:
    """The numbers in a JSON file, or in lm-eval's newest results file in a directory.

    Raises NoScores when there is none that can be used.
    """
    most = _LARGEST
    try:
        if path.is_dir():
            most, newest = _LARGEST_RESULTS, lm_eval.newest_results(path)
            if newest is None:
                raise NoScores(f"{path}: no results_*.json of lm-eval in this directory")
            path = newest
        content = json.loads(atomic.read(path, most), parse_int=_whole)
    except OSError as error:
        raise NoScores(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NoScores(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise NoScores(f"{path}: not a JSON object")
    given = {name: value for name, value in _flat(content, path).items() if _is_number(value)}
    numbers = {name: float(value) for name, value in given.items() if _is_finite(value)}
    not_finite = tuple(name for name in given if name not in numbers)
    if not numbers:
        what = f"no finite number ({', '.join(not_finite[:3])})" if not_finite else "no number"
        raise NoScores(f"{path}: holds {what}")
    if len(numbers) > _MOST:
        raise NoScores(f"{path}: holds {len(numbers)} numbers; {_MOST} at most")
    return Scores(numbers, not_finite)


def _whole(digits: str) -> int | float:
    """An integer; one too long for Python to read is too large anyway."""
    return int(digits) if len(digits) < _LONGEST else math.inf


def _flat(content: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        results = lm_eval.scores_of(content)
        found = flat(content) if results is None else results
    except RecursionError as error:
        raise NoScores(f"{path}: nested too deeply") from error
    # JSON can hold names that no file can be written with: half of a surrogate pair.
    return {name.encode(errors="backslashreplace").decode(): found[name] for name in found}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_finite(value: int | float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
