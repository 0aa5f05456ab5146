"""Requests from other processes: each is processed once, in order, or refused with a reason."""

import errno
import itertools
import json
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoexp.cli import sessions
from autoexp.config.compose import Composed
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.operations import actions as acting
from autoexp.operations import requests as inbox
from autoexp.operations.cancel import cancel_directly
from autoexp.planning.plan import make_plan
from autoexp.rules.events import JobAdded, RequestRefused
from autoexp.session.action_records import ActionStatus
from autoexp.session.inbox import (
    ActionRequest,
    BudgetRequest,
    Request,
    SubmitRequest,
    enqueue,
    is_done,
    is_empty,
    left_behind,
)
from autoexp.session.meta import output_root
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import atomic
from tests.builders import attempt_of, create
from tests.core.session.requests import cancel, job, submit
from tests.core.story import Story
from tests.killing import KilledAt
from tests.processes import exit_code, in_a_process

CD100 = "start-tiny-cd100--checkpoint_tiny_100--0"


def adoption(session: Session, *specs: JobSpec) -> SubmitRequest:
    """The first job runs already, under an id that somebody else was given."""
    attempt = Attempt(
        number=1, key=session.meta.key("theirs", 1), name="theirs", log="theirs.log",
        job_id="12345", state="RUNNING", intended_at=now(), submitted_at=now(),
    )  # fmt: skip
    return SubmitRequest(jobs=specs, attempt=attempt, by="ann")


def change(verb: Any, key: str = CD100) -> ActionRequest:
    return ActionRequest(key=key, verb=verb, by="ann")


@pytest.fixture
def story(session_path: Path) -> Story:
    """The trunk runs and has saved at 100: the launch of a cooldown is to be done."""
    story = Story(session_path)
    story.submit()
    story.save(100)
    story.look(state="RUNNING")
    return story


def ask(story: Story, *requests: Request) -> list[str]:
    """Leave requests and have them processed; returns why some were refused."""
    for request in requests:
        enqueue(story.path, request)
    before = len(story.session.journal)
    inbox.process_requests(story.session)
    assert list((story.path / "inbox").glob("*.json")) == []
    events = [entry.event for entry in story.session.journal.entries[before:]]
    return [event.reason for event in events if isinstance(event, RequestRefused)]


# Many at once


