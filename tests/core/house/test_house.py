"""The house keeps its shape: which room may import which, and how big a room may be."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.sources import MODULES, ROOT, imported, name_of, tree_of

PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"))

TESTS = sorted((ROOT / "tests").rglob("*.py"))


def test_the_rooms_are_found() -> None:
    assert len(MODULES) > 30
    assert ROOT / "autoexp" / "session" / "session.py" in MODULES
    assert "autoexp.cli.main" in set(imported(ROOT / "autoexp" / "__main__.py"))


def contract(kind: str) -> dict[str, Any]:
    """The contract of a kind for import-linter."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = [found for found in contracts["contracts"] if found["type"] == kind]
    return dict(found)


def names_in(folder: Path) -> set[str]:
    return {path.stem for path in folder.iterdir()} - {"__init__", "__main__", "__pycache__"}


WITH_PREFECT = {"api", "cli", "flows", "tasks", "blocks"}


def test_every_room_stands_in_the_contract_of_the_layers() -> None:
    """`make check` runs import-linter, which says nothing of a room that it is not told of."""
    layers = [name for layer in contract("layers")["layers"] for name in layer.split(" | ")]
    rooms = names_in(ROOT / "autoexp") - {"flows", "configs", "prefect", "demo"}
    rooms |= {f"flows.{name}" for name in names_in(ROOT / "flows")}
    assert sorted(layers) == sorted(f"autoexp.{name}" for name in rooms)


def test_every_room_of_the_core_stands_in_the_contract_against_prefect() -> None:
    core = names_in(ROOT / "autoexp") - {*WITH_PREFECT, "configs", "prefect"}
    named = contract("forbidden")["source_modules"]
    assert sorted(named) == sorted(f"autoexp.{name}" for name in core)


@pytest.mark.parametrize("room", sorted({path.parent for path in MODULES}), ids=name_of)
def test_a_room_holds_twelve_modules_at_most(room: Path) -> None:
    assert len([path for path in room.glob("*.py") if not path.stem.startswith("__")]) <= 12


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nobody_imports_what_prefect_keeps_to_itself(path: Path) -> None:
    assert not [module for module in imported(path) if module.startswith("prefect._")]


@pytest.mark.parametrize("path", [p for p in MODULES if "bench" not in p.parts], ids=name_of)
def test_whatever_prefect_runs_raises_plain_text(path: Path) -> None:
    """Prefect shows it as a state's message; `watch` and `create_and_watch` do so themselves."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
            continue
        made_by = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
        if made_by & {"flow", "task"}:
            body = ast.unparse(node)
            plain = ("sinks.plain_errors()", "return await watch", "return await create_and_watch")
            assert any(word in body for word in plain)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_is_one_room(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_modules_name_says_what_it_is_about(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_begins_with_a_sentence(path: Path) -> None:
    text = ast.get_docstring(tree_of(path))
    assert text is not None and text.split("\n\n")[0].rstrip().endswith(".")


@pytest.mark.parametrize("path", TESTS, ids=name_of)
def test_what_tests_share_is_imported_from_no_test_module_and_no_conftest(path: Path) -> None:
    names = [name.split(".") for name in imported(path) if name.startswith("tests.")]
    assert not [n for n in names if any(p == "conftest" or p.startswith("test_") for p in n)]


def test_no_test_imports_a_fixture() -> None:
    """Where it does, ruff finds the parameter of its name a redefinition."""
    assert [name_of(path) for path in TESTS if f"noqa: {'F811'}" in path.read_text()] == []


def test_folders_of_core_tests_are_named_as_the_packages() -> None:
    folders = {path.parent.name for path in (ROOT / "tests" / "core").glob("*/__init__.py")}
    packages = {path.parent.name for path in (ROOT / "autoexp").glob("*/__init__.py")}
    assert len(folders) > 10 and folders - packages == {"house"}


def test_the_core_runs_without_prefect() -> None:
    code = (
        "import sys; sys.modules['prefect'] = None\n"
        "import autoexp.session.session, autoexp.session.create, autoexp.monitor.monitor\n"
        "import autoexp.reports.status\n"
        "import autoexp.payload, autoexp.schedulers.local\n"
        "found = [n for n in sys.modules if n.split('.')[0].startswith('prefect')]\n"
        "assert found == ['prefect'], found\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_payload_needs_the_standard_library_alone() -> None:
    modules = {module.split(".")[0] for module in imported(ROOT / "autoexp" / "payload.py")}
    assert modules <= set(sys.stdlib_module_names)


PAGE = (ROOT / "docs" / "architecture.md").read_text()
_FILE = re.compile(r"`((?:autoexp|blocks|tasks|flows|bench)/[\w/]+\.py)`")


def test_architecture_names_every_module_and_none_that_does_not_exist() -> None:
    """`docs/architecture.md` has a row for each, by its path."""
    described = re.findall(rf"^\| {_FILE.pattern} \|", PAGE, re.MULTILINE)
    expected = {name_of(path) for path in MODULES if path.stem != "__init__"}
    assert sorted(expected - set(described)) == [], "give these a row in docs/architecture.md"
    assert sorted(set(described) - expected) == [], "these rows are of modules that are gone"
    assert len(described) == len(set(described))
    assert sorted(set(_FILE.findall(PAGE)) - expected) == [], "named there, and gone"


def test_architecture_names_functions_that_are_there() -> None:
    """In the life of a checkpoint: what it does, in which file, by which function."""
    steps = [line for line in PAGE.splitlines() if re.match(r"\| \d+ \|", line)]
    assert len(steps) > 10
    for step in steps:
        files, functions = (re.findall(r"`([\w/.]+)`", cell) for cell in step.split("|")[3:5])
        defined = {
            node.name
            for file in files
            for node in ast.walk(tree_of(ROOT / file))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert functions and set(functions) <= defined, step


def test_architecture_draws_the_layers_of_the_contract() -> None:
    layers = contract("layers")["layers"]
    wanted = [[name.removeprefix("autoexp.") for name in layer.split(" | ")] for layer in layers]
    drawn: list[list[str]] = []
    for line in re.findall(r"^    │ (.*?) *│", PAGE, re.MULTILINE):
        names = [name.strip() for name in line.split("·")]
        if names[0] == "":  # the line before goes on
            drawn[-1] += names[1:]
        else:
            drawn.append(names)
    assert [sorted(names) for names in drawn] == [sorted(names) for names in wanted]


RETIRED = re.compile(
    r"(?i)\b(heeds?|heeded|heeding|tr(y|ies|ying) on|stir(s|red|ring)?|wish(es|ed)?|tidings"
    r"|bulletins?|take_on|take on|taken on|any more|drop_waiting|hopeless|br(eaks?|oke) down)\b"
)


@pytest.mark.parametrize("path", [*MODULES, *sorted(PAGES)], ids=name_of)
def test_no_word_is_used_that_was_replaced_by_a_term_of_the_field(path: Path) -> None:
    """docs/glossary.md has the terms: handle, process, retry, notify, log, request."""
    lines = enumerate(path.read_text().splitlines(), 1)
    assert [f"{number}: {line.strip()}" for number, line in lines if RETIRED.search(line)] == []
