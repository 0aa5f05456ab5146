"""Whatever a step of a look raises ends nobody else, and what it held up is seen later."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoexp.errors import SessionHeld
from autoexp.jobs import verdicts
from autoexp.monitor import monitor, recorder, worklist
from autoexp.monitor.decide import RuleBook
from autoexp.monitor.job_watch import JobWatch
from autoexp.monitor.steps import Submit
from autoexp.rules.events import CheckpointComplete
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.core.story import Story, launches

STEPS: dict[str, tuple[object, str]] = {
    "a state is taken in": (monitor, "apply"),
    "a log is read": (JobWatch, "read_log"),
    "checkpoints are looked for": (JobWatch, "find_checkpoints"),
    "an end is judged": (verdicts, "judge"),
    "scores are read": (verdicts, "with_scores"),
    "an exception is read": (verdicts, "with_exception"),
    "the session as a whole is looked at": (monitor, "overview"),
    "what waits for others is looked at": (monitor, "ready"),
    "rules are learnt": (RuleBook, "__init__"),
    "rules are looked up": (RuleBook, "of"),
    "rules are asked": (recorder, "decide"),
    "an action is written": (Session, "save_action"),
    "an event is written": (Session, "record"),
    "metrics are written": (Session, "log_progress"),
    "a record is written": (Session, "save_job"),
    "who cannot start is looked for": (monitor, "unsatisfiable_reason"),
}


def raising(*arguments: Any, **named: Any) -> None:
    raise RuntimeError("out of the blue")


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_a_look_that_raises_loses_nothing(
    session_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(session_path)
    story.submit()
    with monkeypatch.context() as patch:
        patch.setattr(*STEPS[step], raising)
        story.log(90)
        story.save(100)
        for _ in range(2):
            story.look(state="RUNNING")
    story.look(state="RUNNING")
    story.log(300)
    story.save(200)
    story.save(300)
    story.look(state="COMPLETED", exit_code=0)
    story.look()
    assert story.on_disk == ([100, 200, 300], ["tiny-cd100", "tiny-cd200"])
    record = Session.load(session_path).jobs["tiny"]
    assert (record.verdict, record.iteration) == ("finished", 300)


def failing_for(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """The real function, that raises for one job."""

    def called(watch: JobWatch, job: Any, *arguments: Any, **named: Any) -> Any:
        if job.spec.name == name:
            raise RuntimeError("out of the blue")
        return real(watch, job, *arguments, **named)

    return called


@pytest.mark.parametrize("step", ["read_log", "find_checkpoints"])
def test_a_job_whose_look_raises_is_its_own_warning_and_the_others_are_looked_at(
    session_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(session_path)
    story.session.change_job(story.job("tiny-cd100"), launched=True)
    for name in ("tiny", "tiny-cd100"):
        story.submit(name)
    monkeypatch.setattr(JobWatch, step, failing_for("tiny", getattr(JobWatch, step)))
    story.save(100)
    story.save(130, name="tiny-cd100")
    first, second = story.look(), story.look()
    assert [e.job for e in first.events if isinstance(e, CheckpointComplete)] == ["tiny-cd100"]
    assert "out of the blue" in str(story.job().warning)
    assert story.job("tiny-cd100").warning is None
    # Said once, however often it happens.
    assert (len(first.warnings), second.warnings) == (1, ())


def test_an_event_that_cannot_be_written_keeps_no_other_from_the_journal(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(session_path)
    story.submit()
    record = Session.record

    def picky(session: Session, events: Any) -> Any:
        events = list(events)
        if any(isinstance(e, CheckpointComplete) and e.iteration == 100 for e in events):
            raise ValueError("cannot be written as JSON")
        return record(session, events)

    monkeypatch.setattr(Session, "record", picky)
    story.save(100)
    story.save(200)
    look = story.look(state="RUNNING")
    assert sorted(launches(look)) == ["tiny-cd100", "tiny-cd200"]
    assert [e.key for e in look.events] == ["state/tiny/a1/1/RUNNING", "checkpoint/tiny/200"]
    assert "checkpoint/tiny/100: cannot be recorded" in look.warnings[0]


def test_a_lease_that_is_lost_is_contained_by_nobody(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def held(*arguments: Any) -> None:
        raise SessionHeld("another one has it")

    story = Story(session_path)
    story.submit()
    story.save(100)
    monkeypatch.setattr(Session, "save_action", held)
    with pytest.raises(SessionHeld):
        story.look(state="RUNNING")


def test_a_step_that_cannot_be_chosen_for_one_job_is_chosen_for_the_others(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story(session_path)
    for name in ("tiny-cd100", "tiny-cd200"):
        story.session.change_job(story.job(name), launched=True)
    choose = worklist.next_step

    def picky(job: Any, asked: Any) -> Any:
        if job.spec.name == "tiny-cd100":
            raise RuntimeError("out of the blue")
        return choose(job, asked)

    monkeypatch.setattr(worklist, "next_step", picky)
    steps = story.monitor.worklist.next_work().steps
    assert steps == [Submit(("tiny",)), Submit(("tiny-cd200",))]
    assert "out of the blue" in str(story.job("tiny-cd100").warning)


def test_a_failure_is_forgotten_once_nothing_asks_for_what_failed(session_path: Path) -> None:
    story = Story(session_path)
    (step,) = story.monitor.worklist.next_work().steps
    assert story.monitor.worklist.fail_step(step, "out of the blue") == 1
    story.session.settle(story.job(), Verdict.FAILED, "somebody said so")
    assert story.monitor.worklist.next_work().steps == []
    assert story.monitor.worklist._failures == {}
