"""A score over the checkpoints: whose it is, what is missing, and the picture."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from autoexp.cli.main import main
from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.operations.retry import retry
from autoexp.reports.plot import Options, Subject
from autoexp.rules.actions import Launch
from autoexp.rules.events import CheckpointComplete
from autoexp.science import score_plot
from autoexp.science.score_plot import Scored, draw_scores
from autoexp.science.trajectory import trajectory
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import TINY, create, spec_of

ACC = "hellaswag/acc"
LM_EVAL = {"kind": "evaluate", "command": ["lm_eval"], "scores": "lm_eval"}
SETTINGS: dict[str, Any] = {
    "merges": [{"at": [300], "last": 200}],
    "stages": {
        "first": {**LM_EVAL, "after": {"stable": {"checkpoint": 100}}},
        "end": {**LM_EVAL, "after": {"stable": "finished"}},
        "convert": {"each": "cooldown", "command": ["c", "{sibling.cooldown.checkpoint_path}"]},
        "eval": {**LM_EVAL, "each": "cooldown", "command": ["e", "{sibling.convert.output_dir}"]},
    },
}


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """All evaluations have a score, but that of the cooldown at 200, which failed."""
    path = create(compose("demo", TINY, setting(SETTINGS)), tmp_path / "sessions", session_id="s1")
    session = Session.load(path)
    values = {"first": 0.25, "end": 0.31, "cd100-eval": 0.29, "merge300-eval": 0.32}
    for name, value in values.items():
        scored(session, f"tiny-{name}", {ACC: value, f"{ACC}_stderr": 0.004})
    failed = session.jobs["tiny-cd200-eval"]
    session.change_job(failed, verdict=Verdict.FAILED, reason="exit code 1", launched=True)
    return session


def scored(session: Session, name: str, scores: dict[str, float]) -> None:
    session.change_job(session.jobs[name], verdict=Verdict.FINISHED, scores=scores)


def launched(session: Session, at: int) -> str:
    """An evaluation that a rule has launched at a checkpoint of the training."""
    event = CheckpointComplete(job="tiny", iteration=at, path="/c")
    launch = Launch(command=("lm_eval",), name=f"tiny-eval{at}", scores="lm_eval")
    action = ActionRecord(key=f"look--tiny_{at}--0", rule="look", event=event, action=launch)
    session.save_action(action)
    spec = spec_of("lm_eval", name=f"tiny-eval{at}", kind=Kind.EVALUATE, parent="tiny",
                   scores="/out/lm_eval", launched_by=action.key)  # fmt: skip
    session.add_job(spec)
    return spec.name


def test_scores_stand_at_the_checkpoints_that_were_evaluated(session: Session) -> None:
    scored(session, launched(session, 200), {ACC: 0.28})
    found = trajectory(session, ACC)
    points = {
        job: [(cell.iteration, cell.value, cell.error) for cell in cells]
        for job, cells in found.points.items()
    }
    assert points == {
        "tiny": [(100, 0.25, 0.004), (200, 0.28, None), (300, 0.31, 0.004)],
        "tiny-cd100": [(150, 0.29, 0.004)],
        "tiny-merge300": [(300, 0.32, 0.004)],
    }


def test_a_missing_cell_is_named_with_its_reason_and_can_be_retried(session: Session) -> None:
    launched(session, 200)
    scored(session, "tiny-first", {"hellaswag/acc_norm": 0.3})
    found = trajectory(session, ACC)
    lines = found.lines(session.id)
    assert lines == [
        "tiny at iteration 300: 0.31 ± 0.004",
        "tiny-cd100 at iteration 150: 0.29 ± 0.004",
        "tiny-merge300 at iteration 300: 0.32 ± 0.004",
        "missing: tiny at iteration 100: tiny-first: has finished without hellaswag/acc",
        "missing: tiny at iteration 200: tiny-eval200: has not finished yet",
        "missing: tiny-cd200 at iteration 250: tiny-cd200-eval: exit code 1",
        "again: autoexp retry s1 tiny-first tiny-cd200-eval",
    ]
    again = tuple(lines[-1].split()[-2:])
    assert retry(session, again, "ann") == ["tiny-first", "tiny-cd200-eval"]
    assert [session.jobs[name].verdict for name in again] == [None, None]
    assert session.jobs["tiny-first"].scores == {}


def test_a_cell_that_one_of_two_evaluations_has_is_not_missing(session: Session) -> None:
    """The merge's own scores are of other tasks; a stage behind it has this one."""
    scored(session, "tiny-merge300", {"validation_loss": 2.0})
    found = trajectory(session, ACC)
    assert [cell.evaluation for cell in found.missing] == ["tiny-cd200-eval"]


def test_a_score_that_nobody_has_is_refused_with_those_that_there_are(session: Session) -> None:
    with pytest.raises(BadInput, match=r"no score arc/acc; there is: hellaswag/acc, hellaswag/a"):
        trajectory(session, "arc/acc")


def test_a_dotted_score_may_be_written_with_a_stroke(session: Session) -> None:
    scored(session, "tiny-end", {"tasks.loss": 2.0})
    assert trajectory(session, "tasks/loss").points["tiny"][0].value == 2.0


def test_a_score_of_no_checkpoint_is_refused(session: Session) -> None:
    session.change_job(session.jobs["tiny-cd100-convert"], scores={"size": 3.0})
    with pytest.raises(BadInput, match="size is of no checkpoint of this session"):
        trajectory(session, "size")


def test_the_picture_has_the_trunks_line_and_the_branches_points(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            drawn.append(self)

    monkeypatch.setattr(score_plot, "Figure", Kept)
    each = Scored(Subject.of(session), trajectory(session, ACC))
    assert draw_scores([each]) == session.path / "score.png"
    (axes,) = drawn[0].axes
    lines = [list(zip(*line.get_data(), strict=True)) for line in axes.lines]
    assert [(100, 0.25), (300, 0.31)] in lines
    assert [(100, 0.25), (150, 0.29)] in lines  # from the trunk's score at the branch point
    assert [(300, 0.32)] in lines
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "train tiny",
        "cooldown tiny @100",
        "merge tiny @300 (3 minus_sqrt)",
    ]
    assert axes.get_ylabel() == ACC
    draw_scores([each, each], session.path / "two.svg", Options(tokens=True, title=False))
    assert drawn[1].axes[0].get_xlabel() == "tokens"


def test_the_command_draws_and_says_what_is_missing(
    session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session.path.parent))
    assert main(["plot", "s1", "--score", ACC]) == 0
    out = capsys.readouterr().out
    assert str(session.path / "score.png") in out
    assert "again: autoexp retry s1 tiny-cd200-eval" in out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["-o", "score.gif"], "a picture ends in .png"),
        (["--smooth", "3"], "--score or --smooth: one of them"),
    ],
)
def test_what_a_score_cannot_be_drawn_as_is_refused(
    session: Session,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    why: str,
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session.path.parent))
    assert main(["plot", "s1", "--score", ACC, *words]) != 0
    assert why in capsys.readouterr().err
