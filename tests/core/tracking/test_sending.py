"""What is new of a session's curves is sent once, in the order in which it was logged."""

from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import SessionLog

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.jobs.record import JobRecord
from autoexp.planning.study import plan_study
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import locks, migrations
from autoexp.tracking import settings
from autoexp.tracking.cursor import Cursors
from autoexp.tracking.curve import Point, Rewind, read_piece
from autoexp.tracking.send import Sent, send_new, tracked
from autoexp.tracking.settings import Tracking, chosen
from autoexp.tracking.tracker import Owner, away
from tests.builders import TINY, create, spec_of
from tests.event_files import events
from tests.killing import KilledAt

OWNER = Owner("s1", "abcd", "tiny")


def log(path: Path, *iterations: int, job: str = "tiny", loss: float = 2.0) -> None:
    """Log iterations of a job, and write its record, as a monitor does."""
    session = Session.load(path)
    session.log_progress(session.jobs[job], (f"{i},{loss},0.01,0.5\n" for i in iterations))
    session.change_job(session.jobs[job], iteration=iterations[-1])


def send(path: Path, **options: Any) -> Sent:
    (sent,) = send_new(path, OWNER, Tracking(tensorboard="runs"), **options)
    assert sent.problem is None
    return sent


def drawn(path: Path, job: str = "tiny", name: str = "loss") -> list[tuple[int, float]]:
    """The points of a curve as TensorBoard keeps them: a START drops what it supersedes."""
    found: list[tuple[int, float]] = []
    for event in events(path.parent / "runs" / "s1" / job):
        if event.session_log.status == SessionLog.START:
            found = [point for point in found if point[0] < event.step]
        values = [value for value in event.summary.value if value.tag == name]
        found += [(event.step, value.simple_value) for value in values]
    return found


def test_a_pass_sends_what_is_new_and_reads_nothing_else(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(session_path, 10, 20)
    assert send(session_path) == Sent(tracker="tensorboard", points=2, jobs=3, problem=None)
    assert drawn(session_path) == [(10, 2.0), (20, 2.0)]

    log(session_path, 30)
    assert send(session_path) == Sent(tracker="tensorboard", points=1, jobs=1, problem=None)
    assert drawn(session_path) == [(10, 2.0), (20, 2.0), (30, 2.0)]

    monkeypatch.setattr("autoexp.storage.migrations.read", _only_stamps)
    assert send(session_path) == Sent(tracker="tensorboard", points=0, jobs=0, problem=None)


_READ = migrations.read


def _only_stamps(path: Path, model: Any) -> Any:
    assert path.name == "tensorboard.json", f"{path} is read, and nothing in it is new"
    return _READ(path, model)


def test_what_was_done_twice_replaces_what_was_lost(session_path: Path) -> None:
    log(session_path, 10, 20, 30, loss=9.0)
    send(session_path)
    log(session_path, 20, loss=1.0)  # from the checkpoint at 10
    send(session_path)
    assert drawn(session_path) == [(10, 9.0), (20, 1.0)]
    assert Cursors(session_path, "tensorboard").load("tiny").rewinds == [(30, 20)]


def test_a_branch_begins_where_it_left_its_parent(session_path: Path) -> None:
    log(session_path, 90, 100)
    log(session_path, 110, 120, job="tiny-cd100")
    send(session_path)
    assert [step for step, _ in drawn(session_path, "tiny-cd100")] == [110, 120]
    job = tracked(Session.load(session_path).jobs["tiny-cd100"], OWNER)
    assert (job.parent, job.settings["starts_at"]) == ("tiny", "100")


def test_a_kill_anywhere_leaves_no_point_out_and_none_twice(
    session_path: Path, killed_at: KilledAt
) -> None:
    log(session_path, 10, 20)
    send(session_path)
    log(session_path, 30, 40)
    step = 1
    while killed_at(step, lambda: send(session_path)):
        # What was being sent is sent as it was, and what came meanwhile after it.
        log(session_path, 40 + 10 * step)
        step += 1
    assert step > 4
    assert [at for at, _ in drawn(session_path)] == [*range(10, 40 + 10 * step, 10)]


def test_a_line_that_is_being_written_waits_for_its_end(session_path: Path) -> None:
    log(session_path, 10)
    path = session_path / "metrics" / "tiny.csv"
    with path.open("a") as file:
        file.write("20,1.5,0.0")
    piece = read_piece(path, 0, None)
    assert [step.iteration for step in piece.steps if isinstance(step, Point)] == [10]
    with path.open("a") as file:
        file.write("1,0.5\n30,nan,0.01,0.5\n,\n10,1.0,,\n")
    after = read_piece(path, piece.end, piece.last)
    assert after.steps == (
        Point(20, {"loss": 1.5, "learning_rate": 0.01, "seconds_per_iteration": 0.5}),
        Point(30, {"learning_rate": 0.01, "seconds_per_iteration": 0.5}),
        Rewind(30, 10),
        Point(10, {"loss": 1.0}),
    )


def test_validations_are_points_of_their_own_and_no_step_back(session_path: Path) -> None:
    log(session_path, 10, 20)
    with (session_path / "metrics" / "tiny.csv").open("a") as file:
        file.write("10,,,,,,,2.5,held out\n30,1.0,0.1,0.5\n")
    send(session_path)
    assert drawn(session_path, name="validation/held_out") == [(10, 2.5)]
    assert [step for step, _ in drawn(session_path)] == [10, 20, 30]


def test_how_a_job_ended_and_its_scores_are_told_without_new_points(session_path: Path) -> None:
    log(session_path, 10)
    send(session_path)
    session = Session.load(session_path)
    session.change_job(session.jobs["tiny"], verdict=Verdict.FINISHED, scores={"accuracy": 0.5})
    send(session_path)
    assert drawn(session_path, name="score/accuracy") == [(10, 0.5)]


def test_one_pass_at_a_time(session_path: Path) -> None:
    log(session_path, 10)
    (session_path / "tracking").mkdir()
    with locks.exclusively(session_path / "tracking" / "lock", 0.0), pytest.raises(locks.Busy):
        send(session_path)


def test_a_directory_that_cannot_be_written_is_a_problem_and_the_next_pass_catches_up(
    session_path: Path,
) -> None:
    log(session_path, 10)
    (session_path.parent / "runs").write_text("a file where the folder belongs")
    (sent,) = send_new(session_path, OWNER, Tracking(tensorboard="runs"))
    assert sent.problem is not None and "runs" in sent.problem
    (session_path.parent / "runs").unlink()
    log(session_path, 20)
    assert send(session_path).points == 2


def test_what_looks_like_a_secret_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "a-secret-value")
    spec = spec_of(
        "x", settings={"backend.args.api_key": "k", "backend.args.data": "a-secret-value"}
    )
    job = tracked(JobRecord(spec=spec), OWNER)
    assert job.settings == {"backend.args.data": "[left out]"}


