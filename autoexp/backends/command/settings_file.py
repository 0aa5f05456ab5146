"""A trainer's settings file, made from a template for each job: keys are set as data."""

import copy
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import tomlkit
import yaml
from pydantic import Field, ValidationInfo, model_validator

from autoexp.backends.command_line import Argument
from autoexp.model import COMPOSING, FrozenModel, nearest
from autoexp.redaction import found_in

_LARGEST = 1 << 20
_WHOLE = re.compile(r"\{[^{}]+\}")
_READ: dict[str, Callable[[str], Any]] = {
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
    ".json": json.loads,
    ".toml": lambda text: tomlkit.parse(text).unwrap(),
}
_WRITTEN: dict[str, Callable[[Any], str]] = {
    ".yaml": lambda data: yaml.safe_dump(data, sort_keys=False, allow_unicode=True),
    ".yml": lambda data: yaml.safe_dump(data, sort_keys=False, allow_unicode=True),
    ".json": lambda data: json.dumps(data, indent=2) + "\n",
    ".toml": tomlkit.dumps,
}


class SettingsFile(FrozenModel):
    """The template, and which of its keys each job sets."""

    template: str = Field(description="your file: .yaml, .yml, .json or .toml")
    set: dict[str, Argument] = Field(
        description="dotted keys of it and their values, with the placeholders of `command`: "
        "`{model.lr: '{lr}'}`. A value that is one placeholder is a number where that is one"
    )
    cooldown: dict[str, Argument] = Field(
        default_factory=dict, description="keys that a cooldown sets besides, as `cooldown` does"
    )
    baseline: dict[str, Argument] | None = Field(
        None, description="keys that a baseline sets besides, as `baseline` does"
    )
    save_at: dict[str, Argument] = Field(
        default_factory=dict, description="keys that say where else it saves, as `save_at` does"
    )
    resume: dict[str, Argument] = Field(
        default_factory=dict,
        description="keys that are set besides where there is a checkpoint to go on from",
    )
    content: str = Field("", description="the template as it was read: a session keeps it")

    @model_validator(mode="before")
    @classmethod
    def _read_template(cls, values: Any, info: ValidationInfo) -> Any:
        given = values.get("template") if isinstance(values, dict) else None
        if info.context != COMPOSING or not isinstance(given, str) or values.get("content"):
            return values
        path = Path(given).expanduser().absolute()
        try:
            if path.stat().st_size > _LARGEST:
                raise ValueError(f"{path}: larger than 1 MiB")
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
        return {**values, "template": str(path), "content": text}

    @model_validator(mode="after")
    def _keys_exist(self) -> Self:
        if Path(self.template).suffix not in _READ:
            raise ValueError(f"{self.template}: its name ends with none of {', '.join(_READ)}")
        data = self._data()
        if secret := found_in(self.content):
            raise ValueError(f"{self.template}: {secret}, and a session keeps its content")
        for key in (*self.set, *self.cooldown, *(self.baseline or ()), *self.save_at, *self.resume):
            _refuse_unknown(data, key, self.template)
        return self

    @property
    def name(self) -> str:
        """The file's name in a job's save directory."""
        return f"autoexp-settings{Path(self.template).suffix}"

    @property
    def name_to_resume(self) -> str:
        """The name of the file for an attempt that goes on from a checkpoint."""
        return f"autoexp-resume{Path(self.template).suffix}" if self.resume else self.name

    def files(self, fill: Callable[[str], str], besides: Mapping[str, Argument]) -> dict[str, str]:
        """The files of a job by name; `besides` are its own keys, `fill` fills in placeholders."""
        given = {**self.set, **besides}
        found = {self.name: self._written(given, fill)}
        if self.resume:
            found[self.name_to_resume] = self._written({**given, **self.resume}, fill)
        return found

    def _written(self, values: Mapping[str, Argument], fill: Callable[[str], str]) -> str:
        data = copy.deepcopy(self._data())
        for key, value in values.items():
            *path, last = key.split(".")
            node = _at(data, path)
            node[int(last) if isinstance(node, list) else last] = _filled(value, fill)
        return _WRITTEN[Path(self.template).suffix](data)

    def _data(self) -> Any:
        try:
            data = _READ[Path(self.template).suffix](self.content)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ValueError(f"{self.template}: cannot be read: {error}") from error
        if not isinstance(data, dict):
            raise ValueError(f"{self.template}: has no keys at its top")
        return data


def _filled(value: Argument, fill: Callable[[str], str]) -> Any:
    if isinstance(value, tuple):
        return [_filled(inner, fill) for inner in value]
    if not isinstance(value, str):
        return value
    text = fill(value)
    return _typed(text) if _WHOLE.fullmatch(value) else text


def _typed(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(text, text)


def _at(data: Any, path: list[str]) -> Any:
    for part in path:
        data = data[int(part)] if isinstance(data, list) else data[part]
    return data


def _refuse_unknown(data: Any, key: str, template: str) -> None:
    """Raise ValueError for a key that the template does not have."""
    *path, last = key.split(".")
    try:
        node = _at(data, path)
        known: list[str] = list(map(str, node if isinstance(node, Mapping) else range(len(node))))
    except (KeyError, IndexError, TypeError, ValueError):
        known = []
    if last not in known:
        raise ValueError(f"`{key}` is no key of {template}{nearest(last, known)}; add it there")
