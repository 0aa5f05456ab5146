"""The table of modules says what each touches, as its imports and calls show it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sources import MODULES, ROOT, imported, name_of, tree_of

PAGE = (ROOT / "docs" / "architecture.md").read_text()
ROWS = dict(re.findall(r"^\| `([\w/]+\.py)` \| .* \| (.*) \|$", PAGE, re.MULTILINE))
KINDS = (
    *("disk", "disk, reading", "scheduler", "processes", "network", "Prefect", "environment"),
    *("clock", "terminal", "nothing"),
)
IMPORTS = {
    "Prefect": r"prefect(_shell)?(\.|$)|autoexp\.tasks\.",
    "scheduler": r"submitit\.|autoexp\.schedulers\.slurm\.commands\.(run|ask)$",
    "processes": r"subprocess$",
    "network": r"urllib\.request$|http\.client$|http\.cookies$|httpx$|uvicorn$",
    "environment": r"autoexp\.storage\.places\.(sessions_root|own_configs)$",
    "clock": r"autoexp\.model\.now$",
    "terminal": r"autoexp\.reports\.terminal(\.|$)|rich\.live$",
}
NAMES = {
    "environment": {"os.environ", "os.getenv"},
    "processes": {"os.kill", "os.waitid", "signal.signal", "signal.SIGSTOP"},
    "network": {"socket.socket"},
    "clock": {"time.time", "time.monotonic", "time.time_ns", "time.clock_gettime", "datetime.now"},
}
READS = {"iterdir", "scandir", "read_text", "read_bytes", "readlink", "lstat", "is_file"}
WRITES = {"write_text", "write_bytes", "mkdir", "unlink", "symlink_to", "hardlink_to", "rmdir"}
WRITERS = {"atomic.write", "atomic.append", "shutil.rmtree", "os.utime", "session.save_job"}


def touched(path: Path) -> Iterator[str]:
    """What a module touches by its own imports and calls."""
    for kind, pattern in IMPORTS.items():
        if any(re.match(pattern, module) for module in imported(path)):
            yield kind
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            yield from (kind for kind, names in NAMES.items() if name in names)
            if name in WRITERS:
                yield "disk"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if node.func.attr in WRITES:
                yield "disk"
            if node.func.attr in READS:
                yield "disk, reading"


def stated(path: Path) -> list[str]:
    """The kinds in a module's row; what stands in brackets is a remark."""
    plain = re.sub(r" \([^)]*\)", "", ROWS[name_of(path)])
    return [
        kind.replace(";", ",")
        for kind in plain.replace("disk, reading", "disk; reading").split(", ")
    ]


LISTED = [path for path in MODULES if path.stem != "__init__"]


@pytest.mark.parametrize("path", LISTED, ids=name_of)
def test_a_modules_row_names_all_that_it_touches_by_its_own_imports_and_calls(path: Path) -> None:
    kinds = stated(path)
    assert set(kinds) <= set(KINDS) and (kinds == ["nothing"] or "nothing" not in kinds)
    assert kinds == sorted(kinds, key=KINDS.index), "in the order of the page"
    missing = set(touched(path)) - set(kinds)
    if "disk" in kinds:  # that is more than reading
        missing.discard("disk, reading")
    assert missing == set()


def test_a_modules_row_is_a_description_and_no_question() -> None:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| (.*) \| .* \|$", PAGE, re.MULTILINE)
    asked = r"(what|whether|which|where|who|how|whom|if)\b"
    assert [name for name, text in rows if re.match(asked, text)] == []
