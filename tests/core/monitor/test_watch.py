"""What is made of a log's bytes: whatever they are, nothing raises and other lines are found."""

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.demo import DemoBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron.formats import progress as megatron_progress
from autoexp.backends.progress_line import ProgressPattern
from autoexp.backends.protocol import Backend, CheckpointScan, Progress, Unread
from autoexp.backends.torchtitan.backend import _LINE as TORCHTITAN
from autoexp.jobs.record import JobRecord
from autoexp.jobs.scores import NoScores, read_scores
from autoexp.logs import tail
from autoexp.logs.linear import refuse_slow
from autoexp.logs.matcher import Matcher
from autoexp.logs.numbers import number, whole
from autoexp.logs.tail import LIMIT, LookBudget
from autoexp.model import COMPOSING
from autoexp.monitor.decide import RuleBook, Watched
from autoexp.monitor.job_watch import JobWatch
from autoexp.rules.describe import describe
from autoexp.rules.event_values import typed
from autoexp.rules.events import Event, LogMatched, ProgressMissing
from autoexp.rules.ruleset import Rules
from tests.builders import attempt_of, spec_of
from tests.core.backends.conformance.command import COMMON


class Watching:
    """A job whose log the test writes; every look is another process's."""

    def __init__(self, folder: Path, backend: Any = None, **rules: Any) -> None:
        self.log = folder / "job.log"
        self.save_dir = folder / "checkpoints"
        spec = spec_of("x", directory=folder, backend=backend or DemoBackend())
        self.job = JobRecord(spec=spec, attempts=[attempt_of(log=str(self.log))], launched=True)
        self.rules = Rules.model_validate(rules)
        self.events: list[Event] = []
        self.rows: list[str] = []
        self.watch = JobWatch()

    @property
    def watched(self) -> Watched:
        return self.book.watched(self.job.spec)

    @property
    def book(self) -> RuleBook:
        book = getattr(self, "_book", None)
        if book is None:
            self._book = book = RuleBook(self.rules, [self.job.spec])
        return book

    def write(self, data: bytes) -> None:
        with self.log.open("ab") as file:
            file.write(data)

    def look(self, *, final: bool = False) -> JobWatch:
        """Look once, and write everything down and read it back, as after a kill."""
        self.watch = JobWatch()
        attempt = self.job.attempts[0]
        # All of a look's budget, as for a log that alone has something to say.
        budget = LookBudget.of_one_log()
        found = list(self.watch.read_log(self.job, attempt, self.watched, budget, final=final))
        self.events += [_back(event) for event in found]
        self.rows += self.watch.rows
        job = JobRecord.model_validate_json(self.job.model_dump_json())
        assert job == self.job
        self.job = job
        return self.watch

    def look_to_the_end(self, *, final: bool = True) -> None:
        while not self.look(final=final).at_end:
            pass

    @property
    def metrics(self) -> list[str]:
        """Rows of the metrics file, of which the last one of a step counts."""
        last: list[str] = []
        for row in self.rows:
            if last and last[-1].split(",")[0] == row.split(",")[0]:
                last.pop()
            last.append(row)
        return last


_EVENT: TypeAdapter[Event] = TypeAdapter(Event)  # takes a millisecond to make


def _back(event: Event) -> Event:
    back = _EVENT.validate_json(event.model_dump_json())
    assert back == event
    return back


def described(log_line: str, context: str | None = COMPOSING) -> CommandBackend:
    content = {**COMMON, "log_line": log_line, "saves": {"name": "{iteration}", "renamed": True}}
    return CommandBackend.model_validate(content, context=context)


ITERATION = rb" iteration %d/ 60 | elapsed time per iteration (ms): 5.0 | lm loss: %.3f |"


def iteration_line(step: int, loss: float = 2.0) -> bytes:
    return ITERATION % (step, loss)


