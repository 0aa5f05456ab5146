"""A checkpoint now, and a cooldown from it, asked of a monitor that watches."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.errors import BadInput
from autoexp.flows.branch import branch
from autoexp.rules.actions import Decay
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.commands import autoexp, interrupt, start_monitor
from tests.flows.sessions import Make
from tests.patience import until

pytestmark = pytest.mark.prefect


@pytest.fixture
def path(make_session: Make) -> Iterator[Path]:
    """A training that runs, with a checkpoint every 1,000 iterations, and its monitor."""
    path = make_session(
        "cooldowns=[]",
        "backend.args.train_iters=100000",
        "backend.args.save_interval=1000",
        "backend.args.sleep_per_iteration_ms=20",
        "monitoring.save_progress_every_s=0",
    )
    monitor = start_monitor(path)
    until(lambda: has_logged(path), "an iteration is logged")
    yield path
    interrupt(monitor)


def has_logged(path: Path) -> bool:
    attempt = Session.load(path).jobs["demo"].attempt
    return attempt is not None and bool(attempt.first_logged)


def off_the_grid(path: Path) -> list[int]:
    return [at for at in Session.load(path).jobs["demo"].checkpoints if at % 1000]


def of_rule(path: Path, rule: str) -> list[ActionRecord]:
    return [action for action in Session.load(path).actions.values() if action.rule == rule]


def test_a_running_training_saves_now_goes_on_and_is_branched_from(path: Path) -> None:
    answer = autoexp("save", path.name, root=path.parent)
    assert answer.returncode == 0, answer.stderr
    (first,) = until(lambda: off_the_grid(path), "a checkpoint that was asked for")
    (action,) = of_rule(path, "save")
    assert action.status is ActionStatus.DONE and "signalled process" in (action.result or "")

    words = ("--now", "--decay", "iterations=20", "--decay", "shape=linear")
    answer = autoexp("branch", path.name, *words, root=path.parent)
    assert answer.returncode == 0, answer.stderr
    until(lambda: len(off_the_grid(path)) == 2, "a second checkpoint that was asked for")
    second = off_the_grid(path)[-1]
    name = f"demo-cd{second}-now"
    until(lambda: name in Session.load(path).jobs, "the cooldown is a job")
    until(lambda: Session.load(path).jobs[name].is_over, "the cooldown has ended")

    session = Session.load(path)
    cooldown, training = session.jobs[name], session.jobs["demo"]
    assert (cooldown.verdict, cooldown.spec.target_iteration) == (Verdict.FINISHED, second + 20)
    assert len(training.attempts) == 1 and training.verdict is None
    assert first < second < (training.iteration or 0)
    assert len(of_rule(path, "branch")) == 1


def test_with_restart_it_saves_ends_and_goes_on_in_a_new_attempt(path: Path) -> None:
    answer = autoexp("save", path.name, "--restart", root=path.parent)
    assert answer.returncode == 0, answer.stderr
    until(lambda: len(Session.load(path).jobs["demo"].attempts) == 2, "a second attempt")
    until(lambda: off_the_grid(path), "its checkpoint")
    job = Session.load(path).jobs["demo"]
    assert (job.attempts[0].warned, job.attempts[0].verdict) == (True, Verdict.CONTINUE)
    until(lambda: has_logged(path), "the second attempt logs")
    assert Session.load(path).jobs["demo"].attempts[1].started_from == off_the_grid(path)[0]


async def test_the_deployment_asks_for_the_same(path: Path) -> None:
    state = await branch(session=path.name, decay=Decay(iterations=20), return_state=True)
    assert state.type.value == "COMPLETED" and "a cooldown to start from it" in str(state.message)
    until(lambda: of_rule(path, "branch"), "the branch is decided")
    with pytest.raises(BadInput, match="exactly one of"):
        await branch(session=path.name, decay=Decay())


def test_what_cannot_be_is_said_at_once_and_nothing_is_asked(path: Path) -> None:
    for words, why in (
        (("branch", path.name, "--decay", "fraction=0.1"), "`--now` saves a checkpoint"),
        (("branch", path.name, "--now"), "exactly one of"),
        (("save", path.name, "demo-cd7"), "demo-cd7"),
    ):
        answer = autoexp(*words, root=path.parent)
        assert answer.returncode and why in answer.stderr, answer.stderr
    assert not list((path / "inbox").iterdir())
