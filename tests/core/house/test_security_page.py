"""The table in docs/security.md names functions and tests that exist and hold."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

from tests.core.house.promises import HOSTILE, PROMISES, keep
from tests.sources import MODULES, ROOMS, ROOT, imported, name_of

PAGE = (ROOT / "docs" / "security.md").read_text()
TABLE = PAGE.partition("## Where data from outside enters")[2].partition("\n## ")[0]
ROWS = [line.split(" | ") for line in TABLE.splitlines() if "::" in line]
# They take a session, or a name: the test of their row shows what they promise.
BY_THEIR_TEST = {
    "autoexp.operations.requests.process_requests",
    "autoexp.cli.submit.adopt",
    "autoexp.flows.deployment.server_checks.problem",
}


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
        if function not in BY_THEIR_TEST:
            for text in HOSTILE:
                keep(function, text, tmp_path)
    for test in tests:
        file, _, name = test.partition("::")
        assert name in defined(ROOT / file)


def test_whatever_has_a_promise_stands_in_the_table() -> None:
    assert len(ROWS) > 20
    assert {name for name in PROMISES if f"`{name}`" not in TABLE} == set()


def names_in(requirements: list[str]) -> set[str]:
    return {re.split(r"[^\w.-]", text)[0].lower() for text in requirements}


def test_each_package_that_is_asked_for_stands_in_the_page_as_it_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked_for = names_in(project["dependencies"])
    asked_for |= names_in([*extras["fast"], *extras["parquet"], *extras["tensorboard"]])
    lock = (ROOT / "requirements.lock").read_text()
    pinned = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.lower(), re.MULTILINE))
    table = PAGE.partition("| package | for |")[2].splitlines()
    rows = [row.strip("| ").split(" | ") for row in table if row.count(" | ") == 3]
    assert {row[0]: row[2] for row in rows} == {name: pinned[name] for name in asked_for}


def test_each_package_that_is_imported_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked_for = names_in(sum(project["optional-dependencies"].values(), project["dependencies"]))
    named = {
        "hydra": "hydra-core",
        "re2": "google-re2",
        "yaml": "pyyaml",
        "pydantic_core": "pydantic",
    }
    named |= {"antlr4": "antlr4-python3-runtime", "prefect_shell": "prefect-shell"}
    named |= {"mlflow": "mlflow-skinny"}
    for path in MODULES:
        for module in {module.split(".")[0] for module in imported(path)}:
            if module not in sys.stdlib_module_names and module not in ROOMS:
                assert named.get(module, module).lower() in asked_for, name_of(path)