# --- numbers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"2.34,", 2.34),
        (b"1,234.5", 1234.5),
        (b"3.2e+4", 3.2e4),
        (b"28.2K", 28200.0),
        (b"85.8G", 85.8e9),
        (b"'4.017'", 4.017),
        (b"-inf", float("-inf")),
        (b"9" * 5000, float("inf")),
        (b"1,5", None),
        (b"n/a", None),
        (b"K", None),
        (b"", None),
        (b"\xff", None),
        (b"-", None),
    ],
)
def test_a_number_is_read_as_trainers_print_it(text: bytes, value: float | None) -> None:
    assert number(text) == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b"1,000", 1000),
        (b"007", 7),
        (b"3.2e+4", 32000),
        (b"28.2K", None),
        (b"1.5", None),
        (b"-1", None),
        (b"nan", None),
        (b"inf", None),
        (b"9" * 5000, None),
        (b"9007199254740992", None),
        (b"", None),
    ],
)
def test_a_step_number_is_whole_and_exact(text: bytes, value: int | None) -> None:
    assert whole(text) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "9" * 5000, "1,000", "3.2e+4", "1" * 20])
def test_what_json_cannot_hold_for_every_reader_stays_text(text: str) -> None:
    assert typed(text) == text and isinstance(typed(text), str)


# --- progress lines, as people have pasted them


NANOTRON = (
    r"iteration: (?P<iteration>\S+) / \d+ .*?lm_loss: (?P<loss>\S+) \| lr: (?P<learning_rate>\S+)"
)


@pytest.mark.parametrize(
    ("read", "line", "step", "loss"),
    [
        (
            ProgressPattern(NANOTRON).read,
            b"[INFO|DP=0]: iteration: 327281 / 378950 | consumed_tokens: 85.8G | lm_loss: 2.38 | "
            b"lr: 1e-05 | grad_norm: 1.25",
            327281,
            2.38,
        ),
        (
            ProgressPattern(r"step (?P<iteration>\d+) loss (?P<loss>\S+)").read,
            b"\rstep 1 loss 9.0\rstep 2 loss 8.0\rstep 300 loss 2.0\r",
            300,
            2.0,
        ),
        (
            TORCHTITAN.read,
            b"[titan] root - INFO - \x1b[31mstep: 1,000  \x1b[32mloss:  8.1309  \x1b[39mx",
            1000,
            8.1309,
        ),
        (TORCHTITAN.read, b"step: 10  loss: -inf grad_norm: nan", 10, None),
        (TORCHTITAN.read, b"\x1b(B\x1b[m\x1b[38:5:9mstep: 10\x1b[K loss:  8.1", 10, 8.1),
        (megatron_progress, b"\x1b]0;title\x07" + iteration_line(7), 7, 2.0),
        (megatron_progress, b"[rank1]: oops" + iteration_line(7, 3.0) + iteration_line(8), 8, 2.0),
        (megatron_progress, b" iteration 10/ 20 | x: 1 | lm_loss: 2.1E+00 |", 10, 2.1),
    ],
)
def test_a_progress_line_is_read(read: Any, line: bytes, step: int, loss: float | None) -> None:
    found = read(line)
    assert isinstance(found, Progress)
    assert (found.iteration, found.loss, found.unread) == (step, loss, None)


def test_thousands_of_milliseconds_are_read() -> None:
    line = b" iteration 1/ 2 | elapsed time per iteration (ms): 1,234.5 | lm loss: 2.0 |"
    found = megatron_progress(line)
    assert isinstance(found, Progress) and found.seconds_per_iteration == pytest.approx(1.2345)


@pytest.mark.parametrize(
    ("pattern", "line", "found"),
    [
        (r"step (?P<iteration>\S*) loss", b"step 28.2K loss", Unread("iteration '28.2K'")),
        (r"step (?P<iteration>\d+)", b"step " + b"9" * 5000, Unread(f"iteration '{'9' * 40}'")),
        (r"step (?P<iteration>\S*) loss", b"step  loss", None),
        (r"(?:step (?P<iteration>\d+)|done)", b"done", None),
    ],
)
def test_a_step_that_cannot_be_read_is_no_progress(
    pattern: str, line: bytes, found: Unread | None
) -> None:
    assert ProgressPattern(pattern).read(line) == found


