"""Filters of sweeps: what they can say, and that they reach nothing else."""

import ast
import builtins
import os
import resource
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoexp.config.expressions import ExpressionError, parse

VALUES = {
    "lr": 1e-3,
    "batch": 256,
    "kind": "demo",
    "backend.args.lr": 1e-3,
    "on": True,
    "none": None,
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("lr * batch < 1", True),
        ("lr < 1e-4 or batch >= 256", True),
        ("backend.args.lr == lr", True),
        ("not on", False),
        ("none is None", True),
        ("kind == 'demo' and batch in [128, 256]", True),
        ("batch not in (1, 2)", True),
        ("1 < 2 < 3", True),
        ("2 ** 10 + batch % 3 - -1", 1026.0),
        ("batch // 100 if on else 0", 2),
    ],
)
def test_an_expression_compares_and_computes(text: str, value: object) -> None:
    assert parse(text).value(VALUES) == value


ESCAPES = [
    "__import__('os').system('id')",
    "().__class__.__bases__[0].__subclasses__()",
    "''.__class__.__mro__[1].__subclasses__()",
    "lr.__class__",
    "kind.__class__.__init__.__globals__",
    "(1).__class__",
    "[].append.__self__.__class__",
    "open('/etc/passwd').read()",
    "eval('1')",
    "exec('import os')",
    "getattr(lr, 'real')",
    "kind.format(lr)",
    "'{0.__class__}'.format(lr)",
    "'{}'.join(kind)",
    "f'{lr.__class__}'",
    "f'{lr}'",
    "kind[0]",
    "[x for x in (1, 2)]",
    "{x for x in (1, 2)}",
    "(x for x in (1, 2))",
    "{1: 2}",
    "{1, 2}",
    "lambda: 1",
    "(lambda: 1)()",
    "(x := 1)",
    "lr = 1",
    "lr; batch",
    "import os",
    "yield 1",
    "await lr",
    "*kind",
    "b'bytes' == 1",
    "1j",
    "...",
    "print",
    "globals",
    "__builtins__",
    "`id`",
    "$(id)",
    "lr if __import__('os') else 1",
    "lr @ batch",
    "lr << 2",
    "~batch",
    "batch | 1",
    "",
    "   ",
    "lr\nbatch",
    "lr\x00",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_an_expression_reaches_no_python_no_file_and_no_shell(text: str) -> None:
    with pytest.raises(ExpressionError):
        parse(text).value(VALUES)


@pytest.mark.parametrize(
    "text",
    [
        "9 ** 9 ** 9 ** 9",
        "4000000 ** 4000000",
        "'a' * 1000000000",
        "'%999999999d' % 1",
        "'a' + 'b'",
        "[1] * 1000000000",
        "(" * 900 + "1" + ")" * 900,
        "-" * 900 + "1",
        "not " * 240 + "on",
        "1" * 5000,
        "1 / 0",
        "1 % 0",
        "kind < 1",
        "kind in 3",
    ],
)
def test_an_expression_fills_neither_memory_nor_time(text: str) -> None:
    child = os.fork()
    if child == 0:
        # The kernel ends it beyond so many seconds of CPU; more memory than this is a MemoryError.
        most = data_bytes() + 2**29
        resource.setrlimit(resource.RLIMIT_CPU, (5, 5))
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        code = 1
        try:
            parse(text).value(VALUES)
            code = 0
        except ExpressionError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def data_bytes() -> int:
    """What this process holds: the suite's own, with what ran before."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmData"))
    return int(kilobytes) * 1024


@given(st.text(max_size=60))
def test_any_text_is_an_expression_or_refused_in_words(text: str) -> None:
    try:
        parse(text).value(VALUES)
    except ExpressionError as error:
        assert str(error)


_names = st.sampled_from([*VALUES, *dir(builtins), "__class__", "__globals__", "os", "sys"])
_pieces = st.sampled_from(
    [*".()[]{}'\"+-*/%<>=, :", "if ", " else ", " in ", " and ", "lambda ", "**", "1", "f'", "not "]
)


@given(st.lists(st.one_of(_names, _pieces), max_size=14))
def test_pieces_of_python_never_run_it(pieces: list[str]) -> None:
    """An audit hook sees every import, open, exec and subprocess of the interpreter."""
    seen: list[str] = []
    _watching.append(seen)
    try:
        parse("".join(pieces)).value(VALUES)
    except ExpressionError:
        pass
    finally:
        _watching.clear()
    assert not seen


_watching: list[list[str]] = []


def _hook(event: str, arguments: object) -> None:
    # The parser's own `compile` is how a text becomes a tree; nothing of it is executed.
    if _watching and event.startswith(("exec", "open", "import", "subprocess", "os.", "socket")):
        _watching[0].append(event)


sys.addaudithook(_hook)


def test_what_is_unknown_is_named_with_the_nearest_name() -> None:
    with pytest.raises(ExpressionError, match=r"`btach`; did you mean `batch`\?"):
        parse("btach > 1").value(VALUES)


def test_a_value_that_looks_like_an_expression_is_a_value() -> None:
    values = {"text": "__import__('os').system('id')"}
    assert parse("text == 1").value(values) is False
    assert isinstance(parse("text").tree, ast.Name)
