"""How a session looks in terminals of several widths."""

import io

import pytest
from rich.console import Console

from autoexp.reports.status import JobSummary, Status
from autoexp.reports.tables import status_view
from autoexp.states import Kind, Verdict

WAITS = "waits for checkpoint 1000 of demo"


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


def shown(width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(status_view(STATUS))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
def test_a_reason_stands_in_whole_words_at_any_width(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert len(lines) <= 8  # a headline, and a line or two for each job
    assert sum(line.count(WAITS) for line in lines) == 1


def test_the_bars_stay_where_there_is_room_for_them() -> None:
    assert ["━" in "".join(shown(width)) for width in (60, 80, 120)] == [False, True, True]