def test_requests_of_several_processes_are_all_taken_on_once(
    session_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # no power cut is played here

    def put_many(process: str) -> None:
        for number in range(200):
            enqueue(session_path, submit(job(f"{process}{number:03}")))

    session = Session.load(session_path)
    children = [in_a_process(lambda name=name: put_many(name)) for name in "abcd"]  # type: ignore[misc]
    rounds = 0
    deadline = time.monotonic() + 300
    while len(session.jobs) < 803 and time.monotonic() < deadline:
        inbox.process_requests(session)
        rounds += 1
    added = list(session.jobs)[3:]
    assert [exit_code(child) for child in children] == [0] * 4
    assert inbox.process_requests(session) == []
    assert rounds > 1
    for process in "abcd":
        own = [name for name in added if name[0] == process]
        # A directory that is read while it grows may show a later file before an earlier one.
        assert sorted(own) == [f"{process}{number:03}" for number in range(200)]
    again = Session.load(session_path)
    assert len(again.jobs) == len(again.meta.jobs) == 803
    joined = [e.event.job for e in again.journal.entries if isinstance(e.event, JobAdded)]
    assert joined == added


def test_what_cannot_be_read_is_set_aside_with_a_reason_and_the_others_go_on(
    story: Story,
) -> None:
    good = submit(job("good")).model_dump_json()
    broken = {
        "00-empty": b"",
        "01-torn": good[:-9].encode(),
        "02-null": b"null",
        "03-encoding": b"\xff\xfe",
        "04-kind": b'{"kind": "explode", "by": "ann"}',
        "05-key": good.replace('"by"', '"bye"').encode(),
        "06-none": submit(job("x")).model_copy(update={"jobs": ()}).model_dump_json().encode(),
    }
    folder = story.path / "inbox"
    for name, content in broken.items():
        (folder / f"{name}.json").write_bytes(content)
    (folder / ".07-being-written.json.tmp").write_text("{")
    reasons = ask(story, submit(job("good")))
    assert len(reasons) == len(broken) and all(reasons)
    assert {p.stem: p.read_bytes() for p in folder.glob("*.refused")} == broken
    assert "good" in Session.load(story.path).jobs
    assert ask(story) == []


def test_an_entry_that_is_no_file_is_set_aside_and_the_others_go_on(story: Story) -> None:
    folder = story.path / "inbox"
    (folder / "00-directory.json").mkdir()
    (folder / "01-dangling.json").symlink_to(folder / "nowhere")
    reasons = ask(story, submit(job("good")))
    assert "00-directory.json cannot be read" in reasons[0]
    assert "01-dangling.json cannot be read" in reasons[1]
    assert "good" in Session.load(story.path).jobs


@pytest.mark.parametrize("name", [b"\xff.json", b"n" * 250 + b".json", b"\xff" * 250 + b".json"])
def test_an_entry_of_any_name_is_set_aside_once_and_the_others_go_on(
    story: Story, name: bytes
) -> None:
    folder = story.path / "inbox"
    for _ in range(2):
        (folder / os.fsdecode(name)).write_text("{")
        reasons = ask(story, submit(job("good")))
        assert len(reasons) <= 1
        assert ask(story) == []
    assert [path.suffix for path in folder.iterdir()] == [".refused"] * 2
    assert "good" in Session.load(story.path).jobs


def test_a_pipe_in_the_inbox_is_not_waited_for(story: Story) -> None:
    os.mkfifo(story.path / "inbox" / "00.json")
    (reason,) = ask(story, submit(job("good")))
    assert "00.json cannot be read: not a regular file" in reason
    assert "good" in Session.load(story.path).jobs


def test_a_file_of_holes_is_refused_before_a_byte_of_it_is_read(story: Story) -> None:
    with (story.path / "inbox" / "00.json").open("wb") as file:
        file.truncate(atomic.LARGEST + 1)
    tracemalloc.start()
    try:
        (reason,) = ask(story, submit(job("good")))
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert "00.json cannot be read: has more than" in reason
    assert "good" in Session.load(story.path).jobs


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def nothing_moves(patch: pytest.MonkeyPatch, path: Path, code: int) -> None:
    """Have a file that can be neither renamed nor removed, as in another user's sticky folder."""
    for name in ("rename", "unlink"):
        real = getattr(Path, name)

        def moved(file: Path, *others: Any, real: Any = real, **how: Any) -> Any:
            if file == path:
                raise OSError(code, os.strerror(code), str(file))
            return real(file, *others, **how)

        patch.setattr(Path, name, moved)


def bad_request(story: Story, patch: pytest.MonkeyPatch, code: int) -> Path:
    """What is no request, and stays where it is."""
    bad = story.path / "inbox" / "1-bad.json"
    bad.write_text("no request")
    nothing_moves(patch, bad, code)
    return bad


def test_a_request_that_cannot_be_moved_is_said_once_and_keeps_no_session_from_ending(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = bad_request(story, monkeypatch, errno.EPERM)
    (said,) = inbox.process_requests(story.session)
    assert "refused" in said
    assert inbox.process_requests(story.session) == []
    assert is_done(story.session)
    assert left_behind(story.session) == [bad]
    assert ask_behind(story) == ["ann: cancels tiny-cd200"]


def test_a_request_that_was_carried_out_and_cannot_be_removed_is_not_carried_out_again(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = enqueue(story.path, BudgetRequest(stop_above=5.0, by="ann"))
    nothing_moves(monkeypatch, path, errno.EACCES)
    done, said = inbox.process_requests(story.session)
    assert (done, str(path) in said) == ("ann: sets budget.stop_above to 5", True)
    inbox._change_budget(story.session, 7.0)
    assert inbox.process_requests(story.session) == []
    assert story.session.experiment.budget.stop_above == 7.0
    assert is_done(story.session)
    assert left_behind(story.session) == [path]


def test_a_request_that_nobody_can_move_for_now_is_waited_for_so_long_and_no_longer(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = bad_request(story, monkeypatch, errno.EBUSY)
    for _ in range(9):
        with pytest.raises(OSError, match="busy"):
            inbox.process_requests(story.session)
        assert not is_done(story.session)
    with pytest.raises(OSError, match="busy"):
        inbox.process_requests(story.session)
    assert is_done(story.session)
    assert left_behind(story.session) == [bad]
    assert ask_behind(story) == ["ann: cancels tiny-cd200"]
    monkeypatch.undo()
    inbox.process_requests(story.session)
    assert left_behind(story.session) == []


def ask_behind(story: Story) -> list[str]:
    enqueue(story.path, cancel("tiny-cd200"))
    assert not is_done(story.session)
    return inbox.process_requests(story.session)


def test_a_session_that_is_over_ends_past_a_request_that_cannot_be_moved(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad_request(story, monkeypatch, errno.EPERM)
    for request in story.session.jobs.values():
        story.session.settle(request, Verdict.FINISHED, "done")
        for attempt in request.attempts:
            attempt.state = "COMPLETED"
    for action in story.session.pending_actions():
        story.session.change_action(action, status=ActionStatus.DONE)
    assert not story.monitor.worklist.next_work().is_over
    inbox.process_requests(story.session)
    assert story.monitor.worklist.next_work().is_over


def test_another_users_request_runs_nothing_in_this_users_name(story: Story) -> None:
    folder = story.path / "inbox"
    enqueue(story.path, submit(job("evil")))
    enqueue(story.path, cancel(by="a colleague"))
    for path in folder.iterdir():
        os.chown(path, 65534, 65534)
    reasons = ask(story)
    assert any("left by another user (nobody): only root may send requests" in r for r in reasons)
    assert "evil" not in story.session.jobs
    assert not list(folder.glob("*.json"))


@pytest.mark.parametrize("name", ["", "../../up", "a/b", ".hidden", "a b", "a\n", "x" * 161])
def test_a_job_whose_name_is_no_file_name_is_refused(story: Story, name: str) -> None:
    request = submit(job("good")).model_dump(mode="json")
    request["jobs"][0]["name"] = name
    (story.path / "inbox" / "0.json").write_text(json.dumps(request))
    (reason,) = ask(story)
    assert "jobs.0.name" in reason


def test_an_attempt_of_another_key_than_its_jobs_is_refused(story: Story) -> None:
    request = submit(job("good"))
    foreign = attempt_of("../../up", "/log", number=1)
    (reason,) = ask(story, request.model_copy(update={"attempt": foreign}))
    assert "../../up" in reason
    assert "good" not in story.session.jobs


# Submitting


def test_the_same_job_again_is_the_same_job_and_another_of_its_name_is_refused(
    story: Story,
) -> None:
    assert ask(story, submit(job("a")), submit(job("a"), job("b"))) == []
    assert list(story.session.jobs)[3:] == ["a", "b"]
    (reason,) = ask(story, submit(job("a", "false")))
    assert "a: s1 has another job of this name" in reason
    (kept,) = (story.path / "inbox").glob("*.refused")
    assert json.loads(kept.read_text())["jobs"][0]["command"] == ["false"]
    assert Session.load(story.path).jobs["a"].spec == job("a")


def test_a_refused_request_brings_none_of_its_jobs(story: Story) -> None:
    ask(story, submit(job("a")))
    assert len(ask(story, submit(job("new"), job("a", "false")))) == 1
    assert "new" not in Session.load(story.path).jobs


def late_cooldown(story: Story, composed: Composed) -> SubmitRequest:
    """The session's own trunk, and a new cooldown from a checkpoint that is there already."""
    late = composed.experiment.cooldowns[0].model_copy(update={"at": (100,), "name": "late"})
    experiment = composed.experiment.model_copy(update={"cooldowns": (late,)})
    return submit(*make_plan(experiment, output_root(experiment, story.path)).jobs)


def test_a_cooldown_from_a_checkpoint_that_is_there_already_is_launched(
    story: Story, composed: Composed
) -> None:
    assert ask(story, late_cooldown(story, composed)) == []
    story.look()
    launches = [action.action.job for action in story.session.pending_actions()]
    assert launches == ["tiny-cd100", "tiny-cd100-late"]


def test_a_cooldown_that_joined_while_the_disk_was_full_is_launched_too(
    story: Story, composed: Composed
) -> None:
    enqueue(story.path, late_cooldown(story, composed))
    journal = story.path / "events.jsonl"
    journal.rename(story.path / "away")
    journal.mkdir()
    with pytest.raises(OSError):
        inbox.process_requests(story.session)
    journal.rmdir()
    (story.path / "away").rename(journal)
    assert ask(story) == []
    launches = [action.action.job for action in story.look().actions]
    assert launches == ["tiny-cd100-late"]
    keys = [entry.event.key for entry in story.session.journal.entries]
    assert keys.count("added/tiny-cd100-late") == 1


# Cancelling


def test_a_cancel_names_jobs_or_means_all_and_the_first_who_asked_stands(story: Story) -> None:
    assert ask(story, cancel("tiny-cd200", "unknown"), cancel("tiny-cd200", by="bob")) == []
    story.look()
    assert story.job("tiny-cd200").reason == "cancelled: ann"
    assert (story.job().cancel_requested, story.job("tiny-cd100").cancel_requested) == (None, None)
    ask(story, cancel(by="eve"))
    again = Session.load(story.path)
    asked = {name: record.cancel_requested for name, record in again.jobs.items()}
    assert asked == {"tiny": "eve", "tiny-cd100": "eve", "tiny-cd200": "ann"}


def test_requests_of_one_process_keep_their_order(story: Story) -> None:
    for number in range(30):
        enqueue(story.path, submit(job(f"j{number}")))
        enqueue(story.path, cancel(f"j{number}"))
    assert ask(story) == []
    records = list(story.session.jobs.values())[3:]
    assert [record.spec.name for record in records] == [f"j{number}" for number in range(30)]
    assert {record.cancel_requested for record in records} == {"ann"}


# Actions


def test_a_dropped_launch_gives_its_cooldown_up_until_it_is_retried(story: Story) -> None:
    assert ask(story, change("drop")) == []
    story.look()
    record = story.job("tiny-cd100")
    assert (record.verdict, record.reason) == (
        Verdict.FAILED,
        "could not be started: dropped: ann",
    )
    assert ask(story, change("retry")) == []
    story.look()
    again = Session.load(story.path)
    assert (again.jobs["tiny-cd100"].verdict, again.jobs["tiny-cd100"].reason) == (None, None)
    assert [action.key for action in again.pending_actions()] == [CD100]


def test_what_cannot_be_done_to_an_action_is_refused_and_changes_nothing(story: Story) -> None:
    (unknown,) = ask(story, change("drop", "nope"))
    assert unknown == "nope: no such action; `autoexp queue s1` lists them"
    assert ask(story, change("retry")) == []  # pending already: there is nothing to change
    (action,) = story.session.pending_actions()
    acting.complete(story.session, action, acting.begin(story.session, action))
    (done,) = ask(story, change("drop"))
    assert done == f"{CD100}: is done; cancel its job instead"
    assert Session.load(story.path).actions[CD100].status is ActionStatus.DONE


def test_a_drop_of_a_launch_under_way_is_refused_or_holds(story: Story) -> None:
    (action,) = story.session.pending_actions()
    record = acting.begin(story.session, action)
    refused = ask(story, change("drop"))
    acting.complete(story.session, action, record)
    again = Session.load(story.path)
    dropped = again.actions[CD100].status is ActionStatus.FAILED
    assert (dropped, again.jobs["tiny-cd100"].launched) == (not refused, bool(refused))


def test_a_retry_does_not_bring_a_cancelled_job_back(story: Story) -> None:
    ask(story, change("drop"), cancel("tiny-cd100"))
    story.look()
    assert len(ask(story, change("retry"))) == 1
    assert Session.load(story.path).jobs["tiny-cd100"].reason == "cancelled: ann"


# Kills

REQUESTS: dict[str, Callable[[Session], tuple[Request, ...]]] = {
    "cancel": lambda _: (cancel(),),
    "submit": lambda _: (submit(job("a"), job("b")),),
    "adopt": lambda session: (adoption(session, job("theirs"), job("b")),),
    "refused": lambda _: (submit(job("tiny")),),
    "drop": lambda _: (change("drop"),),
    "retry": lambda _: (change("drop"), change("retry")),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_kill_at_any_step_repeats_a_request_without_harm(
    tmp_path: Path, composed: Composed, killed_at: KilledAt, kind: str
) -> None:
    seen = []
    for n in itertools.count(1):
        story = Story(create(composed, tmp_path / str(n), session_id="s1"))
        story.submit()
        story.save(100)
        story.look()
        for request in REQUESTS[kind](story.session):
            enqueue(story.path, request)
        killed = killed_at(n, lambda story=story: inbox.process_requests(story.session))  # type: ignore[misc]
        inbox.process_requests(story.open().session)
        left = sorted(path.suffix for path in (story.path / "inbox").iterdir())
        again = Session.load(story.path)
        assert sorted(again.meta.jobs) == sorted(again.jobs)
        jobs = [
            (
                record.cancel_requested,
                record.verdict,
                [str(a.job_id).replace(again.meta.key_tail, "") for a in record.attempts],
            )
            for record in again.jobs.values()
        ]
        actions = [(action.status, action.reason) for action in again.actions.values()]
        kinds = [entry.event.kind for entry in again.journal.entries]
        seen.append((left, list(again.jobs), jobs, actions, kinds))
        if not killed:
            break
    assert n > 2
    assert seen == [seen[-1]] * n


def test_cancelling_where_nobody_watches_reaches_what_waits_in_the_inbox(
    session_path: Path,
) -> None:
    enqueue(session_path, submit(job("late"), job("later")))
    assert cancel_directly(session_path, ("later",), "bob").problem is None
    jobs = Session.load(session_path).jobs
    assert jobs["later"].was_cancelled and not jobs["late"].is_over

    enqueue(session_path, submit(job("last")))
    assert cancel_directly(session_path, (), "bob").problem is None
    session = Session.load(session_path)
    assert all(each.was_cancelled for each in session.jobs.values())
    assert {"late", "last"} < set(session.jobs) and is_empty(session_path)


class Clock:
    """A clock that a test drives: what happens at which second, while a command waits."""

    def __init__(self, happens: dict[float, Callable[[], object]]) -> None:
        self.now, self.happens = 0.0, happens

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for at in [at for at in self.happens if at <= self.now]:
            self.happens.pop(at)()


def test_a_cancel_says_what_it_waits_for(
    session_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session_path.parent))
    with Session.hold(session_path) as (session, _):
        trunk = session.jobs["tiny"]
        attempt = session.begin_attempt(trunk)
        assert attempt is not None
        session.record_submission(trunk, attempt, "41")

        def end() -> None:
            changes = {"state": "CANCELLED"}
            session.change_attempt(
                trunk, attempt, changes, verdict=Verdict.FAILED, reason="cancelled by bob"
            )

        clock = Clock(
            {
                5: lambda: inbox.process_requests(session),
                10: lambda: session.record_answers({attempt.key: "cancelled"}),
                40: end,
            }
        )
        monkeypatch.setattr(sessions, "time", clock)
        assert sessions.cancel("s1", ["tiny"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:-2] == [
        "   1 s: waits for the monitor to take the request up",
        "   5 s: waits for the scheduler to be told to end tiny (PENDING)",
        "  10 s: waits for tiny (PENDING) to end: the scheduler was told",
        "  25 s: waits for tiny (PENDING) to end: the scheduler was told",
    ]
    assert said[-1] == "tiny: cancelled by bob"


def test_a_cancel_does_not_wait_for_a_monitor_that_has_ended(
    session_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session_path.parent))
    hold = Session.hold(session_path)
    hold.__enter__()
    clock = Clock({2: lambda: hold.__exit__(None, None, None)})
    monkeypatch.setattr(sessions, "time", clock)
    assert sessions.cancel("s1", ["tiny"]) == 1
    assert clock.now < 3
    assert "the monitor has ended meanwhile: run the same" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session_path.parent))
    assert sessions.cancel("s1", ["tiny"]) == 0
