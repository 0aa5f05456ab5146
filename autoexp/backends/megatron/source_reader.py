"""Reads the arguments of a Megatron-LM checkout from its source: nothing of it is run."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

# Where arguments are declared, in releases and in main: plainly, and as fields of dataclasses from
# which `ArgumentGroupFactory` makes arguments.
_WHERE = ("megatron/training", "megatron/core", "megatron/post_training", "megatron/rl")


_BOTH = "BooleanOptionalAction"
_MAIN = re.compile(r"^if __name__ == ['\"]__main__['\"]", re.MULTILINE)


class Option(NamedTuple):
    """An argument as declared in the source; None where that cannot be read without running it."""

    name: str
    """Without dashes, `_` for `-`: `train_iters`."""
    is_flag: bool
    choices: frozenset[str] | None = None
    default: str | None = None


def names_in(source: Path, script: str) -> frozenset[str]:
    """Names of all arguments; empty where there is no Megatron source to read."""
    names = frozenset(options_in(source, script))
    return names if "train_iters" in names else frozenset()


@cache
def options_in(source: Path, script: str) -> dict[str, Option]:
    """Arguments that the checkout declares, by name."""
    trees = list(_trees(source, script))
    classes = {
        node.name: node
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found: dict[str, Option] = {}
    for tree in trees:
        lists = _lists(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
                found |= {option.name: option for option in _declared(node)}
            elif _called(node).endswith("Factory"):
                found |= {option.name: option for option in _generated(node, classes, lists)}
    return found


def _lists(tree: ast.Module) -> dict[str, ast.List]:
    """Lists that are assigned to a name, such as those of fields that are no arguments."""
    return {
        target.id: node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _trees(source: Path, script: str) -> Iterator[ast.Module]:
    paths = [source / script]
    for folder in _WHERE:
        paths += sorted((source / folder).rglob("*.py"))
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        if "add_argument" in text or "Factory(" in text or "dataclass" in text:
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
            # A program of its own has arguments of its own.
            if path == source / script or not _MAIN.search(text):
                yield tree


def _called(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else ""


def _declared(call: ast.Call) -> Iterator[Option]:
    """`add_argument('--train-iters', type=int, default=None)`."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    action_node = keywords.get("action")
    action = _constant(action_node)
    for argument in call.args:
        spelled = _constant(argument)
        if isinstance(spelled, str) and spelled.startswith("--"):
            # `argparse.BooleanOptionalAction` takes `--no-NAME` as well.
            both = isinstance(action_node, ast.Attribute) and action_node.attr == _BOTH
            for name in (_name(spelled), f"no_{_name(spelled)}")[: 1 + both]:
                yield Option(
                    name,
                    both or action in ("store_true", "store_false"),
                    _choices(keywords.get("choices")),
                    _default(keywords.get("default")),
                )


def _generated(
    call: ast.Call, classes: dict[str, ast.ClassDef], lists: dict[str, ast.List]
) -> Iterator[Option]:
    """`ArgumentGroupFactory(TrainingConfig, exclude=[...])`: an argument for each field."""
    if not call.args or not isinstance(call.args[0], ast.Name):
        return
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    without = keywords.get("exclude")
    without = lists.get(without.id) if isinstance(without, ast.Name) else without
    excluded = _choices(without) or frozenset()
    for field in _fields(call.args[0].id, classes):
        assert isinstance(field.target, ast.Name)
        name, meta = field.target.id, ast.unparse(field)
        if name in excluded or "init=False" in meta:
            continue
        annotation = ast.unparse(field.annotation)
        default = _default(field.value)
        flag = annotation in ("bool", "bool | None", "Optional[bool]")
        literal = ast.walk(field.annotation)
        choices = [x.value for x in literal if isinstance(x, ast.Constant) and x.value is not None]
        named = _own_names(field)
        if not named:
            on = flag and default == "True"
            named = [f"no_{name}", f"disable_{name}"] if on else [name]
        for one in named:
            yield Option(
                one,
                flag,
                frozenset(map(str, choices)) if "Literal" in annotation else None,
                None if flag else default,
            )


def _fields(name: str, classes: dict[str, ast.ClassDef]) -> Iterator[ast.AnnAssign]:
    """The fields of a dataclass, those of its bases first."""
    node = classes.get(name)
    if node is None:
        return
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id != name:
            yield from _fields(base.id, classes)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement


def _own_names(field: ast.AnnAssign) -> list[str]:
    """Names that a field's `argparse_meta` gives instead of its own."""
    words = [_constant(node) for node in ast.walk(field)]
    return [_name(word) for word in words if isinstance(word, str) and word.startswith("--")]


def _name(spelled: str) -> str:
    return spelled.lstrip("-").replace("-", "_")


def _constant(node: ast.AST | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def _default(node: ast.AST | None) -> str | None:
    """A constant default; `field(default=…)` is looked into."""
    if isinstance(node, ast.Call):
        node = {keyword.arg: keyword.value for keyword in node.keywords}.get("default")
    value = _constant(node)
    return None if value is None else str(value)


def _choices(node: ast.AST | None) -> frozenset[str] | None:
    if not isinstance(node, ast.List | ast.Tuple):
        return None
    return frozenset(str(_constant(element)) for element in node.elts)
