"""Session files carry a version; older ones are brought up to date, newer ones refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from autoexp.errors import SessionDamaged
from autoexp.session.session import Session
from autoexp.storage import migrations


def test_every_file_of_a_session_carries_its_version(session_path: Path) -> None:
    for path in (session_path / "session.json", *session_path.glob("jobs/*.json")):
        assert json.loads(path.read_text())["schema_version"] == migrations.VERSION


@pytest.fixture
def older(session_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A session of a time when the job's reason was called `why`."""

    def rename(_: Path, content: dict[str, Any]) -> dict[str, Any]:
        return {("reason" if key == "why" else key): value for key, value in content.items()}

    monkeypatch.setitem(migrations.MIGRATIONS, 1, rename)
    for path in session_path.glob("jobs/*.json"):
        content = json.loads(path.read_text())
        content["why"] = content.pop("reason")
        path.write_text(json.dumps({**content, "schema_version": 1}))
    return session_path


def test_a_reader_understands_an_older_session_and_changes_nothing(older: Path) -> None:
    before = {path: path.read_bytes() for path in older.rglob("*.json")}
    assert Session.load(older).jobs["tiny"].reason is None
    assert {path: path.read_bytes() for path in older.rglob("*.json")} == before


def test_the_holder_upgrades_an_older_session_and_keeps_the_originals(older: Path) -> None:
    original = (older / "jobs" / "tiny.json").read_bytes()
    with Session.hold(older) as (session, _):
        assert session.jobs["tiny"].reason is None
    assert (older / "jobs" / "tiny.json.v1").read_bytes() == original
    assert (
        json.loads((older / "jobs" / "tiny.json").read_text())["schema_version"]
        == migrations.VERSION
    )
    assert set(Session.load(older).jobs) == {"tiny", "tiny-cd100", "tiny-cd200"}


@pytest.mark.parametrize("version", [migrations.VERSION + 1, "1", -1])
def test_an_unknown_version_is_refused_and_nothing_is_changed(
    session_path: Path, version: object
) -> None:
    path = session_path / "jobs" / "tiny.json"
    content = {**json.loads(path.read_text()), "schema_version": version}
    path.write_text(json.dumps(content))
    with pytest.raises(SessionDamaged, match=r"tiny\.json has schema version"):
        Session.load(session_path)
    assert json.loads(path.read_text()) == content


class Anything(BaseModel):
    value: Any


@pytest.mark.parametrize(
    "value", ["\udcff", "é", float("inf"), 10**400, [[[]]] * 3, {"a": {"b": None}}], ids=repr
)
def test_whatever_json_was_written_is_read_as_it_was(tmp_path: Path, value: object) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps({"value": value, "schema_version": migrations.VERSION}))
    assert migrations.read(file, Anything).value == value
