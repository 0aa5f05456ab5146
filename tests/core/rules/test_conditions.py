"""Conditions: yes, not yet, or never; looked at without changing anything."""

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from autoexp.model import COMPOSING
from autoexp.rules.condition_checks import Answer, check, check_all
from autoexp.rules.conditions import CONDITIONS, Condition, commands_in
from tests.core.rules.facts import facts

ADAPTER: TypeAdapter[Condition] = TypeAdapter(Condition)


ANSWERS: list[tuple[dict[str, Any], str]] = [
    ({"value": {"name": "rank", "equals": 7}}, "holds"),
    ({"value": {"name": "rank", "equals": "7"}}, "holds"),
    ({"value": {"name": "rank", "equals": "07"}}, "never"),
    ({"value": {"name": "rank", "one_of": [1, 7]}}, "holds"),
    ({"value": {"name": "rank", "above": 6, "below": 8}}, "holds"),
    ({"value": {"name": "rank", "above": 7}}, "never"),
    ({"value": {"name": "details", "above": 7}}, "never"),
    ({"value": {"name": "details", "matches": "process (?:exited|died)"}}, "holds"),
    ({"value": {"name": "details", "matches": "^process"}}, "never"),
    ({"file_exists": "here/file"}, "holds"),
    ({"file_exists": "{place}/file"}, "holds"),
    ({"file_exists": "there"}, "not yet"),
    ({"glob": {"pattern": "here/f*", "at_least": 1}}, "holds"),
    ({"glob": {"pattern": "**/f*", "at_least": 2}}, "not yet"),
    ({"file_contains": {"path": "here/file", "text": "ready"}}, "holds"),
    ({"file_contains": {"path": "here/file", "text": "done"}}, "not yet"),
    ({"file_contains": {"path": "gone", "text": "done"}}, "not yet"),
    ({"elapsed": "1m"}, "holds"),
    ({"elapsed": "61s"}, "not yet"),
    ({"quiet_for": "30s"}, "holds"),
    ({"quiet_for": "1m"}, "not yet"),
    ({"max_attempts": 4}, "holds"),
    ({"max_attempts": 3}, "never"),
    ({"max_attempts_without_progress": 2}, "holds"),
    ({"max_attempts_without_progress": 1}, "never"),
    ({"died_at_start": False}, "holds"),
    ({"died_at_start": True}, "never"),
    ({"job": {"name": "a", "state": ["RUNNING"]}}, "holds"),
    ({"job": {"name": "a", "verdict": ["finished"]}}, "not yet"),
    ({"job": {"name": "b", "verdict": ["finished"]}}, "holds"),
    ({"job": {"name": "b", "verdict": ["failed"]}}, "never"),
    ({"job": {"name": "c", "state": ["RUNNING"]}}, "not yet"),
    ({"command": {"run": ["true"]}}, "holds"),
    ({"command": {"run": ["false"]}}, "not yet"),
    ({"command": {"run": ["untried"]}}, "not yet"),
    ({"all_of": [{"max_attempts": 4}, {"elapsed": "1m"}]}, "holds"),
    ({"all_of": [{"max_attempts": 4}, {"elapsed": "61s"}]}, "not yet"),
    ({"all_of": [{"max_attempts": 3}, {"elapsed": "61s"}]}, "never"),
    ({"any_of": [{"max_attempts": 3}, {"elapsed": "61s"}]}, "not yet"),
    ({"any_of": [{"max_attempts": 3}, {"elapsed": "1m"}]}, "holds"),
    ({"any_of": [{"max_attempts": 3}, {"max_attempts": 2}]}, "never"),
    ({"none_of": [{"max_attempts": 3}, {"elapsed": "61s"}]}, "holds"),
    ({"none_of": [{"max_attempts": 4}]}, "never"),
    ({"none_of": [{"max_attempts_without_progress": 2}]}, "never"),
    ({"none_of": [{"died_at_start": False}]}, "never"),
    ({"none_of": [{"any_of": [{"max_attempts": 4}, {"elapsed": "61s"}]}]}, "never"),
    ({"none_of": [{"none_of": [{"max_attempts": 3}]}]}, "never"),
    ({"none_of": [{"job": {"name": "a", "state": ["RUNNING"]}}, {"max_attempts": 4}]}, "never"),
    ({"none_of": [{"job": {"name": "a", "state": ["RUNNING"]}}]}, "not yet"),
]


@pytest.mark.parametrize(
    ("written", "answer"),
    ANSWERS,
    ids=str,
)
def test_a_condition_answers(tmp_path: Path, written: dict[str, Any], answer: str) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("it is ready\n")
    condition = ADAPTER.validate_python(written)
    found = check(condition, facts(tmp_path))
    assert found.answer is Answer(answer)
    assert bool(found.reason) == (found.answer is not Answer.HOLDS)
    # What is on disk in an action's file reads back as the same.
    assert ADAPTER.validate_json(ADAPTER.dump_json(condition)) == condition


def test_a_job_that_died_at_its_start_is_told_with_the_exception(tmp_path: Path) -> None:
    known = facts(tmp_path, start_exception=lambda: "ImportError: torch")
    assert check(ADAPTER.validate_python({"died_at_start": True}), known).answer is Answer.HOLDS
    refused = check(ADAPTER.validate_python({"died_at_start": False}), known)
    assert refused == (Answer.NEVER, "it died before its first iteration, of ImportError: torch")


