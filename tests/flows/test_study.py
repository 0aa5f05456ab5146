"""A study in one session: points of a sweep, stages behind them, scores in the table."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.flows.train import train
from autoexp.reports.results import rows
from autoexp.session.inbox import RetryRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import create
from tests.flows.runs import arrows, materialized
from tests.flows.sessions import SMALL, Make

pytestmark = pytest.mark.prefect

FAILS = "study-fail_at_iteration120"
GOOD = "study-fail_at_iterationnone"


async def test_train_convert_evaluate_gives_a_score_and_a_failed_training_cancels_the_rest(
    make_session: Make, tmp_path: Path
) -> None:
    del make_session  # it cancels what a failing test leaves running
    overrides = [
        *SMALL,
        "backend.args.fail_at_iteration=null,120",
        "cooldowns=[{at: [200], decay: {iterations: 50}}]",
    ]
    # A stage of the whole point, beside those of each cooldown that the example has.
    awkward = "$(touch x) `touch x`; touch x {{}}"
    keep = 'cp "$1" . && printf %s "$2" >said'
    checkpoint = "{sibling.cd200.checkpoint_path}/metadata.json"
    last = {"command": ["sh", "-c", keep, "sh", checkpoint, awkward]}
    composed = compose("study", overrides, setting({"stages.keep": last}))
    path = create(composed, tmp_path / "sessions")

    running = asyncio.create_task(train(session=path.name, return_state=True))
    await asyncio.to_thread(wait, lambda: verdict(path, f"{FAILS}-cd200-evaluate"))
    # Somebody has it run again meanwhile: it goes on from its checkpoint, and fails again.
    enqueue(path, RetryRequest(jobs=(FAILS,), by="ann"))
    state = await running

    session = Session.load(path)
    assert state.is_failed()
    ended = {name: job.verdict for name, job in session.jobs.items()}
    assert ended == {
        name: Verdict.FAILED if name.startswith(FAILS) else Verdict.FINISHED
        for name in session.jobs
    }
    assert len(session.jobs) == 10
    failed = session.jobs[FAILS]
    assert [attempt.first_iteration for attempt in failed.attempts] == [0, 100]
    cancelled = session.jobs[f"{FAILS}-cd200-evaluate"]
    assert cancelled.attempts == []
    assert cancelled.reason is not None
    assert cancelled.reason.startswith(f"cancelled: {FAILS}-cd200 failed (never started: {FAILS}")

    table = {row["job"]: row for row in rows([session])}
    score = table[f"{GOOD}-cd200-evaluate"]["score.held_out_loss"]
    assert 1.5 < score < 3.0
    final = table[f"{GOOD}-cd200"]["final_loss"]
    assert score == pytest.approx(final, abs=0.3)
    convert = session.jobs[f"{GOOD}-cd200-convert"]
    assert convert.spec.command[-2].endswith(f"{GOOD}-cd200/checkpoints/iter_0000250")
    kept = path / "output" / f"{GOOD}-keep"
    assert sorted(file.name for file in kept.glob("[a-z]*")) == ["metadata.json", "said"]
    assert (kept / "said").read_text() == "$(touch x) `touch x`; touch x {}"
    expected = {
        ("checkpoint 200", f"{GOOD} @200"),
        (f"{GOOD} @200", f"{GOOD}-cd200-convert"),
        (f"{GOOD}-cd200-convert", f"{GOOD}-cd200-evaluate"),
    }
    assert await arrows(session, expected) >= expected
    of = f"autoexp://{path.name}/"
    assets = await materialized(session, f"{of}{GOOD}-cd200-evaluate/scores")
    checkpoint, cooled = f"{of}{GOOD}/checkpoints/200", f"{of}{GOOD}-cd200/model"
    assert assets[checkpoint] == ("succeeded", set())
    assert assets[cooled] == ("succeeded", {checkpoint})
    assert assets[f"{of}{GOOD}-cd200-convert/output"] == ("succeeded", {cooled})
    assert assets[f"{of}{FAILS}/model"] == ("failed", set())


async def test_a_training_behind_a_cooldown_is_watched_and_branched_from_like_the_first(
    make_session: Make, tmp_path: Path
) -> None:
    del make_session  # it cancels what a failing test leaves running
    composed = compose(
        "finetune",
        [*SMALL, "cooldowns=[{at: [100], decay: {iterations: 50}}]", "stages.evaluate=null"],
        setting(
            {
                "stages.tune.train": {
                    "backend.args.pretrained_checkpoint": "{sibling.cooldown.checkpoint_path}",
                    "backend.args.train_iters": 100,
                    "cooldowns": [{"at": [50, 100], "decay": {"iterations": 30}}],
                }
            }
        ),
    )
    path = create(composed, tmp_path / "sessions")
    assert (await train(session=path.name, return_state=True)).is_completed()

    session = Session.load(path)
    ended = {name: (job.verdict, job.iteration) for name, job in session.jobs.items()}
    assert ended == {
        "finetune": (Verdict.FINISHED, 300),
        "finetune-cd100": (Verdict.FINISHED, 150),
        "finetune-cd100-tune": (Verdict.FINISHED, 100),
        "finetune-cd100-tune-cd50": (Verdict.FINISHED, 80),
        "finetune-cd100-tune-cd100": (Verdict.FINISHED, 130),
    }
    log = path / "attempts" / session.meta.key("finetune-cd100-tune", 1) / "job.log"
    begun = path / "output" / "finetune-cd100" / "checkpoints" / "iter_0000150"
    assert f"loaded pretrained weights from {begun}, at iteration 0" in log.read_text()
    expected = {
        ("finetune @100", "finetune-cd100-tune"),
        ("checkpoint 50", "finetune-cd100-tune @50"),
    }
    assert await arrows(session, expected) >= expected


def verdict(path: Path, name: str) -> Verdict | None:
    return Session.load(path).jobs[name].verdict


def wait(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
