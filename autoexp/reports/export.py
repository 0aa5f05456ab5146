"""Rows as files: CSV, and Parquet where pyarrow is installed."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autoexp import sinks
from autoexp.errors import BadInput
from autoexp.reports.results import Row
from autoexp.storage import atomic


def as_csv(rows: Sequence[Row]) -> str:
    """The rows with a line of column names; floats with all their digits."""
    return sinks.table(list(rows[0]) if rows else [], rows)


def write(rows: Sequence[Row], path: Path) -> None:
    """Write the rows in the format of the file's suffix, `.csv` or `.parquet`.

    Raises BadInput for another ending, and for Parquet without pyarrow.
    """
    match path.suffix:
        case ".csv":
            content = as_csv(rows).encode()
        case ".parquet":
            content = _as_parquet(rows)
        case _:
            raise BadInput(f"{path}: give a name that ends with .csv or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(path, content, by_umask=True)


def _as_parquet(rows: Sequence[Row]) -> bytes:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise BadInput(
            "Parquet needs pyarrow, which is not installed: pip install 'autoexp[parquet]'; "
            "CSV works without it"
        ) from error
    columns = {key: [row[key] for row in rows] for key in (rows[0] if rows else {})}
    table = pyarrow.table({key: _of_one_type(values) for key, values in columns.items()})
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


def _of_one_type(values: list[Any]) -> list[Any]:
    """A column of numbers, of switches or of texts; a mixture, as of sweeps, becomes text."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {int, float}:
        return [None if value is None else float(value) for value in values]
    if len(kinds) > 1:
        return [None if value is None else str(value) for value in values]
    return values
