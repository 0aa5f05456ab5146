"""A checkpoint that nothing needs is deleted once, whatever is killed, and nothing else ever is."""

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.jobs.spec import JobSpec
from autoexp.operations import requests
from autoexp.planning.study import plan_study
from autoexp.reports.tables import disk_line
from autoexp.retention.policy import KeepRule
from autoexp.rules.actions import Delete, Measure
from autoexp.rules.events import CheckpointDeleted, DiskBudgetPassed
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.checkpoint_uses import checkpoints_of
from autoexp.session.inbox import ActionRequest, Request, RetryRequest, SubmitRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import TINY, create, spec_of
from tests.core.story import Story, perform
from tests.killing import KilledAt

LAST = "retention={keep: [{last: 1}]}"


def story_with(tmp_path: Path, *overrides: str) -> Story:
    """A trunk of 1,000 iterations that runs, with a session's retention."""
    words = (*TINY, "backend.args.train_iters=1000", *(overrides or (LAST,)))
    story = Story(create(compose("demo", words), tmp_path, session_id="s1"))
    story.submit()
    story.look(state="RUNNING")
    return story


def act(story: Story, kind: type = object) -> None:
    """Carry out what is pending, in order, and look until nothing follows."""
    for _ in range(10):
        for action in story.session.pending_actions():
            if isinstance(action.action, kind):
                perform(story, action)
        story.look()


def deletions(session: Session) -> dict[int, ActionRecord]:
    return {
        action.event.iteration: action  # type: ignore[union-attr]
        for action in session.actions.values()
        if isinstance(action.action, Delete)
    }


def events(session: Session, kind: type) -> list[Any]:
    return [entry.event for entry in session.journal.entries if isinstance(entry.event, kind)]


def saves(story: Story, *iterations: int, name: str = "tiny") -> None:
    for iteration in iterations:
        story.save(iteration, name=name)
        story.look()


def test_nothing_is_deleted_or_measured_unless_it_is_written(tmp_path: Path) -> None:
    story = story_with(tmp_path, "retention=null")
    saves(story, 100, 200, 300)
    act(story)
    kinds = {type(action.action) for action in story.session.actions.values()}
    assert not kinds & {Delete, Measure}
    assert story.job().there_before is None


def test_a_branch_point_goes_once_the_branch_has_its_own_copy(tmp_path: Path) -> None:
    story = story_with(tmp_path)
    saves(story, 100, 200)
    assert deletions(story.session) == {}
    (first, _) = checkpoints_of(story.session)
    assert first.why == "tiny-cd100 starts from it; rule start-tiny-cd100 acts on it"
    assert first.until == "tiny-cd100 has its own copy and it is done"
    saves(story, 300)
    act(story)
    assert [path.name for path in Path(story.job().spec.save_dir).glob("iter_*")] == [
        "iter_0000300"
    ]
    seed = Path(story.job("tiny-cd100").spec.save_dir) / "iter_0000100"
    assert (seed / ".metadata").exists()
    assert {d.iteration for d in events(story.session, CheckpointDeleted)} == {100, 200}
    assert story.job().checkpoints == [300] and story.job().deleted == [100, 200]


