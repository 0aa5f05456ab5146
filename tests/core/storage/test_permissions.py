"""Who may read a session, and that what another user leaves there does nothing."""

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autoexp import payload
from autoexp.cli import requests as asking
from autoexp.cli import run, sessions, status
from autoexp.config.compose import Composed
from autoexp.errors import BadInput
from autoexp.operations import requests
from autoexp.schedulers.base import SubmitOptions, prepare, submit_once
from autoexp.schedulers.local import LocalScheduler
from autoexp.session import find, remove
from autoexp.session.inbox import enqueue
from autoexp.session.session import Session
from autoexp.states import Verdict
from autoexp.storage import permissions
from tests.builders import create
from tests.core.session.requests import cancel, job, submit
from tests.processes import Job, JobOf, WaitFor

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
UMASKS = [0, 0o002, 0o022, 0o077]


@pytest.fixture(params=UMASKS, ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def open_root(tmp_path: Path) -> Path:
    """A sessions root where everybody may write, as on a project's scratch."""
    for above in (tmp_path, *tmp_path.parents):
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o755)
    root = tmp_path / "sessions"
    root.mkdir()
    root.chmod(0o777)
    return root


def as_another(*command: str, group: int = NOBODY) -> "subprocess.CompletedProcess[str]":
    """Run a command as somebody else on this machine."""
    user = ["setpriv", f"--reuid={NOBODY}", f"--regid={group}", "--clear-groups"]
    return subprocess.run([*user, *command], capture_output=True, text=True)


def shared(composed: Composed, with_whom: str) -> Composed:
    experiment = composed.experiment
    project = experiment.project.model_copy(update={"share": with_whom})
    return composed._replace(experiment=experiment.model_copy(update={"project": project}))


def used(root: Path, composed: Composed) -> Path:
    """A session in which everything has been made that is made before a job runs."""
    path = create(composed, root, session_id="s1", flow_run_id="run")
    enqueue(path, cancel("tiny"))
    with Session.hold(path) as (session, _):
        find.take_up(path, ["other"])
        trunk = next(iter(session.jobs.values()))
        session.log_progress(trunk, ["1,2.0,0.1,3\n"])
        requests.process_requests(session)
    return path


def test_a_session_is_its_owners_alone_under_any_umask(
    tmp_path: Path, composed: Composed, umask: int
) -> None:
    root = tmp_path / "sessions"
    path = used(root, composed)
    for found in [path, *path.rglob("*"), *root.glob(".flow-runs-*")]:
        assert stat.S_IMODE(found.stat().st_mode) & 0o077 == 0, found
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE(root.stat().st_mode) == 0o777 & ~umask, "the user's own"


def test_a_shared_session_is_readable_and_never_writable_for_its_group_under_any_umask(
    tmp_path: Path, composed: Composed, umask: int
) -> None:
    path = used(tmp_path / "sessions", shared(composed, "group"))
    for found in [path, *path.rglob("*")]:
        wanted = 0o750 if found.is_dir() else 0o640
        assert stat.S_IMODE(found.stat().st_mode) == wanted, found