def test_a_loss_that_is_no_number_is_none_and_said() -> None:
    pattern = r"(?P<iteration>\d+) (?P<loss>\S*) (?P<seconds>\S*)(?P<learning_rate> \S+)?"
    found = ProgressPattern(pattern).read(b"7 n/a -3")
    assert found == Progress(7, None, None, None, None, "loss 'n/a', seconds '-3'")
    assert ProgressPattern(pattern).read(b"7 nan 1e9") == Progress(
        7, None, None, None, None, "seconds '1e9'"
    )
    assert ProgressPattern(pattern).read(b"7  ") == Progress(7, None, None, None, None)


def test_a_slow_pattern_for_progress_is_refused_only_where_it_is_written() -> None:
    slow = r"(?=(?:(?P<iteration>\d+)+ )+)loss"
    with pytest.raises(ValidationError, match="could take minutes"):
        described(slow)
    assert described(slow, context=None).log_line == slow


def test_a_huge_line_does_not_hold_up_the_reading_of_progress() -> None:
    # Unbounded, `re` would be at it for days.
    pattern = ProgressPattern(r"a.*(?P<iteration>\d)")
    assert pattern.read(b"abc" * 300_000) is None


# --- lines


def test_a_captured_nan_is_an_event_with_a_text(tmp_path: Path) -> None:
    rule = {"pattern": r"loss: (?P<loss>\S+) (?P<step>\S*)(?P<absent>x)?"}
    watching = Watching(tmp_path, log_events={"r": {**rule, "every": True}})
    watching.write(b"loss: nan 1,000\nloss: inf \nloss: " + b"9" * 4000 + b" 28.2K\nloss: 2.5 10\n")
    watching.look_to_the_end()
    assert [event.values for event in watching.events if isinstance(event, LogMatched)] == [
        {"loss": "nan", "step": "1,000", "absent": ""},
        {"loss": "inf", "step": "", "absent": ""},
        {"loss": "9" * 4000, "step": "28.2K", "absent": ""},
        {"loss": 2.5, "step": 10, "absent": ""},
    ]


@pytest.mark.parametrize(
    "before",
    [
        b"%3d/1752 [00:01<1:22:01,  2.83s/it]\r" * 200 % tuple(range(200)),
        bytes(9000),
        b"\x1b[2K\x1b[1A" * 1000,
        b"\x1b[31m" + b"\x1b[0m" * 2000,
    ],
    ids=["bar", "NUL", "erasing", "colours"],
)
def test_an_error_behind_what_a_terminal_does_not_show_is_seen(
    tmp_path: Path, engine: type, before: bytes
) -> None:
    watching = Watching(tmp_path, log_events={"r": {"pattern": "^CUDA error: (?P<what>.+)$"}})
    watching.write(
        b"fine\n\x1b[1mfine\x1b[0m\n" + before + b"CUDA \x1b[31merror: gone\x1b[0m\nlast"
    )
    watching.look_to_the_end()
    (event,) = watching.events
    assert isinstance(event, LogMatched)
    assert event.values == {"what": "gone"}
    start = watching.log.read_bytes()[event.offset :]
    assert start.startswith((before[:4] if before[:1] == b"\x1b" else b"CUDA", b"CUDA"))


def test_of_a_progress_bar_the_last_piece_counts(tmp_path: Path) -> None:
    watching = Watching(
        tmp_path,
        described(r"step (?P<iteration>\d+)/\S+ loss (?P<loss>\S+)"),
        metric_events={"spike": {"spike": {"over": 2, "logged": 1}}},
    )
    for step in (10, 10, 10, 20, 20, 30):
        watching.write(b"\rstep %d/60 loss %.1f" % (step, 3 - step / 100))
    watching.look_to_the_end()
    assert (watching.job.iteration, watching.job.loss) == (30, 2.7)
    assert [row.iteration for row in watching.job.tail] == [10, 20, 30]
    assert watching.metrics == ["10,2.9,,\n", "20,2.8,,\n", "30,2.7,,\n"] == watching.rows


