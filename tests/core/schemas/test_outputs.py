"""What `--json` prints is what the shipped schemas say."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from autoexp.cli.main import main
from autoexp.schemas.outputs import FOLDER, SCHEMAS, text_of
from autoexp.session.session import Session
from tests.core.story import Story, StoryOf
from tests.sources import ROOT

COMMANDS: dict[str, list[str]] = {
    "status": ["status", "SESSION", "--json"],
    "sessions-list": ["sessions", "list", "--json"],
    "events": ["events", "SESSION", "--json"],
    "explain": ["explain", "SESSION", "tiny", "--json"],
    "compare": ["compare", "SESSION", "--json"],
    "budget": ["budget", "SESSION", "--json"],
    "checkpoints": ["checkpoints", "SESSION", "--json"],
    "goodput": ["goodput", "SESSION", "--json"],
    "track": ["track", "SESSION", "tensorboard=runs", "--json"],
    "nodes-list": ["nodes", "list", "--file", "nodes.jsonl", "--json"],
    "queue-list": ["queue", "SESSION", "list", "--json"],
    "sessions-show": ["sessions", "show", "SESSION", "--json"],
    "rules-test": ["rules", "test", "nccl", "FIRES", "--json"],
    "backend-check-log": ["backend", "check-log", "LOG", "demo", "--json"],
    "plan": ["plan", "demo", "backend.args.seed=1,2", "monitoring=checkpoint_eval", "--json"],
}


FIRES = str(ROOT / "tests" / "data" / "rules" / "nccl_timeout.txt")


@pytest.fixture
def story(story_of: StoryOf, monkeypatch: pytest.MonkeyPatch) -> Story:
    """A training that saved, launched a cooldown and died."""
    story = story_of()
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(story.path.parent))
    story.log(100)
    story.save(100)
    story.look()
    attempt = story.job().attempt
    assert attempt is not None
    with Path(attempt.log).open("a") as file:
        file.write("the end\n")
    story.look(state="FAILED", exit_code=1)
    return story


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_shipped_schema_is_that_of_the_models(name: str) -> None:
    assert (FOLDER / f"{name}.json").read_text() == text_of(name), "`make docs` writes it"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_what_its_schema_says(
    story: Story, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = story.job().attempts[0]
    words = [
        {"SESSION": "s1", "LOG": attempt.log, "FIRES": FIRES}.get(word, word)
        for word in COMMANDS[name]
    ]
    said = printed(capsys, *words)
    schema = json.loads((FOLDER / f"{name}.json").read_text())
    for text in said.splitlines() if name == "events" else [said]:
        jsonschema.validate(json.loads(text), schema)
    if name == "queue-list":
        key = json.loads(said)[0]["key"]
        shown = json.loads(printed(capsys, "queue", "s1", "show", key))
        jsonschema.validate(shown, json.loads((FOLDER / "queue-show.json").read_text()))


def test_a_schema_takes_nothing_less(story: Story, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = json.loads(printed(capsys, "budget", "s1", "--json"))
    schema = json.loads((FOLDER / "budget.json").read_text())
    del found["spent_gpu_hours"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(found, schema)


def test_an_explanation_has_the_sentences_and_the_end_of_the_log(
    story: Story, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.loads(printed(capsys, "explain", "s1", "tiny", "--json"))
    assert found["sentences"][0] == "tiny has failed: FAILED (exit code 1)."
    assert found["log_end"][-1] == "the end"
    told = printed(capsys, "explain", "s1", "tiny").splitlines()
    assert told[: len(found["sentences"])] == found["sentences"]
    assert told[-1] == "the end"


@pytest.mark.parametrize(
    "words", [("explain",), ("compare",), ("export",), ("budget",), ("queue",), ("tail",)], ids=str
)
def test_a_session_that_is_left_out_is_the_newest(
    story: Story, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(capsys, *words) == printed(capsys, *words, "s1")


@pytest.mark.parametrize("words", [("cancel",), ("sessions", "remove")], ids=str)
def test_what_destroys_wants_its_session_named(
    story: Story, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert "SESSION" in capsys.readouterr().err
    assert Session.load(story.path).id == "s1"
