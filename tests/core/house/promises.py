"""What each function that makes data from outside safe promises, whatever text it is given.

docs/security.md has the table of these functions; tests walk it, and fuzz throws text at them.
"""

import csv
import io
import json
import logging
import math
import re
import shlex
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from html.parser import HTMLParser
from pathlib import Path

from autoexp import redaction, sinks, templates
from autoexp.backends.checkpoints import Layout
from autoexp.config import expressions
from autoexp.errors import AutoexpError, BadInput, SessionDamaged, SessionError
from autoexp.jobs import scores, tracebacks
from autoexp.jobs.record import JobRecord
from autoexp.logs import tail
from autoexp.logs.linear import LinePattern, refuse_slow
from autoexp.logs.numbers import number, whole
from autoexp.names import check_id
from autoexp.operations.write_targets import path_below
from autoexp.reports import terminal
from autoexp.rules.condition_checks import Facts, check
from autoexp.rules.conditions import FileContains, FileExists, Glob
from autoexp.rules.describe import describe
from autoexp.rules.events import LogMatched
from autoexp.schedulers import exit_files
from autoexp.schedulers.slurm import parsing as slurm_parsing
from autoexp.session.meta import SessionMeta
from autoexp.storage import atomic, claims, migrations, processes
from tests.core.rules.facts import facts

HOSTILE = (
    *("", " ", ".", "..", "-", "--", "-rf", "--exec=sh", "a\0b", "a\nb", "a\r\nb", "\t", "x" * 300),
    *("\x1b[31mred", "\x1b]0;t\x07", "\x1b]8;;http://e\x1b\\l", "\x9b2J", "\u202eevil", "\u2028"),
    *("../x", "/etc/passwd", "a/../../x", "link/x", "link", "~/x", "$HOME", "`id`", "$(id)"),
    *("![x](http://e)", "[x](javascript:a)", "<img src=x>", "a|b", "# h", "```\nx", "www.e.org"),
    *("=1+1", "+1", "@SUM(1)", "\t=1", "$x^$", "{x}", "{{", "{job.name}", "%s", "%(x)s", "\\"),
    *("n\n#SBATCH --wrap=id", "n1,n2", "n[1-9]", "'; id; '", '"', "\udcff", "é" * 200, "²", "٣"),
    *("KEY" * 2000, "a." * 3000, "eyJ-" * 2000, "a=" * 3000, "-a" * 3000),
    *("9" * 5000, "1e999", "nan", "[[[[", "[" * 5000, "**/*", "(a+)+$", "(?P<n>.*)*", "a{9}{9}{9}"),
    *("://a" * 600, "a://" * 600),
    *("1|2|3|4|5|6|7|8", "1|n|FAILED|²:0|²:0|²|²|n", "{}", "null", '{"a": ' * 999, "1.5", "0x1F"),
)
_SAFE = "\n\t"


def is_plain(text: str, allowed: str = "") -> bool:
    """Whether nothing in a text steers a terminal."""
    return all(
        c in allowed or unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in text
    )


def _terminal(text: str, folder: Path) -> None:
    assert is_plain(sinks.terminal(text), _SAFE)
    assert sinks.terminal(sinks.terminal(text)) == sinks.terminal(text)


def _line(text: str, folder: Path) -> None:
    assert is_plain(sinks.line(text))


def _title(text: str, folder: Path) -> None:
    assert is_plain(sinks.title(text)) and len(sinks.title(text)) <= 80


def _record(text: str, folder: Path) -> None:
    for words, arguments in ((text, ()), ("%s", (text,)), (text, (text,))):
        record = logging.LogRecord("n", 30, "p", 1, words, arguments, None)
        assert sinks.LINES.filter(record) and is_plain(record.getMessage(), _SAFE)


def _plain_errors(text: str, folder: Path) -> None:
    for error in (
        *(SessionError(text), ValueError(1, text), KeyError(text), Exception([text])),
        *(OSError(2, text), OSError(2, text, f"a{text}", None, text), FileNotFoundError(text)),
        UnicodeEncodeError("utf-8", text or " ", 0, 1, text),
    ):
        try:
            with sinks.plain_errors():
                raise error
        except Exception as raised:
            assert is_plain(str(raised), _SAFE)
            assert isinstance(raised, (type(error), AutoexpError))


