"""The monitor: each checkpoint leads to its actions once, whatever is torn or killed."""

import errno
import itertools
import os
from pathlib import Path

import pytest

from autoexp.backends.megatron.formats import TRACKER
from autoexp.backends.protocol import CheckpointScan, FoundCheckpoint
from autoexp.config.compose import Composed
from autoexp.logs.tail import LIMIT
from autoexp.monitor.monitor import Look
from autoexp.operations import actions
from autoexp.reports.status import status_of
from autoexp.rules.events import CheckpointComplete, JobGivenUp, ProgressMissing
from autoexp.schedulers.base import JobStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import create
from tests.core.story import Story, launches, of, say
from tests.killing import KilledAt


@pytest.fixture
def story(session_path: Path) -> Story:
    """The trunk runs, and nothing has been logged or saved yet."""
    story = Story(session_path)
    story.submit()
    story.look(state="RUNNING")
    return story


# Checkpoints


def test_a_complete_checkpoint_launches_its_cooldown_once(story: Story) -> None:
    path = story.save(100)
    look = story.look()
    assert look.events == [CheckpointComplete(job="tiny", iteration=100, path=str(path))]
    assert launches(look) == ["tiny-cd100"]
    assert story.look() == Look([], [], set())
    assert story.on_disk == ([100], ["tiny-cd100"])


def test_two_checkpoints_in_one_look_give_two_actions(story: Story) -> None:
    story.save(100)
    story.save(200)
    assert launches(story.look()) == ["tiny-cd100", "tiny-cd200"]
    assert launches(story.look()) == []


@pytest.mark.parametrize(
    ("file", "torn", "whole"),
    [
        ("iter_0000100/metadata.json", None, "{}"),
        ("iter_0000100/metadata.json", '{"iterat', "{}"),
        (TRACKER, None, "100"),
        (TRACKER, "", "100"),
        (TRACKER, "50", "100"),
    ],
)
@pytest.mark.parametrize("long_ago", [False, True])
def test_a_checkpoint_launches_nothing_until_it_is_complete(
    story: Story, file: str, torn: str | None, whole: str, long_ago: bool
) -> None:
    folder = story.save(100).parent
    (folder / file).unlink()
    if torn is not None:
        (folder / file).write_text(torn)
    # One that has been empty for long was cut by a crash: see test_trackers.py.
    if long_ago and torn != "" and (folder / TRACKER).exists():
        # An NFS client may see the files in another order, and the last one late.
        os.utime(folder / TRACKER, (0, 0))
    assert story.look().events == story.look().events == []
    (folder / file).write_text(whole)
    assert launches(story.look()) == ["tiny-cd100"]


def test_what_a_restarted_trainer_logs_again_is_no_news(story: Story) -> None:
    story.save(100)
    story.log(120)
    story.look()
    story.look(state="NODE_FAIL")
    story.submit()
    story.look(state="RUNNING")
    story.log(110)
    story.track("100")
    (story.folder(100) / "metadata.json").write_text('{"again": 1}')
    assert [story.look().events, story.open().look().events] == [[], []]
    assert story.job().iteration == 110
    assert story.on_disk == ([100], ["tiny-cd100"])


def test_a_restarted_monitor_sees_nothing_twice(story: Story) -> None:
    story.save(100)
    story.log(100)
    story.look()
    rows = (story.path / "metrics" / "tiny.csv").read_text()
    again = story.open()
    assert again.look() == Look([], [], set())
    assert (story.path / "metrics" / "tiny.csv").read_text() == rows
    assert again.job().loss == pytest.approx(2.9)


# Ends


def test_the_last_lines_of_a_job_that_has_ended_are_read(story: Story) -> None:
    story.log(290)
    story.look()
    story.log(300, end="")
    story.save(300)
    look = story.look(state="COMPLETED", exit_code=0)
    kinds = [event.kind for event in look.events[:3]]
    assert kinds == ["state_changed", "checkpoint_complete", "attempt_judged"]
    assert (story.job().iteration, story.job().verdict) == (300, Verdict.FINISHED)