def test_a_step_that_is_no_number_is_said_once_with_its_place_and_reading_goes_on(
    tmp_path: Path,
) -> None:
    watching = Watching(tmp_path, described(r"step (?P<iteration>\S+) loss (?P<loss>\S+)"))
    watching.write(b"step 999 loss 3\nstep 1.0K loss 2\nstep 1.1K loss 2\nstep 1,200 loss 1.5\n")
    watch = watching.look()
    assert (watching.job.iteration, watching.job.loss) == (1200, 1.5)
    assert watching.job.warning == (
        f"{watching.log}, byte 16: iteration '1.0K' is not a step number; skipped"
    )
    assert watch.dirty
    watching.job.warning = None
    watching.write(b"step 1,300 loss 1.5\n")
    watching.look()
    assert (watching.job.iteration, watching.job.warning) == (1300, None)


def test_a_step_number_of_thousands_of_digits_is_said(tmp_path: Path) -> None:
    watching = Watching(tmp_path, described(COMMON["log_line"]))  # type: ignore[arg-type]
    watching.write(b"it " + b"9" * 5000 + b" loss=2.0 lr=0.01\nit 60 loss=1.0 lr=0.01\n")
    watching.look()
    assert watching.job.iteration == 60
    assert watching.job.warning is not None and "byte 0: iteration '9999" in watching.job.warning


@pytest.mark.parametrize("error", [ValueError("\udcff"), RecursionError(), MemoryError()])
def test_whatever_a_line_makes_raise_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def raising(backend: DemoBackend, line: bytes) -> Progress | Unread | None:
        if b"iteration 2/" in line:
            raise error
        return megatron_progress(line)

    monkeypatch.setattr(DemoBackend, "progress", raising)
    watching = Watching(tmp_path, log_events={"r": {"substring": "CUDA error"}})
    lines = [iteration_line(1), iteration_line(2), b"CUDA error", iteration_line(3)]
    watching.write(b"\n".join(lines) + b"\n")
    watching.look()
    assert watching.job.iteration == 3 and len(watching.events) == 1
    place = f"{watching.log}, byte {len(lines[0]) + 1}: {type(error).__name__}: "
    assert watching.job.warning is not None and watching.job.warning.startswith(place)
    watching.job.warning = None
    watching.look()  # another process
    assert watching.job.warning is None


def test_a_rule_that_raises_does_not_blind_the_reading_of_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raising(matcher: Matcher, line: object) -> Iterator[Any]:
        raise RuntimeError("boom")

    monkeypatch.setattr(Matcher, "hits", raising)
    watching = Watching(tmp_path, log_events={"r": {"substring": "lm loss"}})
    watching.write(iteration_line(1) + b"\n" + iteration_line(2) + b"\n")
    watching.look()
    assert watching.job.iteration == 2
    assert watching.job.warning == f"{watching.log}, byte 0: RuntimeError: boom; skipped"


