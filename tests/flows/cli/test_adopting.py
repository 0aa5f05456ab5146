"""A job that was started by hand is one session's: the next is refused, before anything is done."""

import itertools
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from autoexp.cli.sessions import sessions_remove
from autoexp.cli.submit import adopt
from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.flows.engine import compose as composing
from autoexp.operations import adopt as adoption
from autoexp.operations import requests
from autoexp.operations import retry as retrying
from autoexp.operations.retry import retry
from autoexp.rules.events import RequestRefused
from autoexp.session import provenance
from autoexp.session.inbox import RetryRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import claims
from tests.builders import TINY, create
from tests.fakes.slurm import Fakes
from tests.killing import killed_at

MINE = (*TINY, "cooldowns=[]", "slurm=local_cluster", "slurm.gpus_per_node=0")
JOB = """JobId=41 JobName={name}
   UserId={user}({uid}) GroupId=root(0) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Command={command}
   WorkDir=/root
   StdOut=/root/my run.log
"""

Adopt = Callable[..., int]


class Site:
    """A cluster that knows one job, 41; what it says of it can be changed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._fakes = Fakes(folder)
        self.describe()

    def describe(
        self, name: str = "my old run", command: str = "(null)", uid: int | None = None
    ) -> None:
        job = JOB.format(
            name=name, command=command, uid=os.geteuid() if uid is None else uid, user="x"
        )
        config = "Configuration data\nClusterName             = Mare\n"
        self._fakes.tell(
            "scontrol", f"case $2 in config) cat <<'.'\n{config}.\n;; *) cat <<'.'\n{job}.\n;; esac"
        )


def adopt_and_take_on(session: Path, save_dir: Path) -> None:
    """A session that has adopted the job, and has it by now."""
    assert ask(session.name, save_dir) == 0
    process_requests(session)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    return Site(tmp_path / "bin")


def ask(session: str, save_dir: Path, *overrides: str, job_id: str = "41") -> int:
    """What `autoexp adopt` does."""
    return adopt(session, job_id, str(save_dir), [*MINE, *overrides], "demo")


def process_requests(path: Path) -> None:
    with Session.hold(path) as (session, _):
        requests.process_requests(session)


def end(path: Path, verdict: Verdict = Verdict.FINISHED) -> None:
    """Have the job be over, and its attempt with it."""
    with Session.hold(path) as (session, _):
        job = session.jobs["tiny"]
        changes = {"state": "COMPLETED", "verdict": verdict}
        session.change_attempt(job, job.attempts[0], changes, verdict=verdict)


def test_a_job_is_adopted_by_one_session_until_its_record_there_is_over_or_the_session_gone(
    site: Site, tmp_path: Path
) -> None:
    root, save_dir = tmp_path / "sessions", tmp_path / "saves"
    assert ask("a1", save_dir) == 0
    assert ask("a1", save_dir) == 0, "a request may be given twice"
    for elsewhere in (save_dir, tmp_path / "other"):  # waiting in the inbox, and processed
        with pytest.raises(BadInput, match=rf"job 41 is adopted by session {root}/a1, which goes"):
            ask("a2", elsewhere)
        process_requests(root / "a1")
    with pytest.raises(BadInput, match="job 41 is adopted by session"):
        ask("a2", save_dir, "slurm.clusters=mare")
    with pytest.raises(BadInput, match="a1 has job 41 already, as tiny"):
        ask("a1", tmp_path / "other", "project.name=again")
    site.describe(name="renamed")
    with pytest.raises(BadInput, match=rf"{save_dir} is written by a job of session {root}/a1"):
        ask("a2", save_dir)
    site.describe()
    assert not (root / "a2").exists()
    assert not (tmp_path / "other").exists()

    end(root / "a1")
    assert ask("a2", save_dir) == 0
    with pytest.raises(BadInput, match=f"adopted by session {root}/a2"):
        ask("a3", save_dir)
    shutil.rmtree(root / "a2")
    assert ask("a3", save_dir) == 0


LAB = """
defaults: [{slurm: local_cluster}, {container: none}, {monitoring: basic}, _self_]
project: {name: lab}
backend:
  kind: command
  command: [train, --out, '{save_dir}', --steps, '{train_iters}']
  cooldown: {--decay-from: '{branch_iteration}'}
  saves: {folder: ckpt, name: '{iteration}', must_parse: [state.json]}
  log_line: 'step (?P<iteration>[0-9]+)'
  args: {train_iters: 200, save_interval: 50}
