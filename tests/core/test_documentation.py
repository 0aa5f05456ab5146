"""The reference in docs/rules.md says what the models say."""

from pathlib import Path

from autoexp.rules.actions import Step
from autoexp.rules.conditions import CONDITIONS
from autoexp.rules.reference import MARK, reference
from autoexp.rules.ruleset import Rules

PAGE = Path(__file__).resolve().parents[2] / "docs" / "rules.md"


def test_the_reference_of_rules_is_up_to_date() -> None:
    assert PAGE.read_text().partition(MARK)[2] == reference().removeprefix(MARK), "run `make docs`"


def test_every_key_of_the_language_is_described() -> None:
    text = reference()
    keys = [key for model in (*CONDITIONS, Rules, Step) for key in model.model_fields]
    assert [key for key in keys if f"`{key}" not in text] == []
    empty = [line for line in text.splitlines() if line.startswith("|") and line.endswith("|  |")]
    assert empty == []
