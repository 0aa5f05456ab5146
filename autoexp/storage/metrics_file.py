"""Rows of `metrics/<job>.csv`: logged iterations and validations, appended and read."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autoexp.errors import SessionDamaged
from autoexp.storage import atomic

_LEAST = 4  # cells: a row that is being written, or was torn by a kill, has fewer
_VALIDATION = 9  # cells of a validation's row
_NAMES = (
    "loss",
    "learning_rate",
    "seconds_per_iteration",
    "grad_norm",
    "tokens_per_s",
    "tflops",
    "mfu",
)
"""Of the cells behind the iteration."""


class MetricsRow(NamedTuple):
    """A logged iteration."""

    iteration: int
    loss: float
    learning_rate: float
    """NaN where it was not logged."""


class TimedRow(NamedTuple):
    """A logged iteration as it was logged, also one that was logged twice."""

    iteration: int
    seconds: float | None
    """Of each iteration since the line before; None where it was not logged."""


class FullRow(NamedTuple):
    """All that was logged in a line."""

    iteration: int
    metrics: dict[str, float]
    is_validation: bool


class ValidationRow(NamedTuple):
    """A validation."""

    iteration: int
    loss: float
    name: str


def row(cells: Sequence[float | None]) -> str:
    """A line: iteration, loss, learning rate, seconds, gradient norm, tokens/s, TFLOP/s, MFU.

    What was not logged is empty, and left out at the end.
    """
    # Of each line of each log: no calls that it can do without.
    last = len(cells)
    while last > _LEAST and cells[last - 1] is None:
        last -= 1
    return ",".join(["" if cell is None else repr(cell) for cell in cells[:last]]) + "\n"


def validation_row(iteration: int, loss: float, name: str) -> str:
    """A line of a validation: its loss and its set stand behind empty cells."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow([iteration, *[""] * 6, repr(loss), name])
    return text.getvalue()


def read(session: Path, job: str) -> list[MetricsRow]:
    """A job's iterations, ascending; of one that stands twice, as after a restart, the last.

    Points without a loss are left out. Raises SessionDamaged for what is no such file.
    """
    found = {
        int(cells[0]): MetricsRow(int(cells[0]), float(cells[1]), float(cells[2] or "nan"))
        for cells in _cells(session, job)
        if cells[1]
    }
    return [found[iteration] for iteration in sorted(found)]


def read_timed(session: Path, job: str) -> list[TimedRow]:
    """A job's lines in the order in which they were logged; raises as `read`."""
    return [
        TimedRow(int(cells[0]), float(cells[3]) if cells[3] else None)
        for cells in _cells(session, job)
        if len(cells) < _VALIDATION
    ]


def read_validations(session: Path, job: str) -> list[ValidationRow]:
    """A job's validations, ascending; of one that stands twice the last."""
    found = {
        (cells[8], int(cells[0])): ValidationRow(int(cells[0]), float(cells[7]), cells[8])
        for cells in _cells(session, job)
        if len(cells) == _VALIDATION and cells[7]
    }
    return [found[key] for key in sorted(found)]


def rows_of(lines: Iterable[str]) -> Iterator[FullRow]:
    """The rows of some lines, as they come; raises ValueError for a number that is none."""
    for cells in csv.reader(lines):
        if len(cells) == _VALIDATION and cells[7]:
            yield FullRow(int(cells[0]), {f"validation/{cells[8]}": float(cells[7])}, True)
        elif _LEAST <= len(cells) < _VALIDATION:
            values = zip(_NAMES, cells[1:], strict=False)
            metrics = {name: float(cell) for name, cell in values if cell}
            yield FullRow(int(cells[0]), metrics, False)


def _cells(session: Path, job: str) -> Iterator[list[str]]:
    """The cells of each whole row; raises SessionDamaged where a number is none."""
    path = session / "metrics" / f"{job}.csv"
    try:
        with io.TextIOWrapper(atomic.open_to_read(path), newline="") as file:
            for cells in csv.reader(file):
                if len(cells) >= _LEAST:
                    [float(cell) for cell in cells[:8] if cell]
                    int(cells[0])
                    yield cells
    except FileNotFoundError:
        return
    except (atomic.WrongFile, ValueError, csv.Error) as error:
        raise SessionDamaged(
            f"{path} cannot be read: {error}; move it away, and the losses of this job are not "
            "shown"
        ) from error