slurm: {gpus_per_node: 0}
cooldowns: [{at: [100], decay: {iterations: 50, shape: linear}}]
"""


def test_a_job_of_a_trainer_that_is_described_in_yaml_is_adopted(
    site: Site, tmp_path: Path
) -> None:
    del site
    config, save_dir = tmp_path / "lab.yaml", tmp_path / "saves"
    config.write_text(LAB)
    assert adopt("a1", "41", str(save_dir), [str(config)]) == 0
    process_requests(tmp_path / "sessions" / "a1")
    session = Session.load(tmp_path / "sessions" / "a1")
    trunk, branch = session.jobs.values()
    assert trunk.attempts[0].job_id == "41" and trunk.spec.save_dir == str(save_dir)
    assert trunk.spec.command == ("train", "--out", str(save_dir), "--steps", "200")
    (save_dir / "ckpt" / "100").mkdir(parents=True)
    (save_dir / "ckpt" / "100" / "state.json").write_text("{}")
    (found,) = trunk.spec.trainer.checkpoints(save_dir).complete
    assert found.iteration == 100 and branch.spec.parent == "lab"


def test_which_trainer_a_job_runs_has_to_be_said(site: Site, tmp_path: Path) -> None:
    del site
    with pytest.raises(BadInput, match="Name your configuration, or --backend"):
        adopt("a1", "41", str(tmp_path / "saves"), ["slurm=local_cluster"])
    assert not (tmp_path / "sessions").exists()


def test_of_many_sessions_that_adopt_a_job_at_once_one_gets_it(site: Site, tmp_path: Path) -> None:
    del site
    root, children = tmp_path / "sessions", []
    for n in range(4):
        child = os.fork()
        if child == 0:
            try:
                ask(f"a{n}", tmp_path / "saves")
                os._exit(0)
            except BadInput as error:
                os._exit(1 if "is adopted by" in str(error) else 2)
            finally:
                os._exit(3)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert sorted(codes) == [0, 1, 1, 1]
    assert [path.name for path in root.glob("[a-z]*")] == [f"a{codes.index(0)}"]


def test_what_cannot_be_ones_own_is_refused_before_anything_is_made(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = create(compose("demo", MINE), tmp_path / "sessions", session_id="ours")
    refusals = {
        "its name has 201 characters": {"name": "x" * 201},
        "who alone can adopt it": {"uid": 4711},
        f"was submitted by session {ours}": {"command": f"{ours}/attempts/k/batch-1.sh --now"},
        "gives no name for it": {"name": "\n"},
    }
    for words, said in refusals.items():
        site.describe(**said)  # type: ignore[arg-type]
        with pytest.raises(BadInput, match=words):
            ask("a1", tmp_path / "saves")
    for job_id in ("041", "41_", "41_01", "0", "-1", "41;ls"):
        with pytest.raises(BadInput, match="no SLURM job id"):
            ask("a1", tmp_path / "saves", job_id=job_id)
    site.describe()
    with pytest.raises(BadInput, match="9000"):
        ask("a1", tmp_path / "saves", "cooldowns=[{at: [9000], decay: {iterations: 50}}]")
    assert {path.name for path in tmp_path.iterdir()} <= {"bin", "sessions", "state"}
    assert not (tmp_path / "sessions" / "a1").exists()
    site.describe(name="x" * 200)
    with pytest.raises(BadInput, match="set XDG_STATE_HOME to a directory that you can write"):
        monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
        ask("a1", tmp_path / "saves")
    with pytest.raises(BadInput, match="/proc/nowhere: checkpoints could not be saved there"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        ask("a1", Path("/proc/nowhere"))
    assert not (tmp_path / "sessions" / "a1").exists()
    assert ask("a1", tmp_path / "saves") == 0


def test_a_folder_in_which_another_session_goes_on_writing_is_refused_and_its_mark_stays(
    site: Site, tmp_path: Path
) -> None:
    del site
    root = tmp_path / "sessions"
    outside = compose("demo", [*MINE, f"project.output_root={tmp_path}/out"])
    create(outside, root, session_id="s1")
    create(compose("demo", MINE), root, session_id="s2")
    mark = tmp_path / "out" / "s1" / claims.NAME
    before = mark.read_text()
    for save_dir, other in (
        (tmp_path / "out" / "s1", "s1"),
        (tmp_path / "out" / "s1" / "tiny" / "checkpoints", "s1"),
        (root / "s2" / "output" / "tiny" / "checkpoints", "s2"),
    ):
        with pytest.raises(BadInput, match=f"is written by a job of session {root}/{other}"):
            ask("a1", save_dir)
    assert mark.read_text() == before
    assert sorted(path.name for path in (tmp_path / "out" / "s1").iterdir()) == [claims.NAME]
    assert not (root / "a1").exists()


def test_a_session_that_was_away_while_its_job_was_adopted_by_another_is_not_taken_up_again(
    site: Site, tmp_path: Path
) -> None:
    del site
    root, save_dir = tmp_path / "sessions", tmp_path / "saves"
    adopt_and_take_on(root / "a1", save_dir)
    (root / "a1").rename(tmp_path / "away")
    adopt_and_take_on(root / "a2", save_dir)
    (tmp_path / "away").rename(root / "a1")
    with pytest.raises(BadInput, match=f"saves, is written by session {root}/a2 by now"):
        adoption.retake(Session.load(root / "a1"))
    adoption.retake(Session.load(root / "a2"))

    end(root / "a2")
    adoption.retake(Session.load(root / "a1"))
    shutil.rmtree(save_dir)
    adoption.retake(Session.load(root / "a1"))
    found = claims.holder(save_dir)
    assert found is not None and found.session == str(root / "a1")

    shutil.copytree(root / "a1", root / "copy")
    with pytest.raises(BadInput, match="this is a copy"):
        adoption.retake(Session.load(root / "copy"))


def test_a_failed_job_whose_folder_another_session_has_by_now_is_not_run_again(
    site: Site, tmp_path: Path
) -> None:
    del site
    root, save_dir = tmp_path / "sessions", tmp_path / "saves"
    adopt_and_take_on(root / "a1", save_dir)
    end(root / "a1", Verdict.FAILED)
    ask("a2", save_dir)
    with Session.hold(root / "a1") as (session, _):
        with pytest.raises(BadInput, match=rf"tiny: {save_dir} is session {root}/a2's by now"):
            retry(session, ("tiny",), "ann")
        with pytest.raises(BadInput, match=rf"tiny: {save_dir} is session {root}/a2's by now"):
            retry(session, (), "ann")
        shutil.rmtree(root / "a2")
        assert retry(session, (), "ann") == ["tiny"]


def test_a_retried_job_has_its_folder_again_which_the_next_session_is_refused(
    site: Site, tmp_path: Path
) -> None:
    root, save_dir = tmp_path / "sessions", tmp_path / "saves"
    adopt_and_take_on(root / "a1", save_dir)
    end(root / "a1", Verdict.FAILED)
    ask("a2", save_dir)
    shutil.rmtree(root / "a2")
    enqueue(root / "a1", RetryRequest(by="ann"))
    process_requests(root / "a1")
    found = claims.standing(save_dir)
    assert found is not None and found.session == str(root / "a1")
    site.describe(name="another")
    with pytest.raises(BadInput, match=rf"{save_dir} is written by a job of session {root}/a1"):
        ask("a3", save_dir)


def test_a_retry_waits_for_an_adoption_and_is_refused_what_that_one_takes(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del site
    root, save_dir = tmp_path / "sessions", tmp_path / "saves"
    adopt_and_take_on(root / "a1", save_dir)
    end(root / "a1", Verdict.FAILED)
    refuse_taken = adoption.refuse_taken

    def meanwhile(*arguments: object) -> None:
        refuse_taken(*arguments)  # type: ignore[arg-type]
        held = pytest.raises(BadInput, match="another `autoexp adopt` has held")
        with Session.hold(root / "a1") as (session, _), held:
            retry(session, ("tiny",), "ann")

    monkeypatch.setattr(adoption, "refuse_taken", meanwhile)
    monkeypatch.setattr(retrying, "_PATIENCE_S", 0.0)
    assert ask("a2", save_dir) == 0
    enqueue(root / "a1", RetryRequest(jobs=("tiny",), by="ann"))
    process_requests(root / "a1")
    session = Session.load(root / "a1")
    assert session.jobs["tiny"].verdict is Verdict.FAILED
    refused = [e.event for e in session.journal.entries if isinstance(e.event, RequestRefused)]
    assert [f"session {root}/a2's by now" in event.reason for event in refused] == [True]


def test_claims_on_jobs_go_once_no_session_has_the_job_and_no_other_goes(
    site: Site, tmp_path: Path
) -> None:
    root, marks = tmp_path / "sessions", tmp_path / "state" / "autoexp" / "adopted"

    def claimed() -> set[str]:
        return {mark.name.rpartition("-")[0] for mark in marks.iterdir() if mark.is_dir()}

    for job_id in ("41", "42", "43", "44", "45", "46"):
        assert ask(f"a{job_id}", tmp_path / job_id, job_id=job_id) == 0
        if job_id != "41":  # that one waits in the inbox
            process_requests(root / f"a{job_id}")
    end(root / "a42")
    (root / "a43").rename(tmp_path / "away")
    shutil.rmtree(root / "a44")
    for mark in marks.glob("44-*"):
        os.utime(mark, (0, 0))
    (root / "a45" / "session.json").write_text("{")
    (marks / "47-0123456789abcdef").mkdir()  # of one that was killed
    with Session.hold(root / "a46") as (session, _):  # between two attempts
        job = session.jobs["tiny"]
        session.change_attempt(
            job, job.attempts[0], {"state": "COMPLETED", "verdict": Verdict.CONTINUE}
        )
    assert sessions_remove("a46", yes=True) == 0
    assert claimed() == {"41", "43", "45"}
    assert ask("a48", tmp_path / "48", job_id="48") == 0
    assert claimed() == {"41", "43", "45", "48"}
    (tmp_path / "away").rename(root / "a43")
    for job_id in ("41", "43", "45"):
        with pytest.raises(BadInput, match=f"job {job_id} is adopted by session {root}/a{job_id}"):
            ask("other", tmp_path / "other", job_id=job_id)


def test_wherever_an_adoption_is_killed_the_same_again_ends_right_and_nobody_is_locked_out(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del site
    root = tmp_path / "sessions"
    wanted = compose("demo", [*MINE, f"project.output_root={tmp_path}/out"])
    monkeypatch.setattr(composing, "compose_words", lambda _: wanted)
    monkeypatch.setattr(provenance, "provenance", lambda: None)
    for n in itertools.count(1):
        again, other = f"1{n:03}", f"2{n:03}"
        for job_id in (again, other):
            killed = killed_at(n, lambda j=job_id: ask(f"a{j}", tmp_path / j, job_id=j))  # type: ignore[misc]

        assert ask(f"a{again}", tmp_path / again, job_id=again) == 0
        process_requests(root / f"a{again}")
        (job,) = Session.load(root / f"a{again}").jobs.values()
        assert [attempt.job_id for attempt in job.attempts] == [again]
        with pytest.raises(BadInput, match="is adopted by session"):
            ask("b", tmp_path / again, job_id=again)

        if list((root / f"a{other}" / "inbox").glob("*.json")):
            with pytest.raises(BadInput, match="is adopted by session"):
                ask(f"b{other}", tmp_path / other, job_id=other)
        else:
            assert ask(f"b{other}", tmp_path / other, job_id=other) == 0
            with pytest.raises(BadInput, match="is adopted by session"):
                ask(f"a{other}", tmp_path / other, job_id=other)
        if not killed:
            break
    assert n > 20


def test_wherever_a_retry_of_an_adopted_job_is_killed_it_is_done_once_or_leaves_the_folder(
    site: Site, tmp_path: Path
) -> None:
    del site
    root = tmp_path / "sessions"
    for n in itertools.count(1):
        again, other = f"1{n:03}", f"2{n:03}"
        for job_id in (again, other):
            session = root / f"a{job_id}"
            assert ask(session.name, tmp_path / job_id, job_id=job_id) == 0
            process_requests(session)
            end(session, Verdict.FAILED)
            enqueue(session, RetryRequest(by="ann"))
            killed = killed_at(n, partial(process_requests, session))

        process_requests(root / f"a{again}")
        (job,) = Session.load(root / f"a{again}").jobs.values()
        assert (job.verdict, job.retries) == (None, 1)
        found = claims.standing(tmp_path / again)
        assert found is not None and found.session == str(root / f"a{again}")

        retried = Session.load(root / f"a{other}").jobs["tiny"].verdict is None
        if retried:
            with pytest.raises(BadInput, match="is adopted by session"):
                ask("b", tmp_path / other, job_id=other)
        else:
            assert ask(f"b{other}", tmp_path / other, job_id=other) == 0
            process_requests(root / f"a{other}")
            assert Session.load(root / f"a{other}").jobs["tiny"].verdict is Verdict.FAILED
        if not killed:
            break
    assert n > 5