def test_what_a_job_leaves_is_its_owners_and_what_its_trainer_makes_follows_the_umask(
    tmp_path: Path, job_of: JobOf, wait_for: WaitFor, umask: int
) -> None:
    made: Job = job_of("sh", "-c", "echo said; touch trained")
    tmp_path.chmod(0o700)
    scheduler = LocalScheduler()
    prepare(made.ref, made.spec, made.attempt, scheduler.payload_spec(made.spec, made.attempt))
    request = SubmitOptions(made.ref.name, made.attempt.log, made.spec.machine)
    submit_once(made.ref, request, scheduler, fresh=True)
    wait_for(lambda: (made.directory / "exit.json").exists(), "the end")

    for found in [made.directory, *made.directory.iterdir()]:
        assert stat.S_IMODE(found.stat().st_mode) & 0o077 == 0, found
    assert {"claim", "started.json", "job.log", "controller.log"} <= {
        found.name for found in made.directory.iterdir()
    }
    assert stat.S_IMODE((made.output / ".owner").stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE((made.output / "trained").stat().st_mode) == 0o666 & ~umask
    assert not list(made.directory.glob("*.pkl")), "nothing is there that a job would unpickle"


@as_root
@pytest.mark.parametrize("with_whom", ["owner", "group"])
def test_another_user_reads_nothing_and_writes_nothing(
    open_root: Path, composed: Composed, umask: int, with_whom: str
) -> None:
    path = used(open_root, shared(composed, with_whom))
    files = [str(found) for found in path.rglob("*") if found.is_file()]
    for folder in (path, path / "inbox", path / "attempts"):
        assert as_another("touch", str(folder / "x.json")).returncode != 0
        assert as_another("touch", str(folder / "x.json"), group=0).returncode != 0
    assert as_another("head", "-c1", *files).stdout.replace("\n", "") == ""
    of_group = as_another("cat", str(path / "session.json"), group=os.getegid())
    assert (of_group.returncode == 0) == (with_whom == "group")


@as_root
def test_a_request_of_another_user_is_set_aside_with_his_name(
    session_path: Path, tmp_path: Path
) -> None:
    left = session_path / "inbox"
    (left / "1-cancel.json").write_text(cancel().model_dump_json())
    (left / "2-submit.json").write_text(submit(job("evil")).model_dump_json())
    os.mkfifo(left / "3-pipe.json")
    (left / "4-link.json").symlink_to(left / "1-cancel.json")
    for found in left.iterdir():
        os.chown(found, NOBODY, NOBODY, follow_symlinks=False)
    mine = tmp_path / "mine.json"
    mine.write_text(cancel("tiny").model_dump_json())
    (left / "5-link.json").symlink_to(mine)

    with Session.hold(session_path) as (session, _):
        notes = requests.process_requests(session)

        assert [note.count("left by another user (nobody)") for note in notes] == [1, 1, 1, 1, 0]
        assert notes[4].endswith("5-link.json cannot be read: a link")
        assert not any(found.cancel_requested for found in session.jobs.values())
        assert "evil" not in session.jobs
    assert all(found.suffix == ".refused" for found in left.iterdir())


@as_root
@pytest.mark.parametrize(
    "name",
    [".", "session.json", "jobs", "jobs/tiny.json", "actions/a.json", "attempts/k", "attempts"],
)
def test_a_session_with_records_of_another_user_is_not_taken_up(
    session_path: Path, name: str
) -> None:
    found = session_path / name
    if not found.exists():
        found.write_text("{}")
    os.chown(found, NOBODY, NOBODY)
    with (
        pytest.raises(BadInput, match=r"nobody.* would run as root"),
        Session.hold(session_path),
    ):
        pytest.fail("taken up")
    os.chown(found, 0, 0)
    remove.unmark(session_path)


def everything(path: Path) -> dict[Path, tuple[int, int]]:
    """All files below a path, as they are."""
    return {found: (found.lstat().st_mtime_ns, found.lstat().st_size) for found in path.rglob("*")}


ACTS: dict[str, Callable[[str], object]] = {
    "resume": run.resume,
    "cancel": sessions.cancel,
    "cancel a job": lambda name: sessions.cancel(name, ["tiny"]),
    "retry": asking.retry,
    "retry a job": lambda name: asking.retry(name, ["tiny"]),
    "budget": lambda name: asking.budget(name, 5.0),
    "remove": sessions.sessions_remove,
    "remove and cancel": lambda name: sessions.sessions_remove(name, True),
    "request": lambda name: enqueue(sessions.sessions_root() / name, cancel("tiny")),
}


@as_root
@pytest.mark.parametrize("act", ACTS)
def test_what_is_done_to_another_users_session_is_refused_with_his_name_and_changes_nothing(
    session_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session_path.parent))
    with Session.hold(session_path) as (session, _):
        job = session.jobs["tiny"]
        session.change_job(job, verdict=Verdict.FAILED)
    for found in (session_path, *session_path.rglob("*")):
        os.chown(found, NOBODY, NOBODY)
    before = everything(session_path)
    with pytest.raises(BadInput, match=r"is nobody's session.* nobody alone can act on it"):
        ACTS[act](session_path.name)
    assert everything(session_path) == before


@as_root
def test_another_users_session_is_shown_with_his_name_and_is_nobodys_newest(
    session_path: Path,
    composed: Composed,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(session_path.parent))
    theirs = create(composed, session_path.parent, session_id="s2")
    assert find.session_path(None) == theirs
    for found in (theirs, *theirs.rglob("*")):
        os.chown(found, NOBODY, NOBODY)
    assert find.session_path(None) == session_path
    assert sessions.sessions_list() == 0
    assert [line.endswith("(nobody's)") for line in capsys.readouterr().out.splitlines()] == [
        False,
        True,
    ]
    assert status.status("s2") == 0
    assert f"{theirs}: is nobody's session" in capsys.readouterr().err
    assert status.status("s1") == 0
    assert capsys.readouterr().err == ""


def test_what_others_could_write_is_named_with_what_to_do(session_path: Path) -> None:
    assert permissions.writable_by_others(session_path) is None
    (session_path / "inbox").chmod(0o770)
    (session_path / "jobs" / "tiny.json").chmod(0o666)
    said = permissions.writable_by_others(session_path) or ""
    assert str(session_path / "inbox") in said
    assert str(session_path / "jobs" / "tiny.json") in said
    assert said.endswith(f"chmod -R go-w {session_path}")
    subprocess.run(said.rpartition(": ")[2].split(), check=True)
    assert permissions.writable_by_others(session_path) is None


@as_root
def test_no_deletion_reaches_outside_of_a_root_that_everybody_may_write(
    open_root: Path, composed: Composed, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    (victim / "thesis").mkdir(parents=True)
    (victim / "thesis" / "chapter1").touch()
    kept = create(composed, open_root, session_id="kept")
    for name in (".removed-x", f".new-{os.uname().nodename}-{2**22 + 1}-x"):
        assert as_another("ln", "-s", str(victim), str(open_root / name)).returncode == 0
    hidden = open_root / ".removed-kept"
    assert as_another("mv", str(kept), str(hidden)).returncode == 0
    real = open_root / ".removed-y"
    real.mkdir(mode=0o1700)
    (real / "jobs").symlink_to(victim)

    path = create(composed, open_root, session_id="s")
    remove.remove(path)

    assert (victim / "thesis" / "chapter1").exists()
    assert (hidden / "session.json").exists()
    assert not real.exists()


def test_a_file_that_is_opened_again_keeps_the_mode_that_its_owner_gave_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.close(payload.open_own(path, os.O_WRONLY | os.O_APPEND))
    path.chmod(0o644)
    os.close(payload.open_own(path, os.O_WRONLY | os.O_APPEND))
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