def _markdown(text: str, folder: Path) -> None:
    shown = sinks.markdown(text)
    assert is_plain(shown) and not {"<", ">"} & set(shown)
    assert not re.search(r"[\w.+-]@", shown)  # no address
    bare = shown.replace("\\\\", "").replace("&#64;", "")
    assert all(bare[at - 1 : at] == "\\" for at, c in enumerate(bare) if c in "[]|`!*_#~$")
    assert "://" not in bare.replace("\\:", "")


def _markdown_code(text: str, folder: Path) -> None:
    shown = sinks.markdown_code(text)
    assert is_plain(shown) and shown.count("`") in (0, 2) and "|" not in shown


class _Page(HTMLParser):
    """The elements of a page, and the text in each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, object, str]] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        tag, attributes, before = self.found.pop()
        self.found.append((tag, attributes, before + data))

    def handle_comment(self, data: str) -> None:
        self.found.append(("comment", {}, data))

    handle_decl = handle_pi = unknown_decl = handle_comment


def _web(text: str, folder: Path) -> None:
    shown = sinks.terminal(text)
    page = f'<p title="{sinks.web(text)}">{sinks.web(text)}</p>'
    assert is_plain(page, _SAFE)
    assert _Page(page).found == [("p", {"title": shown}, shown)]


def _script(text: str, folder: Path) -> None:
    page = f"<script>{sinks.script({text: [text, 1.5, None]})}</script>"
    ((tag, attributes, content),) = _Page(page).found
    assert (tag, attributes) == ("script", {}) and content.isascii()
    assert json.loads(content) == {text: [text, 1.5, None]}


def _picture(text: str, folder: Path) -> None:
    shown = sinks.picture(text)
    assert is_plain(shown) and shown.count("$") == shown.count("\\$")


def _table(text: str, folder: Path) -> None:
    rows = list(csv.reader(io.StringIO(sinks.table(["a", "b"], [{"a": text, "b": 1}]))))
    assert rows[0] == ["a", "b"] and len(rows) == 2 and len(rows[1]) == 2
    assert is_plain(rows[1][0]) and not rows[1][0].startswith(("=", "+", "-", "@"))


def _argument(text: str, folder: Path) -> None:
    with suppress(SessionError):
        given = sinks.argument(text)
        assert "\0" not in given and len(given.encode()) <= 100_000
        # As tasks/effects.py hands it to prefect-shell, and batch scripts to bash.
        assert shlex.split(shlex.join([given, given])) == [given, given]


def _arguments(text: str, folder: Path) -> None:
    values = {"x": text, "own": "/bin/echo"}
    for template in (["{own}", "{x}"], ["{own}", "a", "{x}b"], ["{own}", "--n={x}"], ["{x}"]):
        with suppress(SessionError):
            command = sinks.arguments(template, values, {"x"})
            assert command[0] == "/bin/echo" and len(command) == len(template)
            last = command[-1]
            if template[-1].startswith("{x}") and last.startswith("-"):
                float(last)  # a number is no option
    with suppress(SessionError):
        given = sinks.arguments(["{own}", "--", "{x}"], values, {"x"})
        assert given[:2] == ("/bin/echo", "--")


def _variables(text: str, folder: Path) -> None:
    with suppress(SessionError):
        given = sinks.variables({"A": "{x}", "B": "b{x}"}, {"x": text})
        assert set(given) == {"A", "B"} and not any("\0" in value for value in given.values())


def _node(text: str, folder: Path) -> None:
    with suppress(SessionError):
        assert sinks.node(text) == text and text.isascii() and text.isprintable()
        assert not set(text) & set(" ,[]/$'\"=") and not text.startswith(("-", "."))


def _batch_option(text: str, folder: Path) -> None:
    with suppress(ValueError):
        assert len(f"#SBATCH --comment={sinks.batch_option(text)}".splitlines()) == 1


def _path_below(text: str, folder: Path) -> None:
    with suppress(SessionError):
        assert path_below(folder, text).is_relative_to(folder.resolve())
        assert path_below(folder, text) != folder.resolve()


def _check(text: str, folder: Path) -> None:
    given: Facts = facts(folder, values={"x": text}, captured=frozenset({"x"}))
    for condition in (
        FileExists(file_exists="{x}"),
        Glob.model_validate({"glob": {"pattern": "in/{x}*"}}),
        FileContains.model_validate({"file_contains": {"path": "{x}", "text": "secret"}}),
    ):
        found = check(condition, given)
        if condition.__class__ is FileContains:
            assert str(found.answer) != "holds"  # only what lies outside has this text


def _fill(text: str, folder: Path) -> None:
    values = {"x": text, "y": "never"}
    assert templates.fill("a{x}b", values) == f"a{text}b"  # filled once, and not read again


def _describe(text: str, folder: Path) -> None:
    event = LogMatched(
        job="j", attempt=1, rule="r", generation=0, offset=0, line=text, values={"x": text}
    )
    assert is_plain(describe(event))


def _check_id(text: str, folder: Path) -> None:
    with suppress(BadInput, ValueError):
        check_id(text)
        assert text.isascii() and "/" not in text and not text.startswith((".", "-"))


def _refuse_slow(text: str, folder: Path) -> None:
    with suppress(ValueError):
        refuse_slow(text)
        LinePattern(text).search(b"a" * 200)


def _search(text: str, folder: Path) -> None:
    for pattern in (r"(?P<n>\S+) loss", "(a|a)*b", ".*"):
        LinePattern(pattern).search(text.encode("utf-8", "surrogatepass"))


def _number(text: str, folder: Path) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    assert number(raw) is None or isinstance(number(raw), float)
    assert whole(raw) is None or (whole(raw) or 0) >= 0


def _read_new(text: str, folder: Path) -> None:
    log = folder / "log"
    log.write_bytes(text.encode("utf-8", "surrogatepass") + b"\n")
    for found in tail.read_new(log, tail.LogCursor(), final=True).lines:
        assert found.text and b"\n" not in found.text


def _squeue(text: str, folder: Path) -> None:
    slurm_parsing.read_squeue(text)
    slurm_parsing.read_squeue(f"1|FAILED|{text}|{text}|{text}|{text}|n1|name|")


def _sacct(text: str, folder: Path) -> None:
    slurm_parsing.read_sacct(text)
    slurm_parsing.read_sacct(f"1|name|FAILED by {text}|{text}|{text}|{text}|{text}|n1")


def _longest(text: str, folder: Path) -> None:
    for answer in (text, f"p* {text}", f"p* {text}-{text}:{text}"):
        assert not math.isnan(slurm_parsing.read_longest(answer, default=True))


def _scan(text: str, folder: Path) -> None:
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    (root / "tracker").write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(OSError, ValueError):
        (root / f"step_{text}").mkdir(exist_ok=True)
    Layout(re.compile(r"step_(?P<iteration>\d+)"), ("*",), tracker="tracker").scan(root)


def _scores(text: str, folder: Path) -> None:
    path = folder / "scores.json"
    for content in (text, json.dumps({text: 1.0})):
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        with suppress(scores.NoScores):
            found = scores.read_scores(path)
            assert all(map(math.isfinite, found.numbers.values()))
            json.dumps(found.numbers).encode()


def _exception(text: str, folder: Path) -> None:
    path = folder / "traceback.log"
    begin = "Traceback (most recent call last):\n"
    for content in (
        text,
        f"{begin}{text}",
        f"{begin}ValueError: {text}\n",
        f"{text}{begin}{text}\n",
    ):
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        found = tracebacks.last_exception(path)
        assert found is None or (len(found) <= 200 and "\n" not in found)
        (found or "").encode()


def _exit_file(text: str, folder: Path) -> None:
    whole = {"job_id": "7", "exit_code": 0, "signal": None, "reason": None, "started_at": 1.0}
    whole |= {"ended_at": 2.0, "warned": False, "limit": False, "superseded": False}
    number = int(text) if text.isdecimal() and len(text) < 400 else -1
    damaged = [text, "null", "[]", json.dumps({"job_id": text})]
    damaged += [json.dumps({**whole, name: value}) for name in whole for value in (text, number)]
    damaged += [json.dumps({**whole, name: 1e300}) for name in ("started_at", "ended_at")]
    for content in damaged:
        (folder / "exit.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        found = exit_files.read_exit_file(folder)
        assert found is None or found.status().state in ("COMPLETED", "FAILED", "TIMEOUT")


def _start_file(text: str, folder: Path) -> None:
    whole = {"host": "h", "boot_id": "b", "pid": 1, "start_ticks": 1, "started_at": 1.0}
    damaged = [text, "null", "[]", json.dumps({"host": text})]
    damaged += [json.dumps({**whole, name: value}) for name in whole for value in (text, 1e300)]
    for content in damaged:
        (folder / "started.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        found = exit_files.read_start_file(folder)
        assert found is None or processes.is_alive(found) in (None, True, False)


def _record_file(text: str, folder: Path) -> None:
    path = folder / "jobs" / "j.json"
    path.parent.mkdir(exist_ok=True)
    older = {"schema_version": 2, "cursor": {}}
    damaged = [text, f"[{text}]", json.dumps({"schema_version": text, "spec": text})]
    damaged += [json.dumps({**older, name: text}) for name in ("cursor", "spec", "attempts")]
    damaged += [json.dumps({"schema_version": 2, text: text}), '{"a": ' * 600 + "1" + "}" * 600]
    damaged += [json.dumps(older)[:-1] + ', "a": ' + "[" * 700 + "]" * 700 + "}"]
    for content in damaged:
        path.write_bytes(content.encode("utf-8", "surrogatepass"))
        for model in (JobRecord, SessionMeta):
            with suppress(SessionDamaged):
                migrations.read(path, model)


def _said(text: str, folder: Path) -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        terminal.say(text)
        terminal.say_log([line + b"\n" for line in text.encode(errors="replace").split(b"\n")])
    assert is_plain(out.getvalue(), _SAFE)


def _may_be_stored(text: str, folder: Path) -> None:
    assert not redaction.may_be_stored(f"{text}_PASSWORD")
    redaction.may_be_stored(text)


def _read(text: str, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with suppress(atomic.WrongFile):
        assert len(atomic.read(path, 100)) <= 100


def _holder(text: str, folder: Path) -> None:
    if text.strip():  # an empty one is waited for
        (folder / claims.NAME).write_bytes(text.encode("utf-8", "surrogatepass"))
        claims.holder(folder)


def _without_secrets(text: str, folder: Path) -> None:
    assert "s3cretword" not in redaction.without_secrets(f"{text} https://u:s3cretword@host/x")
    redaction.found_in(text)


def _expression(text: str, folder: Path) -> None:
    with suppress(expressions.ExpressionError):
        expressions.parse(text).value({})


Promise = Callable[[str, Path], None]
PROMISES: dict[str, Promise] = {
    "autoexp.sinks.terminal": _terminal,
    "autoexp.sinks.line": _line,
    "autoexp.sinks.title": _title,
    "autoexp.sinks.Lines": _record,
    "autoexp.sinks.plain_errors": _plain_errors,
    "autoexp.sinks.markdown": _markdown,
    "autoexp.sinks.markdown_code": _markdown_code,
    "autoexp.sinks.picture": _picture,
    "autoexp.sinks.web": _web,
    "autoexp.sinks.script": _script,
    "autoexp.sinks.table": _table,
    "autoexp.sinks.argument": _argument,
    "autoexp.sinks.arguments": _arguments,
    "autoexp.sinks.variables": _variables,
    "autoexp.sinks.node": _node,
    "autoexp.sinks.batch_option": _batch_option,
    "autoexp.operations.write_targets.path_below": _path_below,
    "autoexp.rules.condition_checks.check": _check,
    "autoexp.templates.fill": _fill,
    "autoexp.rules.describe.describe": _describe,
    "autoexp.names.check_id": _check_id,
    "autoexp.logs.linear.refuse_slow": _refuse_slow,
    "autoexp.logs.linear.LinePattern": _search,
    "autoexp.logs.numbers.number": _number,
    "autoexp.logs.tail.read_new": _read_new,
    "autoexp.schedulers.slurm.parsing.read_squeue": _squeue,
    "autoexp.schedulers.slurm.parsing.read_sacct": _sacct,
    "autoexp.schedulers.slurm.parsing.read_longest": _longest,
    "autoexp.backends.checkpoints.Layout": _scan,
    "autoexp.jobs.scores.read_scores": _scores,
    "autoexp.jobs.tracebacks.last_exception": _exception,
    "autoexp.schedulers.exit_files.read_exit_file": _exit_file,
    "autoexp.schedulers.exit_files.read_start_file": _start_file,
    "autoexp.storage.migrations.read": _record_file,
    "autoexp.reports.terminal.say": _said,
    "autoexp.reports.terminal.say_log": _said,
    "autoexp.redaction.may_be_stored": _may_be_stored,
    "autoexp.storage.atomic.read": _read,
    "autoexp.storage.claims.holder": _holder,
    "autoexp.redaction.without_secrets": _without_secrets,
    "autoexp.config.expressions.parse": _expression,
}


def keep(name: str, text: str, folder: Path) -> None:
    """Call a function of the table with a text, in a folder that a link leads out of."""
    inside = folder / "inside"
    if not inside.exists():
        inside.mkdir()
        (folder / "x").write_text("secret")
        (folder / "passwd").write_text("secret")
        (inside / "link").symlink_to(folder)
    PROMISES[name](text, inside)
