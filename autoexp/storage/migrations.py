"""The version of session files, and the migration of older ones.

Every JSON file of a session carries `schema_version`. A reader upgrades an older file in memory;
the holder of the lease upgrades it on disk and keeps the original beside it as `<name>.v<version>`.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from autoexp.errors import SessionDamaged
from autoexp.model import first_problem
from autoexp.storage import atomic

VERSION = 3

Content = dict[str, Any]
Record = TypeVar("Record", bound=BaseModel)

_MOVED = {
    f"autoexp.demo_{name}": f"autoexp.demo.{name}" for name in ("trainer", "evaluate", "convert")
}


def _moved_demo_and_plain_cursor(path: Path, content: Content) -> Content:
    """Version 2 runs the demo's modules where they were then, and follows logs that are rotated."""
    upgraded = {key: _with_modules(value) for key, value in content.items()}
    if path.parent.name == "jobs":
        upgraded["cursor"].pop("waiting", None)
    return upgraded


def _with_modules(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_modules(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_modules(each) for each in value]
    return _MOVED.get(value, value) if isinstance(value, str) else value


MIGRATIONS: dict[int, Callable[[Path, Content], Content]] = {2: _moved_demo_and_plain_cursor}
"""Migrations from each older version to the next: from a file's path and content to new content."""


def read(path: Path, model: type[Record]) -> Record:
    """Read a record; raises SessionDamaged with the file's path and what to do."""
    content = _upgraded(path, _parse(path))
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise SessionDamaged(_damage(path, first_problem(error))) from error


def upgrade_files(session: Path) -> None:
    """Bring older files of a session up to date on disk. For the holder of the lease."""
    for path in (
        session / "session.json",
        *session.glob("blame.json"),
        *session.glob("starts.json"),
        *session.glob("jobs/*.json"),
        *session.glob("actions/*.json"),
    ):
        content = _parse(path)
        version = content.get("schema_version", VERSION)
        if version < VERSION:
            upgraded = _upgraded(path, content)
            atomic.write(path.with_name(f"{path.name}.v{version}"), path.read_bytes())
            atomic.write_json(path, upgraded)


def _parse(path: Path) -> Content:
    try:
        content = _parsed(atomic.read(path))
    except (ValueError, RecursionError) as error:
        raise SessionDamaged(_damage(path, str(error))) from error
    except OSError as error:
        if atomic.is_passing(error):
            raise
        raise SessionDamaged(_damage(path, error.strerror or str(error))) from error
    if not isinstance(content, dict):
        raise SessionDamaged(_damage(path, "it holds no JSON object"))
    return content


def _parsed(raw: bytes) -> Any:
    """JSON as json.loads reads it, in two thirds of its time; raises ValueError, RecursionError."""
    try:
        return from_json(raw, cache_strings="keys")
    except ValueError:  # it takes no half of a surrogate pair, which a path may hold
        return json.loads(raw)


def _upgraded(path: Path, content: Content) -> Content:
    version = content.get("schema_version", VERSION)
    if not isinstance(version, int) or version > VERSION:
        raise SessionDamaged(
            f"{path} has schema version {version}; this autoexp reads {VERSION}. Nothing was "
            "changed: resume the session with the version of autoexp that wrote it"
        )
    for step in range(version, VERSION):
        if step not in MIGRATIONS:
            raise SessionDamaged(f"{path} has schema version {version}, which is not known")
        try:
            content = {**MIGRATIONS[step](path, content), "schema_version": step + 1}
        except (LookupError, TypeError, AttributeError, RecursionError) as error:
            raise SessionDamaged(_damage(path, f"it is no record of version {step}")) from error
    return content


def _damage(path: Path, problem: str) -> str:
    return (
        f"{path} does not parse ({problem}). Nothing was changed and no job was touched: "
        "put the file back from a backup, or repair it, then resume the session"
    )