def test_a_last_checkpoint_is_launched_from_before_its_parent_counts_as_ended(
    story: Story,
) -> None:
    story.save(100)
    story.save(200)
    look = story.look(state="FAILED", exit_code=1)
    assert launches(look) == ["tiny-cd100", "tiny-cd200"]
    assert of(look, JobGivenUp) == []


def test_a_checkpoint_of_a_training_that_has_logged_no_iteration_says_so_in_its_status(
    story: Story,
) -> None:
    say(story, "setting: 1")
    assert of(story.look(), ProgressMissing) == []
    story.save(100)
    (event,) = of(story.look(), ProgressMissing)
    assert (event.lines, event.last_line) == (1, "setting: 1")
    assert (status_of(story.session).jobs[0].warning or "").startswith("no iteration is read")
    assert of(story.open().look(), ProgressMissing) == []
    story.log(110)
    story.look()
    assert status_of(story.session).jobs[0].warning is None


def test_cooldowns_whose_checkpoint_never_came_are_given_up_with_the_reason(story: Story) -> None:
    story.save(100)
    look = story.look(state="FAILED", exit_code=1)
    reason = "never started: tiny failed without a complete checkpoint at iteration 200"
    assert of(look, JobGivenUp) == [JobGivenUp(job="tiny-cd200", reason=reason)]
    record = Session.load(story.path).jobs["tiny-cd200"]
    assert (record.verdict, record.reason) == (Verdict.FAILED, reason)
    assert story.job("tiny-cd100").verdict is None


def test_a_launch_that_failed_gives_its_cooldown_up_with_the_reason(story: Story) -> None:
    story.save(100)
    (action,) = story.look().actions
    actions.begin(story.session, action)
    actions.fail(story.session, action, "no space left")
    assert of(story.look(), JobGivenUp) == [
        JobGivenUp(job="tiny-cd100", reason="could not be started: no space left")
    ]


def test_a_branchs_own_start_is_no_checkpoint_of_the_branch(story: Story) -> None:
    parent = story.save(100)
    (action,) = story.look().actions
    job = actions.begin(story.session, action)
    job.spec.trainer.seed(FoundCheckpoint(100, parent), Path(job.spec.save_dir))
    actions.complete(story.session, action, job)
    story.submit("tiny-cd100")
    assert of(story.look(name="tiny-cd100", state="RUNNING"), CheckpointComplete) == []
    story.save(150, name="tiny-cd100")
    events = of(story.look(name="tiny-cd100", state="COMPLETED"), CheckpointComplete)
    assert [(event.job, event.iteration) for event in events] == [("tiny-cd100", 150)]
    assert story.job("tiny-cd100").verdict is Verdict.FINISHED


def test_an_answer_that_leaves_a_job_out_changes_nothing(story: Story) -> None:
    before = story.job().model_dump()
    assert story.monitor.look({"another-key": JobStatus("FAILED")}) == Look([], [], set())
    assert story.job().model_dump() == before
    key = story.session.meta.key("tiny", 1)
    assert [ref.job_id for ref in story.monitor.refs()] == [f"id-{key}"]


# Kills and failing disks


def test_a_kill_at_any_step_of_a_look_loses_and_doubles_nothing(
    tmp_path: Path, composed: Composed, killed_at: KilledAt
) -> None:
    for n in itertools.count(1):
        story = Story(create(composed, tmp_path / str(n), session_id="s1"))
        story.submit()
        story.save(100)
        story.save(200)
        story.log(210)
        killed = killed_at(n, lambda story=story: story.look(state="FAILED", exit_code=1))  # type: ignore[misc]
        story.open().look(state="FAILED", exit_code=1)
        again = Session.load(story.path)
        assert story.on_disk == ([100, 200], ["tiny-cd100", "tiny-cd200"])
        assert len(again.pending_actions()) == 2
        kinds = [entry.event.kind for entry in again.journal.entries]
        assert kinds.count("attempt_judged") == kinds.count("state_changed") == 1
        trunk = again.jobs["tiny"]
        assert (trunk.iteration, trunk.checkpoints) == (210, [100, 200])
        assert (trunk.verdict, trunk.attempts_without_progress) == (Verdict.FAILED, 0)
        if not killed:
            break
    assert n > 8