def test_an_engine_that_breaks_down_loses_no_line(
    tmp_path: Path, engine: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.lines  # type: ignore[attr-defined]

    def breaking(self: object, data: bytes) -> Iterator[Any]:
        yield next(whole(self, data))
        raise MemoryError

    monkeypatch.setattr(engine, "lines", breaking)
    watching = Watching(tmp_path, log_events={"r": {"pattern": "bad (?P<n>.)", "every": True}})
    watching.write(b"bad 1\nfine\nbad 2\nbad 3\n")
    watching.look()
    found = [event.values["n"] for event in watching.events if isinstance(event, LogMatched)]
    assert found == [1, 2, 3]


def test_checkpoints_that_make_a_reader_raise_are_passed_by_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def raising(backend: DemoBackend, save_dir: Path) -> CheckpointScan:
        calls.append(save_dir)
        raise TypeError("no dictionary")

    monkeypatch.setattr(DemoBackend, "checkpoints", raising)
    watching = Watching(tmp_path)
    watching.save_dir.mkdir()
    attempt, watch = watching.job.attempts[0], JobWatch()
    for _ in range(3):
        assert watch.find_checkpoints(watching.job, attempt, watching.watched, ended=False) == []
    assert len(calls) == 1
    said = f"{watching.save_dir}: TypeError: no dictionary; skipped"
    assert watching.job.warning == said


@pytest.mark.parametrize(
    "state",
    [
        '{"global_step": 10, "log_history": 7}',
        '{"global_step": 10, "log_history": [7, null, {"loss": 1}, {"loss": 1, "step": true}]}',
        '{"global_step": 10, "log_history": [{"loss": 1, "step": -1}, {"loss": 1, "step": 1e400}]}',
        '{"global_step": 10, "max_steps": "x", "log_history": [{"loss": 1, "step": 1'
        + "0" * 20
        + "}]}",
        '{"global_step": 10, "log_history": [{"loss": 1' + "0" * 400 + ', "step": 5}]}',
        "[" * 100_000,
    ],
)
def test_whatever_a_trainers_state_holds_nothing_raises(tmp_path: Path, state: str) -> None:
    trainer: Backend = HuggingFaceBackend(
        script="x.py",
        args={"max_steps": 100, "save_steps": 10, "learning_rate": 0.1},  # type: ignore[arg-type]
    )
    watching = Watching(tmp_path, trainer)
    folder = watching.save_dir / "checkpoint-10"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text(state)
    watch = JobWatch()
    watch.find_checkpoints(watching.job, watching.job.attempts[0], watching.watched, ended=True)
    assert watching.job.warning is None
    assert watching.job.loss is None


@pytest.mark.parametrize(
    ("content", "numbers"),
    [
        ('{"a": %s, "b": 1}' % ("9" * 5000), {"b": 1.0}),
        (r'{"half \ud800": 1}', {r"half \ud800": 1.0}),
        ('{"a": {' + '"a": {' * 950 + "}" * 950 + '}, "b": 1}', {"b": 1.0}),
    ],
)
def test_scores_can_be_written_down(tmp_path: Path, content: str, numbers: Any) -> None:
    (tmp_path / "scores.json").write_text(content)
    try:
        found = read_scores(tmp_path / "scores.json").numbers
    except NoScores:
        return  # nested too deeply for this Python
    assert found == numbers
    assert json.loads(json.dumps(found).encode()) == numbers


# --- bounds


def test_one_look_reads_a_bounded_part_of_a_log_and_the_next_one_goes_on(tmp_path: Path) -> None:
    watching = Watching(tmp_path)
    watching.write(iteration_line(1) + b"\n")
    size = 9 * LIMIT
    os.truncate(watching.log, size)
    watching.write(b"\n" + iteration_line(2) + b"\n")
    assert not watching.look().at_end
    assert watching.job.cursor.scanned <= LIMIT
    assert watching.job.iteration == 1
    watching.look_to_the_end(final=False)
    assert watching.job.iteration == 2


def test_one_look_takes_in_a_bounded_number_of_short_lines(tmp_path: Path) -> None:
    watching = Watching(tmp_path)
    watching.write(b"x\n" * 1_000_000)
    looks = 1
    while not watching.look().at_end:
        looks += 1
    assert looks >= 2


def test_one_look_finds_a_bounded_number_of_events_and_none_is_lost(tmp_path: Path) -> None:
    watching = Watching(tmp_path, log_events={"r": {"substring": "bad", "every": True}})
    count, most = 30_000, 0
    watching.write(b"a rather bad line\n" * count)
    while True:
        before = len(watching.events)
        at_end = watching.look().at_end
        most = max(most, len(watching.events) - before)
        if at_end:
            break
    assert len({event.key for event in watching.events}) == count
    assert most <= 2000


# --- any bytes under any rules


SHOWN = b"the line that must be found: 42"
FRAGMENTS = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 10**30).map(lambda n: b"%d" % n),
    st.integers(0, 70).map(iteration_line),
    st.sampled_from(
        [
            *(
                b"\n",
                b"\r",
                b"\r\n",
                bytes(30),
                b"\x1b[31m",
                b"\x1b[K",
                b"\x1b]0;t\x07",
                b"\x1b[",
                b"\xff",
            ),
            *(
                b"loss: nan ",
                b"loss: inf",
                b"step 1,000",
                b"step 28.2K",
                b"step ",
                b"3.2e+4",
                b"9" * 4400,
            ),
            *(b" iteration " + b"9" * 4400 + b"/ 60 | lm loss: 0.0 |", b"x" * 5000),
            *(b" iteration 5/ 60 | lm loss: 0.0 |\n" * 3, b"error -1\nerror 1e999\n"),
        ]
    ),
    st.just(b"\n" + SHOWN + b"\n"),
)
COMMON_FRAGMENTS = st.sampled_from(
    [
        b"loss: nan x\nloss: -inf\nloss: 1,000 \n",
        b"\n".join([*(iteration_line(n, 0.0) for n in range(1, 4)), iteration_line(4), b""]),
    ]
)
ATOMS = st.sampled_from(
    (
        *(
            "a",
            "error ",
            r"loss: (?P<loss>\S+)",
            r"(?P<n>\d+)",
            r"(?P<any>.*)",
            r"(?P<none>x)?",
            "^",
        ),
        *("$", "[^a]", r"\s", r"(?P<step>-?\d\S*)", r"(?:1|2)", "(?i:ERROR)"),
    )
)
LOG_LINES = st.sampled_from(
    [
        None,
        r"step (?P<iteration>\S*)",
        r"(?P<iteration>\d*)",
        r"(?P<iteration>.+)(?P<loss>\S)?",
        r"iteration (?P<iteration>\S+)/ .*?loss: (?P<loss>\S+)",
        r"(?:step (?P<iteration>\d+)|loss: (?P<loss>\S+))",
        r"(?P<iteration>\d+)(?P<seconds>.*)",
    ]
)
METRICS = {
    "nan": {"not_a_number": {"logged": 1}},
    "high": {"loss_above": {"value": 2.5, "logged": 1}},
    "spike": {"spike": {"over": 2, "logged": 1}},
    "slow": {"throughput_below": {"over": 2, "logged": 1}},
}


