"""Numbers that a job wrote down, such as an evaluation's scores."""

import json
import math
from pathlib import Path
from typing import Any

from autoexp.plain import flat

_LARGEST = 1 << 20
_MOST = 2000


class NoScores(Exception):
    """The file is not there, or holds no numbers; the message says which."""


def read_scores(path: Path) -> dict[str, float]:
    """The numbers in a JSON file, by dotted name; what is no number is left out.

    Raises NoScores.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LARGEST + 1)
        if len(raw) > _LARGEST:
            raise NoScores(f"{path}: larger than a MiB, so it is not read")
        content = json.loads(raw)
    except OSError as error:
        raise NoScores(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise NoScores(f"{path}: is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise NoScores(f"{path}: holds no object")
    found = {name: float(value) for name, value in flat(content).items() if _is_number(value)}
    if not found:
        raise NoScores(f"{path}: holds no number")
    if len(found) > _MOST:
        raise NoScores(f"{path}: holds {len(found)} numbers; {_MOST} at most")
    return found


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