@pytest.mark.parametrize("blocked", ["actions", "events.jsonl", "jobs", "metrics"])
def test_what_could_not_be_written_is_written_and_done_at_the_next_look(
    story: Story, blocked: str
) -> None:
    path, away = story.path / blocked, story.path / "away"
    path.rename(away)
    if away.is_file():
        path.mkdir()  # an append to it fails, as on a full disk
    story.save(100)
    story.log(100)
    with pytest.raises(OSError):
        story.look()
    if away.is_file():
        path.rmdir()
    away.rename(path)
    assert [event.iteration for event in of(story.look(), CheckpointComplete)] == [100]
    assert [a.action.job for a in story.session.pending_actions()] == ["tiny-cd100"]
    assert story.look() == Look([], [], set())
    again = Session.load(story.path)
    assert story.on_disk == ([100], ["tiny-cd100"])
    assert (again.jobs["tiny"].iteration, again.jobs["tiny"].checkpoints) == (100, [100])


def test_a_job_that_could_not_be_given_up_on_disk_is_given_up_at_the_next_look(
    story: Story,
) -> None:
    story.job("tiny-cd200").cancel_requested = "ann"
    (story.path / "jobs").rename(story.path / "away")
    with pytest.raises(OSError):
        story.look()
    (story.path / "away").rename(story.path / "jobs")
    story.look()
    assert Session.load(story.path).jobs["tiny-cd200"].reason == "cancelled: ann"


def test_no_record_tells_what_the_journal_does_not(story: Story) -> None:
    # The event could not be written; then something else about the job is, and the monitor dies.
    path = story.path / "actions"
    story.save(100)
    path.rename(story.path / "away")
    with pytest.raises(OSError):
        story.look()
    with pytest.raises(OSError):
        story.monitor.recorder.apply(Session.change_job, story.job(), warning="no matter")
    assert Session.load(story.path).jobs["tiny"].checkpoints == []
    (story.path / "away").rename(path)
    story.monitor.recorder.apply(Session.change_job, story.job(), warning="no matter")
    assert story.on_disk == ([100], ["tiny-cd100"])
    assert Session.load(story.path).jobs["tiny"].checkpoints == [100]
    assert launches(story.look()) == ["tiny-cd100"]


def test_a_job_that_cannot_be_read_keeps_no_other_from_being_seen(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    story.session.change_job(story.job("tiny-cd100"), launched=True)
    story.submit("tiny-cd100")
    story.look(name="tiny-cd100", state="RUNNING")
    checkpoints = type(story.job().spec.backend).checkpoints

    def stale(self: object, save_dir: Path) -> CheckpointScan:
        if save_dir.parent.name == "tiny":
            raise OSError(errno.ESTALE, "Stale file handle", str(save_dir))
        return checkpoints(self, save_dir)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(type(story.job().spec.backend), "checkpoints", stale)
        story.save(100)
        story.save(120, name="tiny-cd100")
        found = of(story.look(state="COMPLETED"), CheckpointComplete)
        assert [(event.job, event.iteration) for event in found] == [("tiny-cd100", 120)]
        assert "Stale file handle" in str(story.job().warning)
        # Its end is known, and judged only once it can be read.
        assert (story.job().state, story.job().verdict) == ("COMPLETED", None)
    found = story.look().events
    assert [event.key for event in found] == ["checkpoint/tiny/100", "verdict/tiny/a1"]
    assert story.job().warning is None


def test_why_a_job_waits_is_on_disk_though_nothing_else_moves(story: Story) -> None:
    story.look(state="RUNNING", reason="Resources")
    record = Session.load(story.path).jobs["tiny"]
    assert record.attempt is not None and record.attempt.reason == "Resources"


# Logs


def test_a_verdict_waits_for_the_end_of_the_log(story: Story) -> None:
    attempt = story.job().attempts[0]
    story.log(100)
    os.truncate(attempt.log, 5 * LIMIT)  # a hole of NUL bytes
    story.log(300, end="")
    story.save(300)
    story.look(state="COMPLETED", exit_code=0)
    assert attempt.verdict is None and not story.job().is_over
    while story.look().has_more:
        assert attempt.verdict is None
    assert story.job().verdict is Verdict.FINISHED