def _only_texts(watch: JobWatch, job: JobRecord, place: str, error: Exception | str) -> None:
    """In place of `warn_skipped`: whatever was raised is a fault, though it would be contained."""
    if isinstance(error, Exception):
        raise AssertionError(place) from error


@pytest.mark.filterwarnings("ignore:Possible nested set")
@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    st.lists(FRAGMENTS | COMMON_FRAGMENTS, max_size=30),
    st.lists(st.lists(ATOMS, min_size=1, max_size=4) | st.just(["loss: (?P<x>.+)"]), max_size=3),
    st.booleans(),
    LOG_LINES,
    st.lists(st.integers(1, 6000), max_size=20),
)
def test_any_bytes_in_any_pieces_are_read_as_at_once(
    engine: type,
    fragments: list[bytes],
    patterns: list[list[str]],
    every: bool,
    log_line: str | None,
    cuts: list[int],
) -> None:
    data = b"".join(fragments)
    rules: dict[str, Any] = {"shown": {"substring": SHOWN.decode(), "every": True}}
    for number_, atoms in enumerate(patterns):
        try:
            refuse_slow("".join(atoms))
        except ValueError:
            continue
        rules[f"r{number_}"] = {"pattern": "".join(atoms), "every": every}
    backend = None if log_line is None else described(log_line)
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        mock.patch.object(tail, "MAX_LINE", 4000),
        mock.patch.object(tail, "BLOCK", 700),
        mock.patch.object(tail, "MAX_LINES", 50),
        mock.patch.object(JobWatch, "warn_skipped", _only_texts),
    ):
        at_once = Watching(Path(one), backend, log_events=rules, metric_events=METRICS)
        at_once.write(data)
        at_once.look_to_the_end()
        pieces = Watching(Path(other), backend, log_events=rules, metric_events=METRICS)
        rest = data
        for cut in cuts:
            pieces.write(rest[:cut])
            rest = rest[cut:]
            pieces.look()
        pieces.write(rest)
        pieces.look_to_the_end()
    assert [event.key for event in at_once.events] == [event.key for event in pieces.events]
    assert at_once.metrics == pieces.metrics
    for name in ("iteration", "loss", "learning_rate", "seconds_per_iteration", "tail"):
        assert getattr(at_once.job, name) == getattr(pieces.job, name)
    assert at_once.job.attempts[0].matches == pieces.job.attempts[0].matches
    assert pieces.job.attempts[0].matches.get("shown", 0) == fragments.count(b"\n" + SHOWN + b"\n")


