"""Restarts: asked for once, written down first, carried out once, whatever is killed when."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoexp import payload
from autoexp.backends.megatron.formats import TORCH_DIST, TRACKER
from autoexp.config.compose import compose
from autoexp.jobs.record import RestartRequest
from autoexp.monitor.template_values import values_of
from autoexp.operations import actions as acting
from autoexp.operations.step_runs import Replacement
from autoexp.rules.actions import Restart, Start
from autoexp.rules.condition_checks import Answer, check_all
from autoexp.rules.events import JobGivenUp, LogMatched, MetricAlarm, RestartAsked
from autoexp.schedulers.base import AttemptRef, JobStatus
from autoexp.schedulers.local import LocalScheduler
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import spec_of
from tests.core.backends.conformance import megatron
from tests.core.rules.facts import facts
from tests.core.story import HANG, Story, StoryOf, go_on, of, perform, say
from tests.killing import KilledAt

NAN = {"nan": {"not_a_number": {"logged": 2}, "actions": [{"restart": {"roll_back": True}}]}}
Rules = dict[str, Any]


def log_nan(story: Story, iteration: int) -> None:
    say(story, f" iteration {iteration:8d}/     300 | learning rate: 1.0E-02 | grad norm: nan |")


def test_a_kill_at_any_step_of_a_restart_with_roll_back_ends_in_one_restart(
    story_of: StoryOf, killed_at: KilledAt
) -> None:
    for n in itertools.count(1):
        story = story_of(metric_events=NAN)
        story.save(100)
        story.log(100)
        story.log(190)
        log_nan(story, 200)
        log_nan(story, 210)
        story.save(200)
        killed = killed_at(n, lambda story=story: go_on(story))  # type: ignore[misc]
        go_on(story)
        session = Session.load(story.path)
        job = session.jobs["tiny"]
        assert [attempt.number for attempt in job.attempts] == [1, 2], n
        assert (job.attempts[0].verdict, job.attempts[1].job_id) == (Verdict.CONTINUE, None)
        assert (job.restart, job.roll_backs, job.checkpoints) == (None, [100], [100])
        assert job.attempts[1].first_iteration == 100
        asked = [e.event for e in session.journal.entries if isinstance(e.event, RestartAsked)]
        assert [event.roll_back_to for event in asked] == [100]
        folder = Path(job.spec.save_dir)
        names = sorted(path.name for path in folder.iterdir())
        assert names == ["iter_0000100", TRACKER, "set-aside-200"]
        assert (folder / TRACKER).read_text() == "100"
        if not killed:
            break
    assert n > 15


def test_the_cooldown_of_a_checkpoint_that_was_set_aside_waits_for_the_next_one(
    story_of: StoryOf,
) -> None:
    story = story_of(metric_events=NAN)
    story.save(100)
    story.log(190)
    log_nan(story, 200)
    log_nan(story, 210)
    story.save(200)
    go_on(story)
    launches = {a.event.key: a.status for a in story.session.actions.values() if is_start(a)}
    assert launches == {"checkpoint/tiny/100": "pending", "checkpoint/tiny/200": "failed"}
    story.look()
    assert story.job("tiny-cd200").verdict is None
    assert story.session.checkpoints()[-1].iteration == 100
    # The next attempt comes there again: another checkpoint, with a key of its own.
    story.session.record_submission(story.job(), story.job().attempts[1], "id2")
    story.save(200)
    (start,) = [a for a in story.look(state="RUNNING").actions if is_start(a)]
    assert start.event.key == "checkpoint/tiny/200/r1"


def is_start(action: ActionRecord) -> bool:
    return isinstance(action.action, Start)


def test_a_cooldown_that_had_started_from_a_bad_checkpoint_is_marked(
    story_of: StoryOf,
) -> None:
    story = story_of(metric_events=NAN)
    story.save(100)
    story.log(190)
    story.save(200)
    for action in story.look().actions:
        job = acting.begin(story.session, action)
        assert job is not None
        acting.complete(story.session, action, job)
    log_nan(story, 200)
    log_nan(story, 210)
    go_on(story)
    assert "branched from 200" in str(story.job("tiny-cd200").tainted)
    assert story.job("tiny-cd100").tainted is None


def test_a_verdict_waits_for_the_restart_that_a_log_line_calls_for(
    story_of: StoryOf,
) -> None:
    story = story_of(log_events=HANG)
    say(story, "rank 3: it hangs")
    look = story.look(state="FAILED", exit_code=1)
    assert [event.kind for event in look.events] == ["state_changed", "log_matched"]
    assert story.job().verdict is None
    go_on(story)
    assert story.job().verdict is None
    assert [a.verdict for a in story.job().attempts] == [Verdict.CONTINUE, None]


def test_a_restart_that_may_not_happen_leaves_the_verdict_as_it_is(
    story_of: StoryOf,
) -> None:
    story = story_of(log_events=HANG)
    say(story, "it hangs")
    (action,) = story.look(state="FAILED", exit_code=1).actions
    acting.fail(story.session, action, "not done: 4 attempts of 4 made")
    story.look()
    assert (story.job().verdict, story.job().reason) == (Verdict.FAILED, "FAILED (exit code 1)")


def test_failing_a_job_overrules_restarting_it_in_either_order(
    story_of: StoryOf,
) -> None:
    fails = {"oom": {"substring": "out of memory", "actions": [{"fail": {}}]}}
    for backwards in (False, True):
        story = story_of(log_events=HANG | fails)
        say(story, "it hangs")
        say(story, "out of memory")
        actions = story.look(state="FAILED", exit_code=1).actions
        for action in reversed(actions) if backwards else actions:
            perform(story, action)
            story.look()
        assert (story.job().verdict, story.job().reason) == (Verdict.FAILED, "rule oom")
        # What was overruled is no error: nobody has to look at it.
        assert {a.status for a in story.session.actions.values()} == {ActionStatus.DONE}


def test_two_rules_that_restart_the_same_attempt_restart_it_once(
    story_of: StoryOf,
) -> None:
    other = {"other": {"pattern": "it (?P<what>[a-z]+)", "actions": [{"restart": {}}]}}
    story = story_of(log_events=HANG | other)
    say(story, "it hangs")
    actions = story.look().actions
    assert [action.rule for action in actions] == ["hang", "other"]
    go_on(story)
    assert len(story.job().attempts) == 2
    assert {a.status for a in Session.load(story.path).actions.values()} == {ActionStatus.DONE}


@pytest.mark.parametrize("backwards", [False, True])
def test_a_crash_and_a_nan_of_the_same_attempt_are_one_restart_with_roll_back(
    story_of: StoryOf, backwards: bool
) -> None:
    crash = {"crash": {"to": ["FAILED"], "actions": [{"restart": {}}]}}
    back = {"restart": {"roll_back": True, "backend": {"args": {"lr": 0.005}}}}
    nan = {"nan": {"substring": "found NaN", "actions": [back]}}
    story = story_of(state_events=crash, log_events=nan)
    story.save(100)
    story.log(190)
    say(story, "found NaN in local grad norm")
    story.look(state="RUNNING")
    story.save(200)
    say(story, "goodbye")
    story.look(state="FAILED", exit_code=1)
    actions = [a for a in story.session.pending_actions() if isinstance(a.action, Restart)]
    assert [action.rule for action in actions] == ["nan", "crash"]
    for action in reversed(actions) if backwards else actions:
        perform(story, action)
        story.look()
    go_on(story)
    job = Session.load(story.path).jobs["tiny"]
    assert (len(job.attempts), job.roll_backs, job.checkpoints) == (2, [100], [100])
    assert job.spec.command[job.spec.command.index("--lr") + 1] == "0.005"
    assert {a.status for a in story.session.actions.values() if not is_start(a)} == {"done"}


@pytest.mark.parametrize(("exit_code", "verdict"), [(93, Verdict.FAILED), (1, None)])
def test_production_restarts_a_crash_unless_its_exit_code_asks_for_no_restart(
    story_of: StoryOf, tmp_path: Path, exit_code: int, verdict: Verdict | None
) -> None:
    rules = compose("demo", ["monitoring=production"]).experiment.monitoring.state_events
    story = story_of(state_events={name: rule.model_dump() for name, rule in rules.items()})
    story.save(100)
    story.look(state="FAILED", exit_code=exit_code)
    known = facts(tmp_path, attempts=1, attempts_without_progress=0)
    for action in story.session.pending_actions():
        values = values_of(action.event, action.rule, story.session)
        answer = check_all(action.when, known._replace(values=values)).answer
        assert answer is not Answer.NOT_YET
        if answer is Answer.HOLDS:
            perform(story, action)
        else:
            acting.fail(story.session, action, "not done")
    go_on(story)
    assert story.job().verdict is verdict
    assert len(story.job().attempts) == (1 if verdict else 2)


def test_a_restart_without_progress_ends_after_the_sessions_limit(
    story_of: StoryOf,
) -> None:
    story = story_of(log_events=HANG)
    for number in (1, 2, 3):
        say(story, "it hangs")
        go_on(story)
        job = story.job()
        if number < 3:
            story.session.record_submission(job, job.attempts[-1], f"id{number}")
            Path(job.attempts[-1].log).parent.mkdir(parents=True)
            story.look(state="RUNNING")
    assert len(job.attempts) == 3
    assert "3 attempts in a row without a new iteration" in str(job.reason)


def test_attempts_queued_ahead_end_with_the_one_that_restarts_and_count_for_nothing(
    story_of: StoryOf,
) -> None:
    story = story_of(log_events=HANG)
    session, job = story.session, story.job()
    first = job.attempts[0]
    for number in (2, 3):
        changes = {"number": number, "key": f"s1-tiny-a{number}", "name": f"n{number}"}
        later = first.model_copy(update={**changes, "state": "PENDING", "transitions": 0})
        session.change_job(job, attempts=[*job.attempts, later])
    say(story, "it hangs")
    perform(story, story.look().actions[0])
    ends = {attempt.key: JobStatus("CANCELLED") for attempt in job.open_attempts}
    story.monitor.look(ends)
    for _ in range(3):
        story.monitor.look({})
    assert [attempt.verdict for attempt in job.attempts] == [Verdict.CONTINUE] * 3
    assert (job.verdict, job.attempts_without_progress, job.may_be_replaced) == (None, 1, True)


def test_a_cancelled_job_is_not_restarted(story_of: StoryOf) -> None:
    story = story_of(log_events=HANG)
    say(story, "it hangs")
    story.look()
    story.session.change_job(story.job(), cancel_requested="ann")
    go_on(story)
    story.look(state="CANCELLED")
    assert (story.job().verdict, story.job().reason) == (Verdict.FAILED, "cancelled: ann")
    assert len(story.job().attempts) == 1


def test_a_rule_ends_a_job_that_waits_for_its_next_attempt(
    story_of: StoryOf,
) -> None:
    story = story_of(state_events={"limit": {"to": ["TIMEOUT"], "actions": [{"fail": {}}]}})
    story.look(state="TIMEOUT")
    go_on(story)
    assert (story.job().verdict, story.job().reason) == (Verdict.FAILED, "rule limit")


def test_changed_arguments_are_in_the_next_attempts_command(
    story_of: StoryOf,
) -> None:
    restart = {"restart": {"backend": {"args": {"lr": 0.005}}}}
    story = story_of(log_events={"hang": {"substring": "it hangs", "actions": [restart]}})
    say(story, "it hangs")
    go_on(story)
    command = Session.load(story.path).jobs["tiny"].spec.command
    assert command[command.index("--lr") + 1] == "0.005"


def test_the_first_match_of_an_attempt_is_an_event_and_repeats_are_counted(
    story_of: StoryOf,
) -> None:
    every = {"each": {"substring": "it hangs", "every": True}}
    story = story_of(log_events=HANG | every)
    for _ in range(3):
        say(story, "it hangs")
    found = of(story.look(), LogMatched)
    assert [event.rule for event in found] == ["hang", "each", "each", "each"]
    say(story, "it hangs")
    assert [event.rule for event in of(story.open().look(), LogMatched)] == ["each"]
    assert Session.load(story.path).jobs["tiny"].attempts[0].matches == {"hang": 4, "each": 4}


def test_a_missing_loss_raises_the_same_event_as_a_printed_nan(
    story_of: StoryOf,
) -> None:
    for printed in ("", "lm loss: nan | "):
        story = story_of(metric_events=NAN)
        story.log(10)
        for iteration in (20, 30):
            say(story, f" iteration {iteration}/ 300 | learning rate: 1.0E-02 | {printed}x: 1 |")
        (alarm,) = of(story.look(), MetricAlarm)
        assert (alarm.key, alarm.last_good, alarm.value) == ("metric/tiny/a1/nan", 10, None)


def test_a_nan_seen_by_two_monitors_is_one_event(story_of: StoryOf) -> None:
    story = story_of(metric_events=NAN)
    story.log(10)
    log_nan(story, 20)
    assert of(story.look(), MetricAlarm) == []
    log_nan(story, 30)
    assert len(of(story.open().look(), MetricAlarm)) == 1
    log_nan(story, 40)
    assert of(story.open().look(), MetricAlarm) == []


def test_there_is_nothing_to_roll_back_to_before_the_first_checkpoint(
    story_of: StoryOf,
) -> None:
    story = story_of(metric_events=NAN)
    story.log(10)
    log_nan(story, 20)
    log_nan(story, 30)
    go_on(story)
    (action,) = Session.load(story.path).actions.values()
    assert action.status is ActionStatus.FAILED
    assert "no checkpoint at or before iteration 10" in str(action.reason)


def test_a_kill_at_any_step_of_setting_aside_leaves_a_tracker_that_names_a_checkpoint(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    for n in itertools.count(1):
        save_dir = tmp_path / str(n)
        for iteration in (100, 200, 300):
            (save_dir / f"iter_{iteration:07d}").mkdir(parents=True)
            (save_dir / f"iter_{iteration:07d}" / ".metadata").write_text("")
            (save_dir / f"iter_{iteration:07d}" / "metadata.json").write_text("{}")
        (save_dir / TRACKER).write_text("300")
        killed = killed_at(n, lambda d=save_dir: TORCH_DIST.set_aside(d, 150))  # type: ignore[misc]
        tracked = TORCH_DIST.tracked(save_dir)
        assert (save_dir / f"iter_{tracked:07d}").exists()
        TORCH_DIST.set_aside(save_dir, 150)
        scan = TORCH_DIST.scan(save_dir)
        assert [found.iteration for found in scan.complete] == [100]
        assert len(list(save_dir.glob("set-aside-*"))) == 2
        if not killed:
            break
    assert n > 3


def test_a_job_that_a_rule_failed_before_it_started_is_given_up_with_the_reason(
    story_of: StoryOf,
) -> None:
    failed = {"bad": {"verdict": "failed", "jobs": ["train"], "actions": [{"log": {}}]}}
    story = story_of(state_events=failed)
    look = story.look(state="FAILED", exit_code=1)
    assert [action.rule for action in look.actions] == ["bad"]
    assert {event.job for event in of(look, JobGivenUp)} == {"tiny-cd100", "tiny-cd200"}


def test_a_restart_waits_for_its_own_processes_and_not_for_those_of_a_session_of_the_same_name(
    tmp_path: Path,
) -> None:
    own, other = tmp_path / "here" / "s1-j-a1", tmp_path / "there" / "s1-j-a1"
    save_dir = tmp_path / "checkpoints"
    for iteration in (100, 200):
        for write in megatron.saving(save_dir, iteration):
            write()
    spec = spec_of("x", directory=tmp_path, save_dir=str(save_dir))
    asked = RestartRequest(attempt=1, action="a", reason="r", roll_back_to=100)
    ref = AttemptRef("s1-j-a1", own, "s1-j-a1", "x.sh")

    def replaced_beside(directory: Path) -> bool:
        cookies = {payload.COOKIE: "s1-j-a1", payload.ATTEMPT: str(directory)}
        command = [sys.executable, "-c", "print(flush=True); input()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, env={**os.environ, **cookies}, **pipes) as process:  # type: ignore[call-overload]
            process.stdout.readline()
            try:
                Replacement(spec, (ref,), asked).run(LocalScheduler())
            except TimeoutError as error:
                assert str(process.pid) in str(error)
                return False
            finally:
                process.communicate(b"\n")
        return True

    assert not replaced_beside(own)
    assert (save_dir / "iter_0000200").exists()
    assert replaced_beside(other)
    assert not (save_dir / "iter_0000200").exists()
