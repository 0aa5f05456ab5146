"""The page that is the contract of events names each of them, and each key of its payload."""

from pathlib import Path
from typing import Any, get_args

import pytest

from autoexp.config.compose import compose
from autoexp.flows.publishing import events as published
from autoexp.rules.events import Event
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import create
from tests.sources import ROOT

PAGE = (ROOT / "docs" / "prefect-events.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| `autoexp.")]
KINDS = get_args(get_args(Event)[0])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_each_event_and_each_key_of_its_payload_stands_on_the_page(
    kind: Any, tmp_path: Path
) -> None:
    session = Session.load(create(compose("demo", ["cooldowns=[]"]), tmp_path))
    known = {"kind": kind.model_fields["kind"].default, "job": "demo", "verdict": Verdict.FAILED}
    event = kind.model_construct(**{field: known.get(field) for field in kind.model_fields})
    name = published._name(event, session)

    rows = " ".join(row for row in ROWS if f"`{name}`" in row)

    keys = sorted(set(kind.model_fields) - {"kind", "job", "message"})
    assert rows and [key for key in keys if f"`{key}`" not in rows] == [], name
