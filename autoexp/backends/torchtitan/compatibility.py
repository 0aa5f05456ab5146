"""Tells which torchtitan a checkout is, and if it has what autoexp gives: it is read, not run."""

import ast
from pathlib import Path
from typing import Literal

from autoexp.backends.torchtitan.arguments import OURS, SECTIONS, TorchtitanArgs
from autoexp.errors import BadInput
from autoexp.model import FrozenModel

_JOB_CONFIG = "torchtitan/config/job_config.py"
_MANAGER = "torchtitan/config/manager.py"
Dialect = Literal["0.2", "0.3"]
OLD: Dialect = "0.2"
NEW: Dialect = "0.3"


class Comparison(FrozenModel):
    """What a checkout speaks, and its differences from what autoexp gives."""

    speaks: str
    """`0.2`, with job files; or `0.3`, as main since February 2026, with `--module`, `--config`."""
    missing: tuple[str, ...] = ()
    """Arguments that `backend=torchtitan` may give and that the checkout does not take."""
    unknown: tuple[str, ...] = ()
    """Arguments of the checkout that it does not know, and refuses."""

    @property
    def fits(self) -> bool:
        return not self.missing


def dialect(source: Path) -> Dialect | None:
    """How a checkout is configured; None where that cannot be read."""
    if (source / _JOB_CONFIG).is_file():
        return OLD
    try:
        manager = (source / _MANAGER).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return NEW if "--module" in manager and "--config" in manager else None


def compare(source: Path) -> Comparison:
    """Compare with a checkout by reading its source; raises BadInput where there is none."""
    speaks = dialect(source)
    if speaks is None:
        raise BadInput(f"{source}: no torchtitan: neither {_JOB_CONFIG} nor {_MANAGER} says so")
    if speaks == NEW:
        return Comparison(speaks=NEW)
    declared, known = _declared(source / _JOB_CONFIG), _known()
    return Comparison(
        speaks=OLD,
        missing=tuple(sorted(known - declared)),
        unknown=tuple(sorted(name for name in declared - known if name.split(".")[0] in SECTIONS)),
    )


def _known() -> set[str]:
    """Arguments that autoexp gives or takes, `section.name`."""
    found = set()
    for section, names in SECTIONS.items():
        own = TorchtitanArgs.model_fields[section].annotation
        fields = getattr(own, "model_fields", {})
        found |= {f"{section}.{name}" for name in (*names.split(), *fields, *OURS.get(section, ()))}
    return found


def _declared(path: Path) -> set[str]:
    """Fields of the sections of `JobConfig`, as dotted names."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, SyntaxError) as error:
        raise BadInput(f"{path}: cannot be read: {error}") from error
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found = set()
    for section, kind in _fields(classes.get("JobConfig")).items():
        found |= {f"{section}.{name}" for name in _fields(classes.get(kind))}
    return found


def _fields(node: ast.ClassDef | None) -> dict[str, str]:
    """Names of a dataclass's fields, with their annotations."""
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for statement in (node.body if node else ())
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }
