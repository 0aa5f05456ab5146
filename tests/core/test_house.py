"""The house keeps its shape: which room may import which, and how big a room may be."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("autoexp", "blocks", "tasks", "flows", "bench")
MODULES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, in functions too, and by name as a constant."""
    return tuple(_imported(path))


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                assert node.level == 0, f"{name_of(path)}: relative import"
                yield str(node.module)
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            case ast.Call(
                func=ast.Name("import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(str(name)), *_],
            ):
                yield name


def test_the_rooms_are_found() -> None:
    assert len(MODULES) > 30
    assert ROOT / "autoexp" / "session" / "session.py" in MODULES
    assert "autoexp.cli.main" in set(imported(ROOT / "autoexp" / "__main__.py"))


def test_every_room_stands_in_the_contract_of_the_layers() -> None:
    """`make check` runs import-linter, which says nothing of a room that it is not told of."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    named = {name for layer in layers for name in layer.split(" | ")}
    inside = {
        f"autoexp.{path.stem}" for path in (ROOT / "autoexp").iterdir() if path.suffix != ".yaml"
    }
    inside |= {f"autoexp.flows.{path.stem}" for path in (ROOT / "flows").iterdir()}
    apart = {"__init__", "__main__", "__pycache__", "configs", "demo", "flows"}
    assert {name for name in inside if name.split(".")[-1] not in apart} - named == set()


@pytest.mark.parametrize("room", sorted({path.parent for path in MODULES}), ids=name_of)
def test_a_room_holds_twelve_modules_at_most(room: Path) -> None:
    assert len([path for path in room.glob("*.py") if not path.stem.startswith("__")]) <= 12


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nobody_imports_what_prefect_keeps_to_itself(path: Path) -> None:
    assert not [module for module in imported(path) if module.startswith("prefect._")]


@pytest.mark.parametrize("path", [p for p in MODULES if "bench" not in p.parts], ids=name_of)
def test_whatever_prefect_runs_raises_plain_text(path: Path) -> None:
    """Prefect shows it as a state's message; `watch` and `find_or_create` do so themselves."""
    for node in ast.walk(tree_of(path)):
        if not isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef):
            continue
        made_by = {ast.unparse(decorator).split("(")[0] for decorator in node.decorator_list}
        if made_by & {"flow", "task"}:
            body = ast.unparse(node)
            assert any(word in body for word in ("sinks.plain_errors()", "return await watch"))


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
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (layers,) = [c["layers"] for c in contracts["contracts"] if c["type"] == "layers"]
    wanted = [[name.removeprefix("autoexp.") for name in layer.split(" | ")] for layer in layers]
    drawn: list[list[str]] = []
    for line in re.findall(r"^    │ (.*?) *│", PAGE, re.MULTILINE):
        names = [name.strip() for name in line.split("·")]
        if names[0] == "":  # the line before goes on
            drawn[-1] += names[1:]
        else:
            drawn.append(names)
    assert [sorted(names) for names in drawn] == [sorted(names) for names in wanted]