def test_each_condition_has_a_case_in_which_it_holds_and_one_in_which_it_does_not() -> None:
    keys = {key for model in CONDITIONS for key in model.model_fields}
    assert {next(iter(written)) for written, _ in ANSWERS} == keys
    for key in keys:
        answers = {answer for written, answer in ANSWERS if key in written}
        assert "holds" in answers and len(answers) > 1, key


def test_what_never_holds_decides_before_what_does_not_hold_yet(tmp_path: Path) -> None:
    conditions = [ADAPTER.validate_python(x) for x in ({"elapsed": "2m"}, {"max_attempts": 3})]
    assert check_all(conditions, facts(tmp_path)).answer is Answer.NEVER
    assert check_all([], facts(tmp_path)).answer is Answer.HOLDS


def test_a_value_in_a_path_is_data(tmp_path: Path) -> None:
    values = {"name": "{place}$(touch x)", "place": "gone"}
    (tmp_path / values["name"]).write_text("")
    condition = ADAPTER.validate_python({"file_exists": "{name}"})
    assert check(condition, facts(tmp_path, values=values)).answer is Answer.HOLDS


@pytest.mark.parametrize(
    ("captured", "answer"),
    [
        ("1,000", "holds"),
        ("3.2e+4", "holds"),
        ("28.2K", "holds"),
        ("inf", "holds"),
        ("9" * 5000, "holds"),
        ("nan", "never"),
        ("n/a", "never"),
        ("", "never"),
    ],
)
def test_a_captured_number_compares_as_trainers_print_it(
    tmp_path: Path, captured: str, answer: str
) -> None:
    condition = ADAPTER.validate_python({"value": {"name": "x", "above": 999}})
    found = check(condition, facts(tmp_path, values={"x": captured}))
    assert found.answer is Answer(answer)
    if captured == "n/a":
        assert found.reason == "x is 'n/a', which is not a number"


@pytest.mark.parametrize("captured", ["x" * 4000, "**a", "[", "a\0b", "*", "{place}"])
@pytest.mark.parametrize(
    "written",
    [
        {"file_exists": "{x}"},
        {"glob": {"pattern": "{x}"}},
        {"file_contains": {"path": "{x}", "text": "{x}"}},
    ],
    ids=str,
)
def test_a_captured_value_in_a_path_raises_nothing_and_finds_nothing_else(
    tmp_path: Path, captured: str, written: dict[str, Any]
) -> None:
    (tmp_path / "file").write_text("")
    condition = ADAPTER.validate_python(written)
    found = check(condition, facts(tmp_path, values={"x": captured}))
    assert found.answer is Answer.NOT_YET


def test_the_commands_inside_of_other_conditions_are_found() -> None:
    nested = {"any_of": [{"none_of": [{"command": {"run": ["a"]}}]}, {"command": {"run": ["b"]}}]}
    found = commands_in(ADAPTER.validate_python(nested))
    assert [command.run for command in found] == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"max_attemps": 4}, "did you mean `max_attempts`"),
        ({"max_attempts": 0}, "greater than 0"),
        ({"max_attempts": 4, "elapsed": 1}, "one key and its value"),
        ("max_attempts", "one key and its value"),
        ({"elapsed": "soon"}, "not a duration"),
        ({"value": {"name": "x"}}, "give `equals`"),
        ({"value": {"name": "x", "matches": r"(a)\1"}}, "references to groups"),
        ({"job": {"name": "x"}}, "give `state` or `verdict`"),
    ],
)
def test_what_is_no_condition_is_refused_in_words(written: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(written, context=COMPOSING)


@pytest.mark.parametrize("value", ["../secret", "/etc", "a/../../secret", "link/secret"])
@pytest.mark.parametrize(
    "written",
    [
        {"file_exists": "inside/{rank}"},
        {"glob": {"pattern": "inside/{rank}*"}},
        {"file_contains": {"path": "inside/{rank}", "text": "x"}},
        {"none_of": [{"file_exists": "inside/{rank}"}]},
    ],
)
def test_a_captured_value_leads_out_of_no_directory(
    tmp_path: Path, written: dict[str, Any], value: str
) -> None:
    (tmp_path / "inside").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "inside" / "link").symlink_to(tmp_path)
    condition = ADAPTER.validate_python(written)
    of_log = facts(tmp_path, values={"rank": value}, captured=frozenset({"rank"}))
    checked = check(condition, of_log)
    if "none_of" not in written:
        assert (checked.answer, "leads out of" in checked.reason) == (Answer.NEVER, True)


def test_a_captured_value_chooses_a_file_of_its_directory_and_a_configured_path_any(
    tmp_path: Path,
) -> None:
    (tmp_path / "done-7").write_text("ready")
    of_log = facts(tmp_path / "session", captured=frozenset({"rank"}))
    for written in (
        {"file_exists": f"{tmp_path}/done-{{rank}}"},
        {"glob": {"pattern": f"{tmp_path}/d*-{{rank}}"}},
        {"file_contains": {"path": "../done-7", "text": "ready"}},
    ):
        (tmp_path / "session").mkdir(exist_ok=True)
        assert check(ADAPTER.validate_python(written), of_log).answer is Answer.HOLDS


def test_a_pipe_is_not_waited_for_by_a_condition(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    condition = ADAPTER.validate_python({"file_contains": {"path": "pipe", "text": "x"}})
    assert check(condition, facts(tmp_path)).answer is Answer.NOT_YET
