"""Scalars as they are written: a text field gets `010`, `off`, `1:30` byte for byte.

YAML 1.1 makes numbers and switches of them before their field is known. So they pass
through Hydra as marked text, and become numbers, switches or text as a model's field requires.
"""

import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel

_START, _END = "\U0010fffc", "\U0010fffd"  # of private use: no configuration holds them
_MARKED = re.compile(f"{_START}([^{_START}{_END}]*){_END}")
_SWITCH = re.compile("true|false", re.IGNORECASE)
# Switches in YAML 1.1, words elsewhere.
_WORD = re.compile("(?:yes|no|on|off)", re.IGNORECASE)
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
# Numbers in YAML 1.1 alone: octal, hexadecimal, binary, and of base 60. They are text here.
_ODD = re.compile(
    r"[-+]?(?:0[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+|[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)"
)
_NULL = re.compile("~|null|Null|NULL")
_NONE = type(None)

Refuse = Callable[[Sequence[str], str], Exception]
"""Makes the error of a key for a reason."""


class WrittenInt(int):
    """An integer that knows how it was written."""

    written: str


class WrittenFloat(float):
    """A number that knows how it was written."""

    written: str


class Scalar(NamedTuple):
    """A scalar of a file or an override, before its type is known."""

    text: str


# Marking: what is ambiguous becomes a quoted text with marks, at its place in the text


@lru_cache(maxsize=256)
def marked_yaml(text: str) -> str:
    """YAML in which every number and switch is a marked text, and every key a text.

    Lines, comments and `defaults` stay unchanged; so does unreadable text.
    """
    try:
        root = yaml.compose(text, Loader=yaml.CBaseLoader)
    except yaml.YAMLError:
        return text
    changes = dict(_changes(root, text, set()))
    return _replaced(text, changes)


def _changes(node: Any, text: str, seen: set[int]) -> Iterator[tuple[tuple[int, int], str]]:
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                yield from _quoted(key, text, key=True)
            if key.value not in ("defaults", "hydra") or node.start_mark.column:
                yield from _changes(value, text, seen)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _changes(item, text, seen)
    else:
        yield from _quoted(node, text)


def _quoted(
    node: yaml.ScalarNode, text: str, *, key: bool = False
) -> Iterator[tuple[tuple[int, int], str]]:
    start, end, value = node.start_mark.index, node.end_mark.index, node.value
    if text[start:end] != value:
        return  # quoted, or with a tag of its own
    if key:
        if _is_ambiguous(value) or _ODD.fullmatch(value) or _NULL.fullmatch(value):
            yield (start, end), f'"{value}"'
    elif _is_ambiguous(value):
        yield (start, end), f'"{_START}{value}{_END}"'
    elif _ODD.fullmatch(value):
        yield (start, end), f'"{value}"'


def _is_ambiguous(text: str) -> bool:
    patterns = (_SWITCH, _WORD, _INTEGER, _FLOAT)
    return any(pattern.fullmatch(text) for pattern in patterns)


def _replaced(text: str, changes: Mapping[tuple[int, int], str]) -> str:
    pieces, done = [], 0
    for (start, end), new in sorted(changes.items()):
        pieces += [text[done:start], new]
        done = end
    return "".join([*pieces, text[done:]])


def marked_override(line: str) -> str:
    """An override whose numbers and switches are marked texts, except those of functions."""
    # Here: Hydra takes as long to import as all that reads a session, which has no overrides.
    from antlr4 import CommonTokenStream, InputStream  # type: ignore[import-untyped]
    from hydra.grammar.gen.OverrideLexer import OverrideLexer
    from hydra.grammar.gen.OverrideParser import OverrideParser

    lexer = OverrideLexer(InputStream(line))
    lexer.removeErrorListeners()
    parser = OverrideParser(CommonTokenStream(lexer))
    parser.removeErrorListeners()
    tree = parser.override()  # type: ignore[no-untyped-call]
    tokens = list(_ambiguous_tokens(tree))
    return _replaced(line, {(t.start, t.stop + 1): f'"{_START}{t.text}{_END}"' for t in tokens})


def _ambiguous_tokens(tree: Any) -> Iterator[Any]:
    from hydra.grammar.gen.OverrideLexer import OverrideLexer
    from hydra.grammar.gen.OverrideParser import OverrideParser

    if isinstance(tree, OverrideParser.PrimitiveContext):
        found = [child.symbol for child in tree.getChildren()]
        found = [token for token in found if token.type != OverrideLexer.WS]
        numbers = (OverrideLexer.INT, OverrideLexer.FLOAT, OverrideLexer.BOOL)
        if len(found) == 1 and (found[0].type in numbers or _WORD.fullmatch(found[0].text)):
            yield found[0]
    elif not isinstance(tree, OverrideParser.FunctionContext):
        for child in getattr(tree, "children", None) or ():
            yield from _ambiguous_tokens(child)


# Reading: from marks to values


def unmarked(text: str) -> str:
    """A text as it was written, without marks."""
    return text.replace(_START, "").replace(_END, "")