def test_deleting_is_done_once_and_to_its_end_wherever_the_monitor_is_killed(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    first = story_with(tmp_path / "first")
    saves(first, 100, 200, 300)
    act(first, Measure)
    while not deletions(first.session):
        perform(first, first.session.pending_actions()[0])
        first.look()
    assert list(deletions(first.session)) == [100]
    kept = tmp_path / "kept"
    first.path.rename(kept)
    for n in range(1, 100):
        shutil.rmtree(first.path, ignore_errors=True)
        shutil.copytree(kept, first.path, symlinks=True)

        def go_on() -> None:
            story = Story(first.path)
            perform(story, deletions(story.session)[100])

        was_killed = killed_at(n, go_on)
        story = Story(first.path)
        story.look()
        act(story)
        session = Session.load(first.path)
        assert len([d for d in events(session, CheckpointDeleted) if d.iteration == 100]) == 1
        assert deletions(session)[100].status is ActionStatus.DONE
        assert 100 not in session.jobs["tiny"].checkpoints
        left = sorted(path.name for path in Path(session.jobs["tiny"].spec.save_dir).iterdir())
        assert left == ["iter_0000300", "latest_checkpointed_iteration.txt"]
        if not was_killed:
            assert n > 8
            return
    raise AssertionError("it never came to its end")


def test_a_branch_that_is_asked_for_meanwhile_keeps_its_start(tmp_path: Path) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100, 200, 300)
    assert set(deletions(story.session)) == {100, 200}
    asked = spec_of("true", str(story.folder(100)), name="late", directory=tmp_path / "late")
    enqueue(story.path, SubmitRequest(jobs=(asked,), by="ann"))
    act(story, Delete)
    assert story.folder(100).is_dir() and not story.folder(200).exists()
    action = deletions(story.session)[100]
    assert action.status is ActionStatus.FAILED
    assert str(action.reason).startswith("kept: late reads it")
    requests.process_requests(story.session)
    story.session.settle(story.job("late"), Verdict.FINISHED, "exit code 0")
    saves(story, 400)
    act(story, Delete)
    assert not story.folder(100).exists()


def cooldown_at_100(tmp_path: Path) -> JobSpec:
    """A cooldown of a training as the stories have it, from iteration 100; it is in no session."""
    planned = create(compose("demo", TINY), tmp_path / "other", session_id="s2")
    return Session.load(planned).jobs["tiny-cd100"].spec


TRUNK_ENDS = {"job": "tiny"}
TRUNK_AT_100 = {"job": "tiny", "checkpoint": 100}
WAITS: dict[str, dict[str, Any]] = {
    "after": {"awaits": (TRUNK_AT_100, TRUNK_ENDS)},
    "in its command": {
        "awaits": (TRUNK_ENDS,),
        "draft": {
            "command": ["convert", "{sibling.stable.checkpoint_path}"],
            "values": {},
            "late": {"stable": TRUNK_AT_100},
        },
    },
}


def stage(how: str) -> JobSpec:
    """A stage that needs checkpoint 100 of the trunk and its end, and names no path of either."""
    fields = spec_of("convert", name="stage", kind=Kind.COMMAND).model_dump()
    return JobSpec.model_validate({**fields, **WAITS[how]})


@pytest.mark.parametrize("how", WAITS)
def test_a_stage_that_waits_for_more_keeps_the_checkpoint_that_it_waits_for(
    tmp_path: Path, how: str
) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    story.session.add_job(stage(how))
    saves(story, 100, 200, 300)
    act(story, Delete)
    assert [story.folder(at).is_dir() for at in (100, 200, 300)] == [True, False, True]
    story.session.settle(story.job("stage"), Verdict.FINISHED, "exit code 0")
    saves(story, 400)
    act(story, Delete)
    assert not story.folder(100).exists()


def keeps_100(story: Story, request: Request) -> bool:
    """Whether a checkpoint whose deletion is decided stays, for a request that comes meanwhile."""
    assert {100, 200} <= set(deletions(story.session))
    enqueue(story.path, request)
    act(story, Delete)
    assert not story.folder(200).exists()
    return story.folder(100).is_dir()


@pytest.mark.parametrize("what", ["cooldown", *WAITS])
def test_what_a_request_in_the_inbox_is_to_start_from_stays(tmp_path: Path, what: str) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100, 200, 300)
    asked = cooldown_at_100(tmp_path) if what == "cooldown" else stage(what)
    assert keeps_100(story, SubmitRequest(jobs=(asked,), by="ann"))
    assert str(deletions(story.session)[100].reason) == f"kept: {asked.name} was asked for"


