"""How a session looks in terminals of several widths."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from autoexp.reports.curves import Gain
from autoexp.reports.status import JobSummary, Status
from autoexp.reports.tables import NumberTable, gains_lines, status_view
from autoexp.states import Kind, Verdict

WAITS = "waits for checkpoint 1000 of demo"


def test_a_cooldown_above_its_trunk_has_lost() -> None:
    gains = [Gain("demo-cd100", 150, 2.577, 2.525), Gain("demo-cd200", 250, 2.415, 2.438)]
    assert [line.rpartition(": ")[2] for line in gains_lines(gains)] == [
        "lost 0.052 nats",
        "gained 0.023 nats",
    ]


def job(name: str, **changes: object) -> JobSummary:
    known = {
        "name": name,
        "kind": Kind.TRAIN,
        "state": "RUNNING",
        "verdict": None,
        "reason": None,
        "iteration": 960,
        "target_iteration": 2000,
        "loss": 2.1942,
        "learning_rate": 0.01,
        "seconds_left": 5.0,
        "gpu_hours": 0.0,
        "planned_gpu_hours": None,
        "scores": {},
    }
    return JobSummary.model_construct(**{**known, **changes})


STATUS = Status.model_construct(
    session="demo-1",
    state="running",
    jobs=[
        job("demo"),
        job("demo-cd1000", state="WAITING", loss=None, learning_rate=None, reason=WAITS),
        job("demo-cd1600", verdict=Verdict.FINISHED, reason="reached iteration 2000"),
    ],
)


def shown(width: int, status: Status = STATUS) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(status_view(status))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_a_reason_stands_in_whole_words_at_any_width(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 8  # a headline, and a line or two for each job
    assert sum(line.count(WAITS) for line in lines) == 1


def test_a_reason_that_would_be_narrow_stands_below_its_job() -> None:
    below = shown(80)
    at = next(n for n, line in enumerate(below) if line.startswith("demo-cd1000"))
    assert below[at + 1].rstrip() == f"  {WAITS}"
    assert any("WAITING" in line and line.rstrip().endswith(WAITS) for line in shown(120))


@pytest.mark.parametrize(
    ("width", "bar", "headings"),
    [
        (120, 20, ("lr", "GPU h", "left")),
        (80, 8, ("lr", "GPU h", "left")),
        (76, 8, ("GPU h", "left")),
        (60, 8, ("left",)),
        (50, 0, ("left",)),
    ],
)
def test_where_the_room_is_small_bars_shrink_then_rate_hours_and_bars_go(
    width: int, bar: int, headings: tuple[str, ...]
) -> None:
    costly = [job.model_copy(update={"planned_gpu_hours": 100.0}) for job in STATUS.jobs]
    lines = shown(width, STATUS.model_copy(update={"jobs": costly}))
    at = next(n for n, line in enumerate(lines) if line.startswith("job"))
    heading, first = lines[at : at + 2]
    assert [name for name in ("lr", "GPU h", "left") if name in heading] == list(headings)
    assert sum(first.count(part) for part in "━╸╺") in ((bar,) if bar == 0 else range(1, bar + 1))
    assert ("━" in first) == (bar > 0)


@pytest.mark.parametrize("width", [30, 40, 60, 80, 160])
def test_no_name_and_no_state_is_cut(width: int) -> None:
    lines = shown(width)
    for name, state in (
        ("demo", "RUNNING"),
        ("demo-cd1000", "WAITING"),
        ("demo-cd1600", "finished"),
    ):
        assert any(line.startswith(name) and state in line for line in lines)


NUMBERS = [
    ("demo", "0.7731", "7.1%", "[b]1[/b]"),
    ("demo-cd1000", "1234567.89", "100.0%", "日本"),
]


@pytest.mark.parametrize("width", [24, 30, 41, 42, 80, 160])
def test_no_cell_of_a_table_of_numbers_is_cut_at_any_width(width: int) -> None:
    out = io.StringIO()
    headings = ["job", "gpu_hours", "goodput", "queued"]
    Console(file=out, width=width, highlight=False).print(NumberTable(headings, NUMBERS, left=1))
    parts = [part.splitlines() for part in out.getvalue().split("\n\n")]
    found: dict[str, list[str]] = {}
    for lines in parts:
        for line in lines:
            name, *cells = line.split()
            found.setdefault(name, []).extend(cells)
    assert found == {name: cells for name, *cells in [headings, *map(list, NUMBERS)]}
    assert max(cell_len(line) for lines in parts for line in lines) <= width
    assert (len(parts) == 1) == (width >= 42)


@pytest.mark.parametrize("width", [20, 80])
def test_a_name_that_is_too_long_is_folded_and_no_number_is_cut(width: int) -> None:
    out = io.StringIO()
    rows = [("a-training-with-a-long-name-" * 3, "1234567.89", "0.5")]
    table = NumberTable(["job", "gpu_hours", "goodput"], rows, left=1)
    Console(file=out, width=width, highlight=False).print(table)
    shown = out.getvalue()
    assert "1234567.89" in shown and "…" not in shown
    assert max(map(len, shown.splitlines())) <= width
