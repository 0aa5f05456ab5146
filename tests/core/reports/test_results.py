"""The table that a study was for, and what else comes out of sessions."""

import csv
import io
import sys
from pathlib import Path

import pytest
from pyarrow import parquet

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.reports import export
from autoexp.reports.plot import Subject, draw
from autoexp.reports.results import compared, rows
from autoexp.reports.tensorboard import write_events
from autoexp.session.provenance import Provenance
from autoexp.session.session import Session
from tests.builders import TINY, create
from tests.event_files import events


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """Two points of a sweep, each with a cooldown that was evaluated; curves of three points."""
    overrides = [
        *TINY,
        "cooldowns=[{at: [100], decay: {iterations: 50}}]",
        "backend.args.lr=1e-2,3e-3",
        "slurm.gpus_per_node=2",
        "budget.seconds_per_iteration=36",
        "stages={score: {each: cooldown, kind: evaluate, command: [x], minutes: 3}}",
    ]
    git = {"commit": "abc"}
    path = create(
        compose("demo", overrides),
        tmp_path / "sessions",
        session_id="s1",
        provenance=Provenance(versions={}, git=git, files={}),
    )
    session = Session.load(path)
    for job in session.jobs.values():
        if job.spec.target_iteration is None:
            session.change_job(job, scores={"accuracy": 0.5, "task.loss": 2.0})
            continue
        lines = (f"{i},{3 - i / 100},1e-2,0.1\n" for i in (10, 20, 30))
        session.log_progress(job, lines)
        session.change_job(job, iteration=130)
    return session


def test_there_is_a_row_for_each_job_and_branch_with_all_that_a_fit_needs(
    session: Session,
) -> None:
    found = {row["job"]: row for row in rows([session])}
    assert list(found) == list(session.jobs)
    assert list(found)[:3] == ["tiny-lr0.01", "tiny-lr0.01-cd100", "tiny-lr0.01-cd100-score"]
    cooldown = found["tiny-lr0.003-cd100"]
    wanted = {
        "session": "s1",
        "kind": "cooldown",
        "parent": "tiny-lr0.003",
        "branch_iteration": 100,
        "decay_iterations": 50,
        "decay_fraction": pytest.approx(1 / 3),
        "decay_shape": "minus_sqrt",
        "tokens": 130 * 256,
        "final_loss": pytest.approx(2.8),
        "gpu_hours_planned": pytest.approx(50 * 36 / 3600 * 2),
        "gpu_hours_spent": 0,
        "git_commit": "abc",
        "backend.args.lr": 3e-3,
    }
    assert {key: cooldown[key] for key in wanted} == wanted
    score = found["tiny-lr0.003-cd100-score"]
    assert (score["score.accuracy"], score["score.task.loss"]) == (0.5, 2.0)
    assert score["gpu_hours_planned"] == pytest.approx(3 / 60 * 2)
    assert score["final_loss"] is None


def test_the_csv_has_every_row_and_every_digit(session: Session) -> None:
    found = rows([session])
    read = list(csv.DictReader(io.StringIO(export.as_csv(found))))
    assert [row["job"] for row in read] == list(session.jobs)
    assert [float(row["backend.args.lr"]) for row in read] == [r["backend.args.lr"] for r in found]
    assert read[0]["parent"] == ""


def test_parquet_holds_the_same_with_types(session: Session, tmp_path: Path) -> None:
    found = rows([session])
    export.write(found, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == found


def test_a_column_of_numbers_and_texts_becomes_text_in_parquet(tmp_path: Path) -> None:
    export.write([{"a": 1, "b": 1}, {"a": "x", "b": 0.5}], tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"a": "1", "b": 1.0},
        {"a": "x", "b": 0.5},
    ]


def test_without_pyarrow_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(BadInput, match=r"pip install 'autoexp\[parquet\]'"):
        export.write([{"a": 1}], tmp_path / "t.parquet")
    with pytest.raises(BadInput, match=r"ends with \.csv or \.parquet"):
        export.write([{"a": 1}], tmp_path / "t.xlsx")


def test_compare_shows_settings_that_differ_beside_losses_and_scores(session: Session) -> None:
    found = compared([session])
    assert [row["job"] for row in found] == [
        *("tiny-lr0.01", "tiny-lr0.01-cd100", "tiny-lr0.003", "tiny-lr0.003-cd100"),
    ]
    first = found[1]
    assert [key for key in first if key.startswith("backend.")] == ["backend.args.lr"]
    assert (first["final_loss"], first["accuracy"]) == (pytest.approx(2.8), 0.5)


def test_curves_go_into_event_files_that_tensorboard_reads(
    session: Session, tmp_path: Path
) -> None:
    for _ in range(2):  # the second time in place of the first
        folders = write_events([session], tmp_path / "tb")
    assert len(folders) == 6
    found = scalars(tmp_path / "tb" / "s1" / "tiny-lr0.01")
    losses = [(step, value) for tag, step, value in found if tag == "loss"]
    assert losses == [(10, pytest.approx(2.9)), (20, pytest.approx(2.8)), (30, pytest.approx(2.7))]
    scores = scalars(tmp_path / "tb" / "s1" / "tiny-lr0.01-cd100-score")
    assert ("score/accuracy", 130, 0.5) in scores  # where the cooldown stands


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    found = [(value, event.step) for event in events(folder) for value in event.summary.value]
    return [(value.tag, step, value.simple_value) for value, step in found]


def test_without_tensorboardx_the_message_says_what_to_install(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(BadInput, match=r"pip install 'autoexp\[tensorboard\]'"):
        write_events([session], tmp_path / "tb")


def test_several_sessions_are_drawn_together(session: Session, tmp_path: Path) -> None:
    subject = Subject.of(session)
    path = draw(subject, subject, path=tmp_path / "both.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len(path.read_bytes()) > 10_000


def test_a_score_of_a_columns_name_takes_no_columns_place(session: Session) -> None:
    for job in session.jobs.values():
        if job.spec.target_iteration is None:
            session.change_job(job, scores={"job": 1.0, "final_loss": 2.0})
    cooldown = compared([session])[1]
    assert cooldown["job"] == "tiny-lr0.01-cd100" and cooldown["final_loss"] != 2.0
    assert (cooldown["score.job"], cooldown["score.final_loss"]) == (1.0, 2.0)
