"""A checkpoint now: refused in words, told to the trainer once, and branched from once."""

from typing import Any

import pytest

from autoexp.backends.demo import DemoBackend
from autoexp.errors import BadInput, SessionError
from autoexp.jobs.record import JobRecord
from autoexp.monitor.decide import action_key, branches
from autoexp.operations.on_request import save
from autoexp.operations.on_request.branch import cooldown_of
from autoexp.operations.requests import process_requests
from autoexp.rules.actions import Launch, LaunchedCooldown, Save
from autoexp.rules.events import CheckpointComplete, SaveAsked
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.inbox import SaveRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Kind
from tests.builders import attempt_of, spec_of
from tests.core.story import Story, StoryOf, perform

REQUEST = SaveRequest(job="tiny", request="0123abcd", by="a test")
COOLDOWN = cooldown_of(["iterations=50"], "now")


@pytest.fixture
def story(story_of: StoryOf) -> Story:
    """A training that runs, saved at 100 and has come to 150."""
    story = story_of()
    story.log(100)
    story.save(100)
    story.log(150)
    story.look()
    return story


def saves(session: Session) -> list[ActionRecord]:
    return [action for action in session.actions.values() if action.rule == save.RULE]


def test_a_request_that_is_processed_twice_is_one_action_and_one_event(story: Story) -> None:
    for _ in range(2):  # as after a kill between its effect and the removal of its file
        enqueue(story.path, REQUEST)
        assert process_requests(story.session) == ["a test: asks tiny for a checkpoint"]
    (action,) = saves(story.session)
    assert isinstance(action.event, SaveAsked)
    assert (action.event.attempt, action.event.saved) == (1, 100)
    story.open()
    assert len(saves(story.session)) == 1
    told = save.telling(story.session, action.key)
    assert (told.job, told.restart, told.ref.job_id) == ("tiny", False, "id-" + told.ref.key)


def test_a_trainer_is_not_told_once_its_attempt_has_ended(story: Story) -> None:
    enqueue(story.path, REQUEST)
    process_requests(story.session)
    (action,) = saves(story.session)
    story.look(state="FAILED", exit_code=1)
    with pytest.raises(SessionError, match="attempt 1 has ended"):
        save.telling(story.session, action.key)


class _NeverSaves(DemoBackend):
    """A trainer that saves only at its interval."""

    @property
    def save_now(self) -> None:  # type: ignore[override]
        return None


@pytest.mark.parametrize(
    ("job", "asked", "why"),
    [
        ({"spec": {"kind": Kind.EVALUATE}}, {}, "trains nothing"),
        ({"attempt": {"first_logged": ()}}, {}, "has logged no iteration yet"),
        ({"attempt": {"name": "by-hand"}}, {}, "started by hand"),
        ({"cancel_requested": "somebody"}, {}, "is over, or ends right now"),
        ({"spec": {"backend": _NeverSaves()}}, {}, "demo has no way to save and go on.*--restart"),
        ({"spec": {"kind": Kind.COOLDOWN}}, {"cooldown": COOLDOWN}, "branches from a training"),
    ],
)
def test_what_cannot_save_now_is_refused_with_what_to_do(
    job: dict[str, Any], asked: dict[str, Any], why: str
) -> None:
    first = {"first_logged": (10, 20)} | job.pop("attempt", {})
    spec = spec_of("x", name="tiny", **job.pop("spec", {}))
    attempts = [attempt_of(state="RUNNING").model_copy(update=first)]
    with pytest.raises(BadInput, match=why):
        save.refuse(
            JobRecord(spec=spec, attempts=attempts, **job), REQUEST.model_copy(update=asked)
        )


def test_a_trainer_that_cannot_go_on_is_asked_with_restart() -> None:
    job = JobRecord(
        spec=spec_of("x", name="tiny", backend=_NeverSaves()),
        attempts=[attempt_of(state="RUNNING", first_logged=(10, 20))],
    )
    save.refuse(job, REQUEST.model_copy(update={"restart": True}))


def test_a_job_that_waits_in_the_queue_is_refused(story: Story) -> None:
    enqueue(story.path, REQUEST.model_copy(update={"job": "tiny-cd100"}))
    (note,) = process_requests(story.session)
    assert "request refused" in note and "does not run" in note


# Branches


def complete(iteration: int, job: str = "tiny") -> CheckpointComplete:
    return CheckpointComplete(job=job, iteration=iteration, path=f"/c/{iteration}")


def asked(status: ActionStatus = ActionStatus.DONE, **changes: Any) -> ActionRecord:
    event = SaveAsked(job="tiny", attempt=1, request="0123abcd", saved=100, by="a test")
    action = Save(**{"cooldown": COOLDOWN, **changes})
    key = action_key(save.RULE, event.key, 0)
    return ActionRecord(key=key, rule=save.RULE, event=event, action=action, status=status)


@pytest.mark.parametrize(
    ("event", "action", "branches_there"),
    [
        (complete(157), asked(), True),
        (complete(157), asked(ActionStatus.RUNNING), True),  # before its end is written
        (complete(100), asked(), False),
        (complete(157, "other"), asked(), False),
        (complete(157), asked(cooldown=None), False),
        (complete(157), asked(ActionStatus.FAILED), False),
    ],
)
def test_the_first_checkpoint_after_the_request_is_branched_from(
    event: CheckpointComplete, action: ActionRecord, branches_there: bool
) -> None:
    found = branches(event, [action])
    assert [record.action for record in found] == [Launch(cooldown=COOLDOWN)] * branches_there
    if branches_there:  # and no later one
        assert branches(complete(200), [action], {record.key for record in found}) == []


def test_a_cooldown_starts_from_the_checkpoint_that_was_asked_for(story: Story) -> None:
    enqueue(story.path, REQUEST.model_copy(update={"cooldown": COOLDOWN}))
    process_requests(story.session)
    story.save(157)
    story.look()
    for action in list(story.session.pending_actions()):
        if action.rule == "branch":
            perform(story, action)
    job = story.session.jobs["tiny-cd157-now"].spec
    assert job.branch is not None
    assert (job.parent, job.branch.iteration, job.target_iteration) == ("tiny", 157, 207)
    story.look()
    starts = story.session.actions.starts_of("tiny-cd157-now")
    assert [action.event.key for action in starts] == ["checkpoint/tiny/157"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["fraction"], "KEY=VALUE"),
        (["fractoin=0.1"], "fractoin"),
        (["fraction=2"], "fraction"),
    ],
)
def test_a_decay_that_cannot_be_is_one_message(words: list[str], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        cooldown_of(words, "now")


def test_a_decay_is_read_as_yaml_reads_it() -> None:
    found = cooldown_of(["fraction=0.1", "shape=linear", "min_lr=1.0e-5"], "now")
    assert found == LaunchedCooldown.model_validate(
        {"decay": {"fraction": 0.1, "shape": "linear", "min_lr": 1e-5}, "name": "now"}
    )