def test_a_tracker_whose_package_is_missing_is_refused_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "find_spec", lambda name: None)
    composed = compose("demo", [*TINY, "+tracking.mlflow.uri=http://127.0.0.1:1"])
    with pytest.raises(BadInput, match=r"tracking\.mlflow needs mlflow.*autoexp\[mlflow\]"):
        plan_study(composed, tmp_path)


def test_why_a_tracker_is_away_is_said_where_causes_go_in_a_circle_or_are_hidden() -> None:
    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert str(away(first)) == "second (first)"
    hidden = RuntimeError("server said 403")
    hidden.__context__, hidden.__suppress_context__ = KeyError("key"), True
    assert str(away(hidden)) == "server said 403"


def test_why_a_tracker_is_away_begins_with_the_last_cause_and_names_no_secret() -> None:
    address = "https://ann:hunter2@host/api/2.0/mlflow/experiments/get-by-name?experiment_name=lab"
    error = RuntimeError(f"API request to {address} failed with {'x' * 1000}")
    error.__context__ = ConnectionRefusedError(111, "Connection refused")
    said = str(away(error))
    assert said.startswith("[Errno 111] Connection refused (API request to https://")
    assert "hunter2" not in said and "\n" not in said and len(said) < 400
    plain = "API request to endpoint /api/2.0/mlflow/experiments/get-by-name failed with code 403"
    assert str(away(RuntimeError(plain))) == plain


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["tracking={}"], "give a tracker"),
        (["+tracking.tensorbord=x"], "did you mean `tensorboard`"),
        (["+tracking.mlflow.uri=http://me:pass@host"], "a URL with a password"),
        (["+tracking.wandb.mode=offlin"], "online.*offline"),
    ],
)
def test_what_is_no_tracker_is_one_message(words: list[str], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        compose("demo", [*TINY, *words])


def test_settings_of_the_command_come_before_those_of_the_session() -> None:
    own = Tracking(tensorboard="runs")
    assert chosen(own, []) is own
    found = chosen(own, ["tensorboard=other", "wandb.mode=offline"])
    assert found is not None and found.wandb is not None
    assert (found.tensorboard, found.wandb.mode) == ("other", "offline")
    with pytest.raises(BadInput, match="KEY=VALUE"):
        chosen(None, ["tensorboard"])


def test_a_session_of_before_has_no_tracking(session_path: Path) -> None:
    assert Session.load(session_path).experiment.tracking is None
    assert not (session_path / "tracking").exists()


def test_another_job_of_the_same_session_keeps_a_file_of_its_own(tmp_path: Path) -> None:
    path = create(compose("demo", TINY), tmp_path / "sessions", session_id="s1")
    log(path, 10)
    log(path, 110, job="tiny-cd100")
    send(path)
    folder = path.parent / "runs" / "s1"
    assert {file.parent.name for file in folder.glob("*/events.out.tfevents.*")} == {
        "tiny",
        "tiny-cd100",
    }
