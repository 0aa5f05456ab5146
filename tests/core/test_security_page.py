"""The table in docs/security.md names functions and tests that exist and hold."""

import ast
import re
from pathlib import Path

import pytest

from tests.core.promises import HOSTILE, PROMISES, keep

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
TABLE = PAGE.partition("## Where data from outside enters")[2].partition("\n## ")[0]
ROWS = [line.split(" | ") for line in TABLE.splitlines() if "::" in line]
# They take a session, or a name: the test of their row shows what they promise.
BY_THEIR_TEST = {"autoexp.inbox.take_on", "autoexp.schema.read", "autoexp.sensitive.may_be_stored"}


def defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip("| "))
def test_functions_and_tests_of_the_table_exist_and_hold(row: list[str], tmp_path: Path) -> None:
    functions, tests = (re.findall(r"`([^`]+)`", cell) for cell in row[2:])
    assert functions and tests
    for function in functions:
        module, _, name = function.rpartition(".")
        assert name in defined(ROOT / f"{module.replace('.', '/')}.py")
        if function.startswith("autoexp.") and function not in BY_THEIR_TEST:
            for text in HOSTILE:
                keep(function, text, tmp_path)
    for test in tests:
        file, _, name = test.partition("::")
        assert name in defined(ROOT / file)


def test_whatever_has_a_promise_stands_in_the_table() -> None:
    assert len(ROWS) > 20
    assert {name for name in PROMISES if f"`{name}`" not in TABLE} == set()
