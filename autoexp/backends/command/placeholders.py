"""Command lines with `{name}` in them, or `{name * 2}`: replaced once, and nothing else is done."""

import re
from collections.abc import Iterable, Mapping, Sequence

from autoexp.backends.command.arithmetic import names_in, result
from autoexp.backends.command_line import Argument, word
from autoexp.model import nearest

_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_ITERATION = "{iteration}"


def substitute(text: str, values: Mapping[str, str]) -> str:
    """The text with each `{name}` replaced by its value; other braces stay as they are.

    Raises ValueError for arithmetic with a value that is no number.
    """
    return _PLACEHOLDER.sub(lambda match: _value(match, values), text)


def _value(match: re.Match[str], values: Mapping[str, str]) -> str:
    inside = match[1]
    if _NAME.fullmatch(inside):
        return values.get(inside, match[0])
    names = names_in(inside)
    return match[0] if names is None or names - values.keys() else result(inside, values)


def names_of(texts: Iterable[str], known: Mapping[str, str], where: str) -> set[str]:
    """The names that the texts use; raises ValueError for an unknown one."""
    inside = {found for text in texts for found in _PLACEHOLDER.findall(text)}
    # A name may be a word of Python's, `{import}`, which is no arithmetic.
    used = {
        name
        for found in inside
        for name in ([found] if _NAME.fullmatch(found) else names_in(found) or ())
    }
    for name in sorted(used - set(known)):
        raise ValueError(
            f"`{where}`: nothing is called {{{name}}}{nearest(name, known, braces=True)}"
        )
    return used


def pattern_of(name: str) -> re.Pattern[str]:
    """The regular expression of names such as `step-{iteration}` or `*-step={iteration}*`."""
    if name.count(_ITERATION) != 1:
        raise ValueError(f"{name!r} has to contain {{iteration}} once")
    parts = re.split(r"(\*|\{iteration\})", name)
    known = {"*": ".*", _ITERATION: r"(?P<iteration>[0-9]+)"}
    return re.compile("".join(known.get(part, re.escape(part)) for part in parts))


def change_options(command: Sequence[str], options: Mapping[str, Argument]) -> list[str]:
    """Set, add or remove options: `--name value`, `--name=value` and `name=value` are told apart.

    True is a bare flag, null removes the option. A new one is added at the end, spelled as others
    are.
    """
    words = list(command)
    joins = any(re.match(r"--[\w.-]+=", word) for word in words)
    for name, value in options.items():
        place = next(
            (i for i, w in enumerate(words) if w == name or w.startswith(f"{name}=")), None
        )
        joined = place is not None and words[place] != name
        if place is None:
            place, joined = len(words), (joins and value is not True) or name[:1] != "-"
        elif not joined and _has_value(words, place):
            del words[place : place + 2]
        else:
            del words[place]
        words[place:place] = _spelled(name, value, joined=joined)
    return words


def _has_value(words: Sequence[str], place: int) -> bool:
    after = words[place + 1 : place + 2]
    return bool(after) and re.match(r"-[^0-9.]", after[0]) is None


def _spelled(name: str, value: Argument, *, joined: bool) -> list[str]:
    if value is None:
        return []
    if value is True and not joined:
        return [name]
    if isinstance(value, tuple):
        return [name, *map(word, value)]
    return [f"{name}={word(value)}"] if joined else [name, word(value)]
