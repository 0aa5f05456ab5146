"""`write_file`: what a log line says chooses a file below the rule's directory, and no other."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.errors import SessionError
from autoexp.monitor.template_values import values_of
from autoexp.operations.write_targets import path_below, write_target
from autoexp.rules.actions import WriteFile
from autoexp.rules.events import LogMatched
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session


def target(session: Session, template: str, **captured: Any) -> Path:
    event = LogMatched(
        job="tiny", attempt=1, rule="r", generation=0, offset=0, line="a/../b", values=captured
    )
    action = ActionRecord(
        key="r--k--0", rule="r", event=event, action=WriteFile(path=template, line="x")
    )
    return write_target(session.path, action, values_of(event, "r", session))


@pytest.fixture
def session(session_path: Path) -> Session:
    return Session.load(session_path)


def test_a_captured_value_names_a_file_below_the_rules_directory(session: Session) -> None:
    assert target(session, "by-node/{node}", node="n1") == session.path / "by-node" / "n1"
    assert target(session, "{node}.txt", node="n/1") == session.path / "n" / "1.txt"
    assert target(session, "notes/{job.name}.txt") == session.path / "notes" / "tiny.txt"


@pytest.mark.parametrize(
    "value",
    [
        *("../../../target/bashrc", "/etc/passwd", "..", ".", "", "a/../../b", "a\0b", "a\n/b"),
        *("\udcff", "x" * 256, "é" * 128, "../by-node"),
    ],
)
def test_a_captured_value_never_leads_out_of_the_rules_directory(
    session: Session, value: str
) -> None:
    with pytest.raises(SessionError):
        target(session, "by-node/{node}", node=value)


def test_a_link_below_the_rules_directory_leads_out_of_it_neither(
    session: Session, tmp_path: Path
) -> None:
    (session.path / "by-node").mkdir()
    (session.path / "by-node" / "away").symlink_to(tmp_path)
    with pytest.raises(SessionError, match="leads out of"):
        target(session, "by-node/{node}", node="away/bashrc")


def test_a_rule_itself_may_name_a_directory_elsewhere(session: Session, tmp_path: Path) -> None:
    assert target(session, f"{tmp_path}/notes/{{node}}", node="n1") == tmp_path / "notes" / "n1"
    assert target(session, "../shared.txt") == session.path.parent / "shared.txt"
    output = Path(session.jobs["tiny"].spec.output_dir)
    assert target(session, "{job.output_dir}/{node}", node="n1") == output / "n1"
    with pytest.raises(SessionError):
        target(session, f"{tmp_path}/{{node}}", node="../x")


@pytest.mark.parametrize(
    "path", ["session.json", "jobs/tiny.json", "events.jsonl", "actions/x.json", "monitor.json"]
)
def test_no_rule_writes_into_the_records_of_its_session(session: Session, path: str) -> None:
    for template in ("{node}", path):
        with pytest.raises(SessionError, match="record of the session"):
            target(session, template, node=path)


def test_a_group_called_like_a_name_of_the_session_is_still_what_a_line_says(
    session: Session,
) -> None:
    with pytest.raises(SessionError):
        target(session, "{rule}/{node}", rule="..", node="x")


def test_what_is_no_file_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(SessionError, match="not a writable file"):
        path_below(tmp_path, "folder")
