"""The session on disk: created whole or not at all, read back as written, damage never skipped."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autoexp.config.compose import Composed, compose
from autoexp.errors import BadInput, SessionDamaged, SessionNotFound
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.monitor.decide import decide, implied
from autoexp.planning.study import plan_study
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.events import CheckpointComplete, JobGivenUp
from autoexp.session import create as creation
from autoexp.session.meta import new_id, output_root
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import atomic, lease, migrations
from autoexp.storage.places import sessions_root
from tests.builders import create
from tests.disks import FullDisk
from tests.killing import KilledAt

SEEN = CheckpointComplete(job="tiny", iteration=100, path="/c/iter_0000100")
NEXT = SEEN.model_copy(update={"iteration": 200})


def everything(path: Path) -> dict[str, bytes]:
    """All files below `path` and what is in them."""
    found = {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    found.pop(lease.LOCK, None)
    return found


# Creating


def test_a_session_holds_its_experiment_and_a_file_for_each_job(
    session_path: Path, composed: Composed
) -> None:
    assert sorted(p.name for p in session_path.iterdir()) == sorted(
        ["session.json", "config", "jobs", "actions", "attempts", "inbox", "metrics", "indexed"]
    )
    names = {p.name for p in (session_path / "jobs").iterdir()}
    assert names == {"tiny.json", "tiny-cd100.json", "tiny-cd200.json"}
    session = Session.load(session_path)
    assert session.id == "s1"
    assert session.experiment == composed.experiment
    assert list(session.jobs) == ["tiny", "tiny-cd100", "tiny-cd200"]
    assert [job.launched for job in session.jobs.values()] == [True, False, False]
    assert (session_path / "config" / "resolved.yaml").read_text() == composed.resolved
    overrides = (session_path / "config" / "overrides.txt").read_text()
    assert overrides.splitlines() == list(composed.overrides)


def test_an_impossible_plan_leaves_nothing_behind(tmp_path: Path) -> None:
    cooldowns = "cooldowns=[{at: [1], decay: {iterations: 5}}]"
    with pytest.raises(BadInput, match="inside the warm-up"):
        create(compose("demo", [cooldowns]), tmp_path / "root")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(
    tmp_path: Path, composed: Composed, full_disk: FullDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # At once, or in the middle, on a disk that had some room before.
    with full_disk(1000), pytest.raises(BadInput, match=f"{tmp_path}: sessions cannot be made"):
        create(composed, tmp_path)
    monkeypatch.setattr(atomic, "probe", lambda *_: None)
    with full_disk(1000), pytest.raises(BadInput, match=f"full: nothing was created: {tmp_path}/"):
        create(composed, tmp_path, session_id="full")
    assert list(tmp_path.iterdir()) == []


def test_a_kill_at_any_step_leaves_a_whole_session_or_none(
    tmp_path: Path, composed: Composed, killed_at: KilledAt
) -> None:
    for n in itertools.count(1):
        root = tmp_path / str(n)
        killed = killed_at(n, lambda root=root: create(composed, root, session_id="s"))  # type: ignore[misc]
        if (root / "s").exists():
            assert len(Session.load(root / "s").jobs) == 3
        if not killed:
            break
        # What a kill leaves is in nobody's way.
        assert len(Session.load(create(composed, root, session_id="t")).jobs) == 3
    assert n > 4


def test_an_id_that_is_taken_is_bad_input_and_changes_nothing(
    session_path: Path, composed: Composed
) -> None:
    before = everything(session_path.parent)
    with pytest.raises(BadInput, match="s1: this session exists; `autoexp resume s1`"):
        create(composed, session_path.parent, session_id="s1")
    assert everything(session_path.parent) == before


@pytest.mark.parametrize("name", ["../up", "a/b", "{tmp}/abs", ".", ".hidden", "a\nb", "x" * 300])
def test_an_id_that_is_no_plain_name_is_bad_input(
    tmp_path: Path, composed: Composed, name: str
) -> None:
    root = tmp_path / "deep" / "root"
    with pytest.raises(BadInput):
        create(composed, root, session_id=name.format(tmp=tmp_path))
    assert not list(tmp_path.rglob("session.json"))


def test_a_session_has_the_jobs_of_the_plan_that_it_is_made_with(
    tmp_path: Path, composed: Composed
) -> None:
    outputs = output_root(composed.experiment, tmp_path / "s1")
    plan = plan_study(composed, outputs)
    agreed = plan.model_copy(update={"jobs": plan.jobs[:2]})
    path = creation.create(composed, agreed, tmp_path, session_id="s1")
    assert Session.load(path).plan.jobs == plan.jobs[:2]


def test_sessions_of_the_same_moment_get_different_ids() -> None:
    ids = {new_id("demo") for _ in range(100)}
    # Two of a hundred are the same in one run of 200: `create` refuses the second then.
    assert len(ids) > 95
    assert all(name.startswith("demo-") and len(name) == len("demo-1124-abcd") for name in ids)


def test_of_many_processes_that_create_one_id_exactly_one_does(
    tmp_path: Path, composed: Composed
) -> None:
    children = []
    for _ in range(6):
        child = os.fork()
        if child == 0:
            code = 9
            try:
                create(composed, tmp_path, session_id="s")
                code = 0
            except BadInput:
                code = BadInput.exit_code
            finally:
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, 2, 2, 2, 2, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert len(Session.load(tmp_path / "s").jobs) == 3


def test_the_sessions_root_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sessions_root() == tmp_path / "sessions"
    monkeypatch.setenv("AUTOEXP_SESSIONS", "/elsewhere")
    assert sessions_root() == Path("/elsewhere")


# Reading back


def test_what_was_written_is_what_is_read(session_path: Path) -> None:
    with Session.hold(session_path) as (session, _):
        trunk = session.jobs["tiny"]
        attempt = session.begin_attempt(trunk)
        assert attempt is not None
        session.record_submission(trunk, attempt, "4711")
        session.record([SEEN])
        (action,) = decide(SEEN, implied(session.plan.jobs))
        session.save_action(action)
        session.settle(session.jobs["tiny-cd200"], Verdict.FAILED, "ünüsual\n'reason'")
        session.meta.flow_run_ids.append("f")
        session.save_meta()
    again = Session.load(session_path)
    assert again.meta == session.meta
    assert again.jobs == session.jobs
    assert again.actions == session.actions
    assert again.journal.entries == session.journal.entries
    assert again.jobs["tiny"].attempts[0].key == again.meta.key("tiny", 1)
    assert [a.key for a in again.pending_actions()] == [action.key]


def test_two_sessions_of_one_id_have_no_key_in_common(tmp_path: Path, composed: Composed) -> None:
    keys = []
    for root in ("r1", "r2"):
        session = Session.load(create(composed, tmp_path / root, session_id="lr1"))
        attempt = session.begin_attempt(session.jobs["tiny"])
        assert attempt is not None
        keys += [attempt.key, session.meta.array_name("cooldown", 1)]
    assert len(set(keys)) == 4
    assert all(key.startswith(("lr1-tiny-a1-", "lr1-cooldown-array1-")) for key in keys)


def test_a_session_of_an_older_autoexp_goes_on_with_keys_as_it_has_them(session_path: Path) -> None:
    file = session_path / "session.json"
    content = json.loads(file.read_text())
    del content["key_tail"]
    file.write_text(json.dumps(content))
    with Session.hold(session_path) as (session, _):
        attempt = session.begin_attempt(session.jobs["tiny"])
        assert attempt is not None and attempt.key == "s1-tiny-a1"
        assert session.meta.array_name("cooldown", 1) == "s1-cooldown-array1"
        session.save_meta()
    assert Session.load(session_path).meta.key_tail == ""


def test_the_queue_has_room_for_no_more_than_max_jobs(tmp_path: Path, composed: Composed) -> None:
    slurm = composed.experiment.slurm.model_copy(update={"max_jobs": 1})
    experiment = composed.experiment.model_copy(update={"slurm": slurm})
    session = Session.load(create(composed._replace(experiment=experiment), tmp_path))
    assert session.begin_attempt(session.jobs["tiny"]) is not None
    assert session.begin_attempt(session.jobs["tiny-cd100"]) is None
    assert session.jobs["tiny-cd100"].attempts == []


def test_an_attempt_whose_intent_could_not_be_written_is_begun_again(session_path: Path) -> None:
    session = Session.load(session_path)
    (session_path / "jobs").rename(session_path / "away")
    with pytest.raises(OSError):
        session.begin_attempt(session.jobs["tiny"])
    (session_path / "away").rename(session_path / "jobs")
    assert session.begin_attempt(session.jobs["tiny"]) is not None
    (attempt,) = Session.load(session_path).jobs["tiny"].attempts
    assert (attempt.number, attempt.key) == (1, session.meta.key("tiny", 1))


def test_an_attempt_queued_ahead_and_refused_leaves_the_running_one_alone(
    tmp_path: Path, composed: Composed
) -> None:
    changes = {"slurm": SlurmCluster(chain=2)}
    chained = composed._replace(experiment=composed.experiment.model_copy(update=changes))
    session = Session.load(create(chained, tmp_path, session_id="s1"))
    job = session.jobs["tiny"]
    first = session.begin_attempt(job)
    assert first is not None
    session.record_submission(job, first, "1")
    ahead = session.begin_attempt(job)
    assert ahead is not None
    session.refuse(job, ahead, "Job dependency problem")
    again = Session.load(session.path).jobs["tiny"]
    assert (again.is_over, again.attempt, again.open_attempts) == (False, first, [first])
    # No other one is queued ahead; without one that runs, the next refusal is the end.
    assert session.begin_attempt(job) is None
    first.state, first.verdict = "TIMEOUT", Verdict.CONTINUE
    last = session.begin_attempt(job)
    assert last is not None
    session.refuse(job, last, "Invalid account")
    assert (job.verdict, job.reason) == (Verdict.FAILED, "not submitted: Invalid account")
    refused = [e.event.key for e in session.journal.entries]
    assert refused == ["not-taken/tiny/a2", "not-taken/tiny/a3"]


Change = Callable[[Session, JobRecord, Attempt], None]


@pytest.mark.parametrize(
    "change",
    [
        lambda session, job, attempt: session.record_submission(job, attempt, "1"),
        lambda session, job, attempt: session.refuse(job, attempt, "Invalid account"),
        lambda session, job, attempt: session.withdraw(job, attempt),
    ],
)
def test_what_could_not_be_written_about_an_attempt_is_not_believed_either(
    session_path: Path, change: Change
) -> None:
    session = Session.load(session_path)
    job = session.jobs["tiny"]
    attempt = session.begin_attempt(job)
    assert attempt is not None
    before = job.model_dump()
    (session_path / "jobs").rename(session_path / "away")
    with pytest.raises(OSError):
        change(session, job, attempt)
    assert job.model_dump() == before
    (session_path / "away").rename(session_path / "jobs")
    change(session, job, attempt)
    assert Session.load(session_path).jobs["tiny"].model_dump() == job.model_dump() != before


def test_no_such_session_is_said_with_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SessionNotFound, match=r"nope: no such session in .*autoexp sessions list"):
        Session.load(tmp_path / "nope")


def test_an_event_appended_twice_is_there_once(session_path: Path) -> None:
    session = Session.load(session_path)
    assert session.record([SEEN, SEEN]) == [SEEN]
    assert session.record([SEEN.model_copy(update={"path": "/moved"}), NEXT]) == [NEXT]
    again = Session.load(session_path)
    assert again.record([SEEN, NEXT]) == []
    assert again.journal.checkpoints() == [SEEN, NEXT]


# Damage


def damaged(path: Path, mend: Callable[[bytes], bytes]) -> None:
    path.write_bytes(mend(path.read_bytes()))


@pytest.mark.parametrize("file", ["session.json", "jobs/tiny-cd100.json", "actions/a.json"])
@pytest.mark.parametrize(
    "mend",
    [
        lambda raw: b"",
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"null",
        lambda raw: b"[1]",
        lambda raw: raw.replace(b"{", b'{"added": 1,', 1),
        lambda raw: b"\0" * len(raw),
        lambda raw: b"\xff" + raw,
    ],
    ids=["empty", "torn", "null", "list", "unknown key", "zeros", "encoding"],
)
def test_a_damaged_file_stops_the_session_with_its_path_and_changes_nothing(
    session_path: Path, file: str, mend: Callable[[bytes], bytes]
) -> None:
    (action,) = decide(SEEN, implied(Session.load(session_path).plan.jobs))
    (session_path / "actions" / "a.json").write_text(action.model_dump_json())
    damaged(session_path / file, mend)
    before = everything(session_path)
    with pytest.raises(SessionDamaged) as found:
        Session.load(session_path)
    assert str(session_path / file) in str(found.value)
    assert "resume the session" in str(found.value)
    with pytest.raises(SessionDamaged), Session.hold(session_path):
        pass
    assert everything(session_path) == before


@pytest.mark.parametrize("line", [b"", b"{", b"null", b'{"time": "x"}', b"\xff\xfe", b"{}"])
def test_a_damaged_line_of_the_journal_stops_the_session_with_its_number(
    session_path: Path, line: bytes
) -> None:
    journal = session_path / "events.jsonl"
    Session.load(session_path).record([SEEN, NEXT])
    first, second = journal.read_bytes().splitlines()
    journal.write_bytes(b"\n".join([first, line, second, b""]))
    before = everything(session_path)
    with pytest.raises(SessionDamaged) as found:
        Session.load(session_path)
    assert str(found.value).startswith(f"{journal}, line 2 does not parse")
    with pytest.raises(SessionDamaged), Session.hold(session_path):
        pass
    assert everything(session_path) == before


def test_a_torn_last_line_is_ignored_by_readers_and_cut_by_the_holder(session_path: Path) -> None:
    journal = session_path / "events.jsonl"
    Session.load(session_path).record([SEEN])
    whole = journal.read_bytes()
    Session.load(session_path).record([NEXT])
    for torn in (journal.read_bytes()[:-1], journal.read_bytes()[:-40], whole + b"{"):
        journal.write_bytes(torn)
        assert Session.load(session_path).journal.checkpoints() == [SEEN]
        assert journal.read_bytes() == torn
        with Session.hold(session_path) as (session, _):
            assert journal.read_bytes() == whole
            assert session.record([NEXT]) == [NEXT]
        assert Session.load(session_path).journal.checkpoints() == [SEEN, NEXT]


def test_an_append_that_failed_does_not_spoil_the_next_one(
    session_path: Path, full_disk: FullDisk
) -> None:
    session = Session.load(session_path)
    session.record([SEEN])
    size = (session_path / "events.jsonl").stat().st_size
    with full_disk(size + 20), pytest.raises(OSError):
        session.record([NEXT])
    assert session.record([NEXT, JobGivenUp(job="tiny", reason="r")])
    assert Session.load(session_path).journal.checkpoints() == [SEEN, NEXT]


def test_a_session_of_another_version_is_left_to_that_version(session_path: Path) -> None:
    file = session_path / "session.json"
    newer = migrations.VERSION + 1
    content = json.loads(file.read_bytes()) | {"schema_version": newer, "from_the_future": True}
    file.write_text(json.dumps(content))
    with pytest.raises(
        SessionDamaged, match=f"has schema version {newer}; this autoexp reads {newer - 1}"
    ):
        Session.load(session_path)


def test_a_root_with_a_backslash_which_slurm_would_interpret_is_refused(
    tmp_path: Path, composed: Composed
) -> None:
    with pytest.raises(BadInput, match="backslash"):
        create(composed, tmp_path / "a\\b")
    assert not list(tmp_path.iterdir())


def test_an_output_directory_that_an_earlier_session_of_this_id_used_is_refused(
    tmp_path: Path,
) -> None:
    composed = compose("demo", [f"project.output_root={tmp_path}/out"])
    earlier = create(composed, tmp_path / "sessions", session_id="s1")
    old = tmp_path / "out" / "s1" / "demo" / "checkpoints"
    old.mkdir(parents=True)
    shutil.rmtree(earlier)
    with pytest.raises(BadInput, match=f"{tmp_path}/out/s1: an earlier session"):
        create(composed, tmp_path / "sessions", session_id="s1")
    assert list((tmp_path / "sessions").iterdir()) == []
    create(composed, tmp_path / "sessions", session_id="s2")


# One session, one place


def test_a_copy_of_a_session_is_not_taken_up_beside_the_original(
    session_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / session_path.name
    shutil.copytree(session_path, copy)
    before = (copy / "session.json").read_bytes()
    with pytest.raises(BadInput, match=f"made as {session_path}.* a copy"), Session.hold(copy):
        pass
    assert not (copy / "monitor.json").exists()
    assert (copy / "session.json").read_bytes() == before
    assert Session.load(copy).jobs.keys() == Session.load(session_path).jobs.keys()
    with Session.hold(session_path):
        pass


def test_a_session_that_was_moved_is_taken_up_by_its_old_path_alone(
    session_path: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere"
    session_path.rename(moved)
    with pytest.raises(BadInput, match=f"ln -s {moved} {session_path}"), Session.hold(moved):
        pass
    session_path.symlink_to(moved)
    for path in (session_path, moved):
        with Session.hold(path) as (session, _):
            assert session.jobs


def test_metrics_rows_are_on_disk_before_the_record_that_says_they_were_read(
    session_path: Path, synced: list[str]
) -> None:
    session = Session.load(session_path)
    session.log_progress(session.jobs["tiny"], ["1,2,3\n"])
    folder = session_path / "metrics"
    assert synced == [str(folder / "tiny.csv"), str(folder)]


def test_a_new_session_is_on_disk_whole_before_anything_is_submitted(
    tmp_path: Path, composed: Composed, synced: list[str]
) -> None:
    path = create(composed, tmp_path / "root" / "sessions", session_id="s")
    # Made in a draft beside it, and renamed.
    (draft,) = {Path(name) for name in synced if Path(name).name.startswith(".new-")}
    holding = {entry.parent for entry in path.rglob("*")}
    wanted = {str(draft / folder.relative_to(path)) for folder in holding}
    assert wanted <= set(synced)
    assert synced[-1] == str(path.parent)
    assert str(tmp_path / "root") in synced
    assert str(tmp_path) in synced
    files = [entry for entry in path.rglob("*") if entry.is_file()]
    assert len(files) <= sum(name.endswith(".tmp") for name in synced)
