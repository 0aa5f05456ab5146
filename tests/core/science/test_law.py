"""Scaling laws: constants that are known are found again, within their intervals."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoexp.backends.demo import DemoBackend
from autoexp.backends.megatron.backend import MegatronBackend
from autoexp.cli import results
from autoexp.config.compose import compose
from autoexp.demo import model as language
from autoexp.dotted import setting
from autoexp.errors import BadInput
from autoexp.planning.study import plan_study
from autoexp.science import law
from autoexp.science.branches import ends_of
from autoexp.science.law_plot import draw_law
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, create
from tests.core.backends.conformance.megatron import ARGS, STAND_IN
from tests.sources import ROOT

# Of Hoffmann et al., approach 3.
TRUE = law.Law(e=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28)


def table(noise: float, seed: int = 0) -> list[law.Run]:
    """Five sizes on four budgets each."""
    dice = np.random.default_rng(seed)
    return [
        law.Run(f"{n:g}-{d:g}", n, d, TRUE.loss(n, d) * math.exp(noise * dice.standard_normal()))
        for n in np.geomspace(1e7, 1e10, 5)
        for d in np.geomspace(1e9, 1e12, 4)
    ]


def test_the_constants_of_a_synthetic_table_lie_within_their_intervals() -> None:
    found = law.fit(table(2e-3), resampled=60)
    for name, true in zip(("E", "A", "B", "alpha", "beta"), TRUE, strict=True):
        interval = found.intervals[name]
        assert interval.low <= true <= interval.high, name
    assert found.intervals["E"].high - found.intervals["E"].low < 0.1
    assert max(map(abs, found.residuals)) < 0.01


def test_without_noise_the_constants_are_found_exactly() -> None:
    found = law.fit(table(0.0), resampled=2)
    assert found.law.e == pytest.approx(TRUE.e, rel=1e-3)
    assert found.law.alpha == pytest.approx(TRUE.alpha, rel=1e-2)
    assert found.law.beta == pytest.approx(TRUE.beta, rel=1e-2)


def test_one_run_that_went_wrong_does_not_move_the_law() -> None:
    """The Huber loss counts it linearly."""
    runs = table(1e-3)
    runs[7] = runs[7]._replace(loss=runs[7].loss * 1.3)
    found = law.fit(runs, resampled=2)
    assert found.law.loss(1e9, 1e11) == pytest.approx(TRUE.loss(1e9, 1e11), rel=0.01)
    assert found.residuals[7] == pytest.approx(0.3, abs=0.02)


def test_a_prediction_beyond_the_table_has_an_interval_that_covers_it() -> None:
    found = law.fit(table(2e-3), resampled=60)
    predicted = found.predict(7e10, 1.4e12)
    assert predicted.low <= TRUE.loss(7e10, 1.4e12) <= predicted.high


def test_the_entropy_of_the_demos_language_is_within_the_interval_of_its_ladder() -> None:
    """Recorded losses of its trainer, on the sizes and budgets of `configs/ladder.yaml`."""
    recorded = json.loads((ROOT / "tests" / "data" / "science" / "ladder.json").read_text())
    runs = [law.Run(**run) for run in recorded["runs"]]
    planned = plan_study(compose("ladder"), Path("/out")).cooldowns
    ends = {
        (job.trainer.parameter_count(), job.tokens_at(job.branch.target))
        for job in planned
        if job.branch
    }
    assert {(run.parameters, run.tokens) for run in runs} == ends
    found = law.fit(runs)
    interval = found.intervals["E"]
    assert interval.low <= language.draw_language(1234).entropy_floor <= interval.high
    assert interval.high - interval.low < 0.15


@pytest.mark.parametrize(
    ("runs", "why"),
    [
        (table(0)[:5], "5 branches: a law of five constants needs 6"),
        (table(0)[:8], "2 model sizes"),
        ([run for run in table(0) if run.tokens < 2e10], "2 numbers of tokens"),
    ],
)
def test_what_cannot_tell_the_constants_is_refused(runs: list[law.Run], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        law.fit(runs)


def test_a_picture_shows_curves_and_residuals(tmp_path: Path) -> None:
    found = law.fit(table(2e-3), resampled=10)
    for name in ("law.png", "law.svg", "law.pdf"):
        draw_law(found, "a law", tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


# From sessions


def test_the_demos_parameters_are_those_of_its_model() -> None:
    sizes = language.Sizes(12, 24, 256)
    assert DemoBackend().parameter_count() == language.CharacterModel(sizes, 1).flat.size


def test_megatrons_parameters_are_those_of_attention_and_mlps() -> None:
    """GPT-3's 175 billion have 12 layers squared of hidden size each, without embeddings."""
    args = {**ARGS, "num_layers": 96, "hidden_size": 12288, "num_attention_heads": 96}
    backend = MegatronBackend.model_validate({"source": str(STAND_IN), "args": args})
    assert backend.parameter_count() == 96 * 12 * 12288**2
    moe = backend.model_copy(update={"args": backend.args.model_copy(update={"num_experts": 8})})
    assert "num_experts" not in moe.args.passed_through or moe.parameter_count() is None


