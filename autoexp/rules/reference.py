"""Writes the reference part of docs/rules.md from the models, so that it cannot drift.

python -m autoexp.rules.reference docs/rules.md
"""

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from autoexp.rules.actions import ConditionalAction, LaunchedCooldown
from autoexp.rules.conditions import CONDITIONS
from autoexp.rules.durations import spoken
from autoexp.rules.event_values import OF_JOB, OF_SESSION
from autoexp.rules.rules import RuleBase
from autoexp.rules.ruleset import Rules

MARK = "<!-- From here on written by `make docs`. -->\n"


def reference() -> str:
    """The reference of all rules, conditions and actions with their keys, as Markdown."""
    lines = [MARK, *_rules(), *_conditions(), *_actions()]
    return "\n".join(lines).rstrip() + "\n"


def _rules() -> Iterator[str]:
    yield "## Rules\n"
    shared = ", ".join(f"`{{{name}}}`" for name in (*OF_SESSION, *OF_JOB))
    yield f"Templates of every rule may use {shared}.\n"
    for section, field in Rules.model_fields.items():
        model = next(m for m in _models(field.annotation) if issubclass(m, RuleBase))
        yield f"### `{section}`: {field.description}\n"
        yield f"{_doc(model)}\n"
        yield from _table(model)
        own = ", ".join(f"`{{{name}}}`" for name in model.NAMES)
        captured = " and the pattern's named groups" if section == "log_events" else ""
        yield f"\nTemplates may also use {own}{captured}.\n"
        for name, inner in model.model_fields.items():
            for nested in _models(inner.annotation):
                if nested is not ConditionalAction:
                    yield f"`{name}`: {_doc(nested)}\n"
                    yield from (*_table(nested), "")


def _conditions() -> Iterator[str]:
    yield "## Conditions\n"
    yield "Each is one key. The keys of a nested condition are listed below it.\n"
    yield "| condition | holds when |\n|---|---|"
    for model in CONDITIONS:
        for name, field in model.model_fields.items():
            yield f"| `{name}: {_type(field)}` | {_cell(field)} |"
    yield ""
    for model in CONDITIONS:
        for name, field in model.model_fields.items():
            for nested in _models(field.annotation):
                if nested not in CONDITIONS:
                    yield f"`{name}`: {_doc(nested)}\n"
                    yield from (*_table(nested), "")


def _actions() -> Iterator[str]:
    yield "## Actions\n"
    yield "Beside the action's own key an action may have:\n"
    yield from (*_table(ConditionalAction, only=("when", "within")), "")
    for name, field in ConditionalAction.model_fields.items():
        for model in _models(field.annotation):
            if name not in ("when", "within"):
                yield f"### `{name}`\n"
                yield f"{_doc(model)}\n"
                yield from (*_table(model), "")
    yield "`cooldown` of a `launch`:\n"
    yield from (*_table(LaunchedCooldown), "")
    for model in _models(LaunchedCooldown.model_fields["decay"].annotation):
        yield f"`decay`: {_doc(model)}\n"
        yield from (*_table(model), "")


def _table(model: type[BaseModel], only: tuple[str, ...] = ()) -> Iterator[str]:
    rows = [
        f"| `{name}` | {_type(field)} | {_default(field)} | {_cell(field)} |"
        for name, field in model.model_fields.items()
        if name != "kind" and (not only or name in only)
    ]
    if rows:
        yield "| key | value | default | meaning |\n|---|---|---|---|"
        yield from rows


def _doc(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split())


def _cell(field: FieldInfo) -> str:
    return (field.description or "").replace("|", "\\|")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value in (None, (), {}, "") or isinstance(value, BaseModel):
        return ""
    timed = any(isinstance(part, BeforeValidator) for part in field.metadata)
    if timed and isinstance(value, float):
        return spoken(value)
    shown = ", ".join(value) if isinstance(value, tuple) else str(value).lower()
    return f"`{shown}`"


def _type(field: FieldInfo) -> str:
    if any(isinstance(part, BeforeValidator) for part in field.metadata):
        return "time, such as `90s` or `10m`"
    found = dict.fromkeys(_words(field.annotation))
    return " or ".join(found)


_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "anything"}


def _words(annotation: Any) -> Iterator[str]:
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation in _WORDS:
        yield _WORDS[annotation]
    elif origin is Literal:
        yield from (f"`{value}`" for value in inner)
    elif origin is tuple:
        yield f"list of {' or '.join(dict.fromkeys(_words(inner[0])))}"
    elif origin is dict:
        yield "mapping"
    elif origin in (Union, types.UnionType):
        for each in inner:
            yield from () if each is type(None) else _words(each)
    elif origin is not None:
        yield from _words(inner[0])
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "conditions" if annotation in CONDITIONS else "mapping"
    else:
        yield "condition"


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models that an annotation mentions, each once."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [model for inner in get_args(annotation) for model in _models(inner)]
    return [model for model in dict.fromkeys(found) if model not in CONDITIONS]


def update(page: Path) -> None:
    """Write the reference below the mark in a page; the text above it stays."""
    written = page.read_text().partition(MARK)[0]
    page.write_text(written + reference())


if __name__ == "__main__":
    update(Path(sys.argv[1]))