def test_a_line_of_megabytes_hides_no_other(tmp_path: Path, engine: type) -> None:
    watching = Watching(tmp_path, log_events={"r": {"substring": "CUDA error"}})
    for _ in range(3):
        watching.write(b"\x1b[31m" + b"9" * (3 << 20))
        watching.look()
    watching.write(b"\n" + iteration_line(5) + b"\nCUDA error\n")
    watching.look()
    assert watching.job.iteration == 5 and len(watching.events) == 1


# --- a log that names no iteration


def silent(folder: Path, backend: Any) -> tuple[Watching, JobWatch]:
    watching = Watching(folder, backend)
    watching.job.spec = watching.job.spec.model_copy(update={"target_iteration": 300})
    return watching, JobWatch()


def read(watching: Watching, watch: JobWatch, data: bytes) -> list[ProgressMissing]:
    watching.write(data)
    attempt, budget = watching.job.attempts[0], LookBudget.of_one_log()
    found = list(watch.read_log(watching.job, attempt, watching.watched, budget, final=False))
    return [event for event in found if isinstance(event, ProgressMissing)]


def test_forty_lines_that_a_log_line_does_not_match_are_an_event_with_the_last_one(
    tmp_path: Path,
) -> None:
    watching, watch = silent(tmp_path, described(r"step (?P<iteration>\d+)"))
    assert read(watching, watch, b"Step 1: loss 2.0\n" * 39) == []
    (event,) = read(watching, watch, b"\nStep 40: loss 2.0\n")
    assert (event.lines, event.last_line) == (40, "Step 40: loss 2.0")
    assert describe(event).startswith("j attempt 1: no iteration is read in 40 lines of its log")
    assert "'Step 40: loss 2.0'" in describe(event) and "check-log" in describe(event)
    assert watching.job.warning is not None and watching.job.warning in describe(event)
    assert read(watching, watch, b"Step 41\n" * 50) == []
    assert read(watching, watch, b"step 42\n") == []
    assert watching.job.warning is None and watching.job.iteration == 42


def test_a_trainer_that_prints_its_settings_first_is_silent_at_its_first_checkpoint(
    tmp_path: Path,
) -> None:
    watching, watch = silent(tmp_path, DemoBackend())
    interval = watching.job.spec.trainer.log_interval or 1
    assert read(watching, watch, b"setting\n" * 400) == []
    watching.job.checkpoints = [interval - 1]  # before it was to log anything
    assert read(watching, watch, b"saved\n") == []
    watching.job.checkpoints = [interval]
    (event,) = read(watching, watch, b"saved\n")
    assert (event.lines, event.last_line) == (402, "saved")


def test_a_log_that_names_iterations_or_has_no_line_is_not_silent(tmp_path: Path) -> None:
    watching, watch = silent(tmp_path, DemoBackend())
    watching.job.checkpoints = [100]
    assert read(watching, watch, b"") == []
    assert read(watching, watch, iteration_line(10) + b"\n") == []
    assert read(watching, watch, b"x\n" * 99) == []