@pytest.mark.parametrize("what", ["reads", "cooldown", *WAITS])
@pytest.mark.parametrize("ended", ["cancelled", "cancelled, all are retried", "finished"])
def test_what_a_request_to_retry_a_job_that_needs_nothing_more_asks_for_stays(
    tmp_path: Path, what: str, ended: str
) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100, 200, 300)
    if what == "reads":
        spec: JobSpec = spec_of(f"--load={story.folder(100)}", name="e", kind=Kind.COMMAND)
    else:
        spec = cooldown_at_100(tmp_path) if what == "cooldown" else stage(what)
    story.session.add_job(spec)
    if ended == "finished":
        story.session.settle(story.job(spec.name), Verdict.FINISHED, "exit code 0")
    else:
        story.session.change_job(story.job(spec.name), cancel_requested="ann")
        story.session.settle(story.job(spec.name), Verdict.FAILED, "cancelled by ann")
    names = () if ended.endswith("all are retried") else (spec.name,)
    assert keeps_100(story, RetryRequest(jobs=names, by="ann"))


def test_what_a_dropped_action_is_about_stays_if_a_request_asks_for_it_again(
    tmp_path: Path,
) -> None:
    ship = "{ship: {at: [100], actions: [{run_command: {run: [ship, '{checkpoint_path}']}}]}}"
    story = story_with(tmp_path, LAST, "cooldowns=[]", f"monitoring.checkpoint_events={ship}")
    saves(story, 100)
    (shipped,) = [key for key, a in story.session.actions.items() if a.rule == "ship"]
    enqueue(story.path, ActionRequest(key=shipped, verb="drop", by="ann"))
    requests.process_requests(story.session)
    saves(story, 200, 300)
    assert keeps_100(story, ActionRequest(key=shipped, verb="retry", by="ann"))
    assert str(deletions(story.session)[100].reason) == "kept: rule ship acts on it"


def test_a_branch_from_a_deleted_checkpoint_fails_at_once_with_the_reason(tmp_path: Path) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100, 200, 300)
    act(story)
    late = cooldown_at_100(tmp_path)
    requests.add_jobs(story.session, SubmitRequest(jobs=(late,), by="ann"))
    for _ in range(2):
        story.look(state="RUNNING")
    assert story.job("tiny-cd100").reason == (
        "never started: checkpoint 100 of tiny was deleted by `retention`"
    )


def test_what_was_there_before_the_first_attempt_is_never_deleted(tmp_path: Path) -> None:
    words = (*TINY, "backend.args.train_iters=1000", LAST, "cooldowns=[]")
    story = Story(create(compose("demo", words), tmp_path, session_id="s1"))
    story.save(50)
    story.submit()
    story.look(state="RUNNING")
    saves(story, 100, 200, 300)
    act(story)
    assert [story.folder(at).exists() for at in (50, 100, 200, 300)] == [True, False, False, True]
    (first, _) = checkpoints_of(story.session)
    assert (first.checkpoint.iteration, first.why, first.until) == (
        50,
        "was there before the job",
        None,
    )


def test_a_job_of_an_older_session_or_an_adopted_one_loses_nothing(tmp_path: Path) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    story.session.change_job(story.job(), there_before=None)
    saves(story, 100, 200, 300)
    act(story)
    assert [story.folder(at).is_dir() for at in (100, 200, 300)] == [True, True, True]


def test_a_dry_run_deletes_nothing_and_shows_what_would_be(tmp_path: Path) -> None:
    story = story_with(tmp_path, "retention={keep: [{last: 1}], dry_run: true}", "cooldowns=[]")
    saves(story, 100, 200)
    act(story)
    assert story.folder(100).is_dir() and deletions(story.session) == {}
    found = checkpoints_of(story.session)
    assert [(s.checkpoint.iteration, s.goes) for s in found] == [(100, True), (200, False)]


