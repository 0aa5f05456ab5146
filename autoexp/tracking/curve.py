"""What is new in a job's metrics file, in the order in which it was logged."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from autoexp.errors import SessionDamaged
from autoexp.storage import atomic, metrics_file

MOST_BYTES = 1_000_000
"""Of the file, in one batch."""


class Point(NamedTuple):
    """Metrics of an iteration."""

    iteration: int
    metrics: dict[str, float]


class Rewind(NamedTuple):
    """The trainer went back: points from `to` on, as far as `come`, are those of a lost line."""

    come: int
    to: int


Step = Point | Rewind


class Piece(NamedTuple):
    """Some lines of the file."""

    steps: tuple[Step, ...]
    end: int
    """Where the next one begins, in bytes."""
    last: int | None
    """The last logged iteration."""


def read_piece(path: Path, start: int, last: int | None, end: int | None = None) -> Piece:
    """Read whole lines from byte `start` until `end`, or as many as a batch takes.

    ``last`` is the iteration that was logged before them. Raises SessionDamaged for what is no
    metrics file.
    """
    try:
        with atomic.open_to_read(path) as file:
            file.seek(start)
            raw = file.read(MOST_BYTES if end is None else end - start)
    except FileNotFoundError:
        return Piece((), start, last)
    whole = raw[: raw.rfind(b"\n") + 1]
    try:
        rows = list(metrics_file.rows_of(whole.decode().splitlines(keepends=True)))
    except ValueError as error:
        raise SessionDamaged(f"{path} cannot be read: {error}") from error
    steps = tuple(_steps(rows, last))
    logged = [step.iteration for step in steps if isinstance(step, Point) and _is_logged(step)]
    return Piece(steps, start + len(whole), logged[-1] if logged else last)


def _is_logged(point: Point) -> bool:
    return not any(name.startswith("validation/") for name in point.metrics)


def _steps(rows: Iterable[metrics_file.FullRow], last: int | None) -> Iterator[Step]:
    for row in rows:
        metrics = {name: value for name, value in row.metrics.items() if math.isfinite(value)}
        if not row.is_validation:
            if last is not None and row.iteration < last:
                yield Rewind(last, row.iteration)
            last = row.iteration
        if metrics:
            yield Point(row.iteration, metrics)
