"""Plain values of a configuration: nested mappings, and their dotted keys."""

import copy
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import yaml

from autoexp.errors import BadInput
from autoexp.scalars import restored


class _Dumper(yaml.SafeDumper):
    """Quotes a text that Hydra would read as a number, such as `12345e6`."""


_Dumper.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9._]+[eE][-+]?[0-9]+"), list("-+0123456789.")
)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        else:
            found[name] = value
    return found


def copied(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy whose nested mappings can be changed."""
    return {k: copied(v) if isinstance(v, Mapping) else v for k, v in values.items()}


def escaped(value: Any) -> Any:
    """Escape text that looks like an interpolation, so that it stays text when composed again."""
    if isinstance(value, dict):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; raises BadInput where a part of it has a value already."""
    *path, last = key.split(".")
    node: Any = values
    for part in path:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise BadInput(f"{key}: {part} is a value, without keys below it")
    node[last] = copy.deepcopy(value)


def assign(values: dict[str, Any], words: Iterable[str], where: str) -> dict[str, Any]:
    """Set values as words say, `mlflow.uri=URL`, each read as YAML; raises BadInput."""
    for word in words:
        key, is_set, text = word.partition("=")
        if not is_set:
            raise BadInput(f"{where} {word}: write KEY=VALUE")
        try:
            set_value(values, key, yaml.safe_load(text))
        except yaml.YAMLError as error:
            raise BadInput(f"{where} {word}: {text!r} is no value") from error
    return values


def dump(values: Any) -> str:
    """Plain values as YAML, in their order."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parsed(text: str) -> dict[str, Any]:
    """The values of a composed configuration, of the text that `dump` made of them."""
    found: dict[str, Any] = _unescaped(yaml.safe_load(text))
    return found


def _unescaped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _unescaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unescaped(inner) for inner in value]
    return value.replace("\\${", "${") if isinstance(value, str) else value


def setting(changes: Mapping[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A `compose()` hook that applies dotted-key overrides, as data without interpolation."""

    def fill_in(values: dict[str, Any]) -> dict[str, Any]:
        for key, value in changes.items():
            set_value(values, key, restored(value))
        return values

    return fill_in