def test_what_somebody_drops_stays(tmp_path: Path) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100, 200)
    (action,) = deletions(story.session).values()
    enqueue(story.path, ActionRequest(key=action.key, verb="drop", by="ann"))
    requests.process_requests(story.session)
    saves(story, 300, 400)
    act(story)
    assert story.folder(100).is_dir() and not story.folder(200).exists()


def test_a_folder_that_is_a_link_is_not_deleted(tmp_path: Path) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100, 200)
    folder, elsewhere = story.folder(100), tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)
    act(story)
    assert (elsewhere / ".metadata").exists()
    assert "is not a checkpoint of tiny" in str(deletions(story.session)[100].reason)


def test_a_roll_back_has_what_it_goes_back_to(tmp_path: Path) -> None:
    rule = "{r: {substring: it is wrong, actions: [{restart: {roll_back: true}}]}}"
    story = story_with(tmp_path, LAST, "cooldowns=[]", f"monitoring.log_events={rule}")
    saves(story, 100, 200, 300, 400)
    act(story)
    assert story.job().checkpoints == [300, 400]


def test_above_the_budget_there_is_one_warning_and_no_deletion(tmp_path: Path) -> None:
    words = "retention={keep: [{every: 100}], budget: 50}"
    story = story_with(tmp_path, words, "cooldowns=[]")
    for iteration in (100, 200, 300):
        story.save(iteration)
        (story.folder(iteration) / "data").write_bytes(b"x" * 30)
        story.look()
        act(story)
    (passed,) = events(story.session, DiskBudgetPassed)
    assert passed.budget == 50 and passed.bytes > 50
    assert "`every: 100`" in passed.message
    assert [story.folder(at).is_dir() for at in (100, 200, 300)] == [True] * 3


@pytest.mark.parametrize("kind", [Kind.EVALUATE, Kind.COMMAND])
def test_an_evaluation_keeps_its_checkpoint_until_it_has_finished(
    tmp_path: Path, kind: Kind
) -> None:
    story = story_with(tmp_path, LAST, "cooldowns=[]")
    saves(story, 100)
    reads: JobSpec = spec_of("eval", f"--load={story.folder(100)}/model", name="e", kind=kind)
    story.session.add_job(reads)
    saves(story, 200, 300)
    act(story, Delete)
    assert [story.folder(at).is_dir() for at in (100, 200, 300)] == [True, False, True]
    for verdict, is_there in ((Verdict.FAILED, True), (Verdict.FINISHED, False)):
        story.session.settle(story.job("e"), verdict, "so")
        saves(story, 400 if is_there else 500)
        act(story, Delete)
        assert story.folder(100).is_dir() == is_there


def test_a_rule_of_what_stays_says_what_it_may_be() -> None:
    assert str(KeepRule.model_validate("branch_points")) == "branch_points"
    assert str(KeepRule.model_validate({"last": 3})) == "last: 3"
    for wrong in ("branches", {}, {"last": 3, "every": 5}, {"last": 0}):
        with pytest.raises(ValueError, match=r"branch_points|one rule|greater than 0"):
            KeepRule.model_validate(wrong)


def test_a_plan_says_what_its_checkpoints_take_at_most_and_when() -> None:
    words = ("retention={keep: [{last: 1}], checkpoint_size: 1TB, budget: 2TB}",)
    plan = plan_study(
        compose("demo", (*TINY, *words, "budget.seconds_per_iteration=864")), Path("/out")
    )
    assert plan.disk is not None
    line = disk_line(plan.disk, datetime(2026, 3, 1))
    # Of the trunk's three checkpoints each is one that stays, moves or is moved; a cooldown has
    # one, and the starts of both are links.
    assert (plan.disk.checkpoints, plan.disk.waiting) == (7, 0)
    assert line.startswith(
        "disk: at most 7 TB of 2 TB on 4 March, if nothing queues: 7 checkpoints"
    )
    assert line.endswith("ABOVE retention.budget")
    none = plan_study(compose("demo", TINY), Path("/out"))
    assert none.disk is None