def read(value: Any) -> Any:
    """Nested values with a Scalar in place of each marked text; keys are texts."""
    from hydra.core.override_parser.types import QuotedString

    if isinstance(value, Mapping):
        return {unmarked(str(key)): read(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [read(inner) for inner in value]
    if isinstance(value, QuotedString):
        value = value.text
    if not isinstance(value, str):
        return value
    match = _MARKED.fullmatch(value)
    # Marks within a text come from interpolated values.
    return unmarked(value) if match is None else Scalar(match[1])


def settled(value: Any, annotation: Any, refuse: Refuse, path: tuple[str, ...] = ()) -> Any:
    """Nested values in which each Scalar has the annotated type: a text, a number, a switch.

    Raises the error that `refuse` makes of a key and a reason, for `yes` where a text is valid too.
    """
    return _settled(value, tuple(_parts(annotation)), refuse, path)


def _settled(value: Any, wanted: Sequence[Any], refuse: Refuse, path: tuple[str, ...]) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _settled(inner, _of_key(wanted, value, key), refuse, (*path, str(key)))
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple) and not isinstance(value, Scalar):
        items = enumerate(value)
        return [
            _settled(x, _of_item(wanted, index), refuse, (*path, str(index))) for index, x in items
        ]
    if isinstance(value, WrittenInt | WrittenFloat):
        value = Scalar(value.written)
    return _scalar(value.text, wanted, refuse, path) if isinstance(value, Scalar) else value


def _scalar(text: str, wanted: Sequence[Any], refuse: Refuse, path: tuple[str, ...]) -> Any:
    anything = Any in wanted or not set(wanted) & {str, int, float, bool}
    is_text = anything or str in wanted
    switches = anything or bool in wanted
    if _SWITCH.fullmatch(text):
        return text.lower() == "true" if switches else text
    if _WORD.fullmatch(text) and switches:
        if not is_text:
            return text.lower() in ("yes", "on")
        raise refuse(path, f"is `{text}` a switch or a text? Write true or false, or '\"{text}\"'")
    if anything or int in wanted or float in wanted:
        return _number(text)
    return text


def _number(text: str) -> Any:
    number: WrittenInt | WrittenFloat
    plain = text.replace("_", "")
    try:
        if _INTEGER.fullmatch(text):
            number = WrittenInt(plain)
        elif _FLOAT.fullmatch(text):
            # YAML writes `.inf` and `.nan`.
            number = WrittenFloat(re.sub(r"\.(?=[a-zA-Z])", "", plain))
        else:
            return text
    except ValueError:  # more digits than Python reads
        return text
    number.written = text
    return number


def plain(value: Any) -> Any:
    """Nested values with plain Python numbers."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, WrittenInt):
        return int(value)
    return float(value) if isinstance(value, WrittenFloat) else value


# In a record: values for a model that is known later


def kept(value: Any) -> Any:
    """Nested values for JSON, with marks where a number was written in another way."""
    if isinstance(value, Mapping):
        return {key: kept(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [kept(inner) for inner in value]
    if isinstance(value, WrittenInt | WrittenFloat):
        own = plain(value)
        return own if repr(own) == value.written else f"{_START}{value.written}{_END}"
    return value


def restored(value: Any) -> Any:
    """The inverse of `kept`: values to be settled by their model."""
    if isinstance(value, Mapping):
        return {key: restored(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [restored(inner) for inner in value]
    match = _MARKED.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else _number(match[1])


AsWritten = Annotated[dict[str, Any], AfterValidator(kept)]
"""Changes to a model that is not known where they are read."""


# Types of the models


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, and plain types in place of literals."""
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        for inner in get_args(annotation):
            yield from _parts(inner)
    elif origin is Literal:
        yield from {type(value) for value in get_args(annotation)}
    elif hasattr(annotation, "__metadata__"):
        yield from _parts(annotation.__origin__)
    elif annotation is not _NONE:
        yield annotation


def _of_key(wanted: Sequence[Any], value: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    models = [x for x in wanted if isinstance(x, type) and issubclass(x, BaseModel)]
    models = [x for x in models if _is_kind(x, value.get("kind"))] or models
    found: list[Any] = [m.model_fields[key].annotation for m in models if key in m.model_fields]
    found += [get_args(x)[1] for x in wanted if get_origin(x) in (dict, Mapping)]
    return _all_parts(found)


def _is_kind(model: type[BaseModel], kind: Any) -> bool:
    field = model.model_fields.get("kind")
    return field is None or kind in get_args(field.annotation)


def _of_item(wanted: Sequence[Any], index: int) -> tuple[Any, ...]:
    found = []
    for each in wanted:
        inner = [x for x in get_args(each) if x is not Ellipsis]
        if get_origin(each) in (list, tuple, Sequence) and inner:
            found.append(inner[min(index, len(inner) - 1)])
    return _all_parts(found)


def _all_parts(annotations: Iterable[Any]) -> tuple[Any, ...]:
    """For values without a model: anything."""
    return tuple(part for each in annotations for part in _parts(each)) or (Any,)