@pytest.fixture
def ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """Three sizes, three budgets, all finished with losses of a law, and one on other data."""
    fifty = {"decay": {"iterations": 50}}
    other = {"at": [300], "name": "code", "backend": {"args": {"mix": "code"}}}
    settings = {"cooldowns": [{"at": [100, 200, 300], **fifty}, {**other, **fifty}]}
    words = [*TINY[:-1], "backend.args.hidden_size=16,64,256"]
    composed = compose("demo", words, setting(settings))
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    session = Session.load(create(composed, tmp_path / "sessions", session_id="s1"))
    small = law.Law(e=1.7, a=20.0, b=60.0, alpha=0.5, beta=0.4)
    for job in session.jobs.values():
        if job.spec.branch is None:
            continue
        n, end = job.spec.trainer.parameter_count() or 0, job.spec.target_iteration or 0
        loss = small.loss(n, job.spec.tokens_at(end) or 0)
        session.change_job(
            job, verdict=Verdict.FINISHED, reason="reached", iteration=end, launched=True,
            validations={"validation": (end, loss)},
        )  # fmt: skip
    monkeypatch.setattr("autoexp.science.branches.branch_was_seen", lambda _: True)
    return session


def test_which_branches_go_in_and_why_others_do_not(ladder: Session) -> None:
    name = next(name for name in ladder.jobs if name.endswith("16-cd100"))
    ladder.change_job(ladder.jobs[name], verdict=Verdict.FAILED, reason="exit code 1")
    ends = ends_of([ladder])
    assert (len(ends.runs), ends.measured) == (8, "validation_loss")
    reasons = {each.name: each.reason for each in ends.left_out}
    assert reasons.pop(name) == "failed: exit code 1"
    assert set(reasons.values()) == {"trained on other data (mix=code)"}
    assert len(reasons) == 3


def test_a_baseline_goes_into_the_law_once_it_has_finished(tmp_path: Path) -> None:
    settings = {"baselines": [{"decay": {"shape": "cosine"}}]}
    path = create(compose("demo", TINY, setting(settings)), tmp_path / "sessions", session_id="s1")
    session = Session.load(path)
    name = "tiny-base300-cosine"
    assert name in {each.name for each in ends_of([session]).left_out}
    session.change_job(
        session.jobs[name], verdict=Verdict.FINISHED, reason="reached", iteration=300,
        validations={"validation": (300, 2.0)},
    )  # fmt: skip
    (run,) = ends_of([session]).runs
    assert (run.name, run.tokens, run.loss) == (name, 300 * 256, 2.0)


def test_the_command_says_the_law_its_intervals_and_a_prediction(
    ladder: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "law.png"
    assert results.fit(["s1"], ["N=100K,D=1M"], str(picture), as_json=True) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["law"]["E"]["value"] == pytest.approx(1.7, abs=1e-3)
    (predicted,) = said["predictions"]
    assert (predicted["parameters"], predicted["tokens"]) == (1e5, 1e6)
    assert len(said["left_out"]) == 3
    assert picture.exists()
    assert results.fit(["s1"], None, None, as_json=False) == 0
    out = capsys.readouterr().out
    assert "L(N, D) = E + A/N^alpha + B/D^beta, validation loss, 9 cooldowns" in out
    assert "left out:" in out and "mix=code" in out


@pytest.mark.parametrize("text", ["N=1B", "N=x,D=1B", "1B,2B", "N=0,D=1B"])
def test_a_prediction_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="--predict"):
        results.fit(["s1"], [text])


def test_a_picture_of_another_kind_is_refused() -> None:
    with pytest.raises(BadInput, match=r"law.bmp: a picture ends in .png, .pdf, .svg"):
        results.fit(["s1"], None, "law.bmp")
