"""`autoexp server`: PostgreSQL and Prefect in user space, and many sessions on it."""

import asyncio
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from autoexp.errors import BadInput
from autoexp.flows.deployment import postgres
from autoexp.flows.deployment.postgres import Postgres
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.sessions import Make
from tests.patience import PATIENCE_S
from tests.sources import ROOT

AUTOEXP = f"{sys.executable} -m autoexp"


class Shell:
    """Runs scripts as one user who is not root, with a Prefect directory of its own."""

    def __init__(self, home: Path, root: Path) -> None:
        self.home = home
        self._environment = {
            **{name: value for name, value in os.environ.items() if "PREFECT" not in name},
            "PREFECT_HOME": str(home / "p"),
            "AUTOEXP_SESSIONS": str(root),
        }

    def run(self, script: str, patience_s: float = PATIENCE_S) -> str:
        """What a script prints; it ends at the first command that fails.

        What it has started it ends itself: from another namespace nobody can tell whose that is.
        """
        answer = subprocess.run(
            [*_as_no_root(), "sh", "-euc", f"trap '{AUTOEXP} server stop >&2' EXIT\n{script}"],
            env=self._environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience_s,
        )
        assert answer.returncode == 0, answer.stdout + answer.stderr
        return answer.stdout


def _as_no_root() -> list[str]:
    """PostgreSQL refuses to be root: in a namespace of its own root is somebody else."""
    if os.geteuid() != 0:
        return []
    user = next((each for each in pwd.getpwall() if each.pw_uid), None)
    assert user is not None
    command = ["unshare", "--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"]).returncode != 0:
        pytest.skip("no user namespace can be made here")
    return command


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if not any(map(postgres._major, postgres._folders())):
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    # A socket's path has 107 characters at most.
    home = Path(tempfile.mkdtemp(prefix="autoexp-pg-"))
    shell = Shell(home, tmp_path / "sessions")
    try:
        yield shell
    finally:
        shutil.rmtree(home)


START_TWICE = f"""
{AUTOEXP} server start
{AUTOEXP} server status
{AUTOEXP} server start | grep "up already"
echo "--- readable by others:"; find "$PREFECT_HOME" -perm /077
echo "--- listening:"; grep "$PREFECT_HOME" /proc/net/unix | grep -c " 00010000 "
psql -h "$PREFECT_HOME/postgres/socket" -d prefect -Atc "SHOW port; SHOW listen_addresses"
ps -e -o args | grep -c "^[^ ]*postgres -D $PREFECT_HOME" || true
kill -9 $(cat "$PREFECT_HOME/server.pid")
{AUTOEXP} server status && exit 1
{AUTOEXP} server start
{AUTOEXP} server stop
echo "--- left:"; ls "$PREFECT_HOME"/server.pid "$PREFECT_HOME"/postgres/socket 2>/dev/null || true
ps -e -o args | grep "$PREFECT_HOME" | grep -v grep || true
echo "--- status:"; {AUTOEXP} server status || true
"""


def test_a_server_is_started_once_is_its_owners_alone_and_leaves_nothing(shell: Shell) -> None:
    said = shell.run(START_TWICE, 2 * PATIENCE_S)
    _, open_to_others, listening, left, status = said.split("--- ")
    assert "up already: http://127.0.0.1:" in said
    assert "connections, in " in said and "answers" in said
    assert open_to_others.splitlines()[1:] == [], said
    # A socket of the folder, no address, and one server.
    assert listening.splitlines()[1:5] == ["1", "5432", "", "1"], said
    assert "Prefect: not up" in listening
    assert "stopped Prefect's server" in listening and "stopped PostgreSQL" in listening
    assert left.splitlines()[1:] == [], said
    assert "PostgreSQL: not up\nPrefect: not up" in status


CROWD = f"""
{AUTOEXP} server start
export PREFECT_PROFILE=autoexp
{sys.executable} -m tests.flows.deployment.crowd SESSIONS 2>&1
{AUTOEXP} server status
psql -h "$PREFECT_HOME/postgres/socket" -d prefect -Atc "
  SELECT state_type, count(*) FROM flow_run GROUP BY 1"
"""


@pytest.mark.slow
def test_twenty_sessions_at_once_reach_their_end_on_one_server(
    shell: Shell, make_session: Make
) -> None:
    sessions = [make_session("slurm.max_jobs=1") for _ in range(20)]
    said = shell.run(CROWD.replace("SESSIONS", " ".join(map(str, sessions))), 20 * PATIENCE_S)
    print(said)
    for path in sessions:
        jobs = Session.load(path).jobs.values()
        assert [(job.verdict, len(job.attempts)) for job in jobs] == [(Verdict.FINISHED, 1)] * 3
    # The session, its training and two cooldowns, each, and none that has not ended.
    assert said.splitlines()[-1] == "COMPLETED|80", said
    assert "Prefect did not take" not in said and "| ERROR" not in said, said


def test_root_is_told_who_may_start_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(BadInput, match=r"does not run as root.*runuser"):
        asyncio.run(Postgres(tmp_path / "postgres").start())
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_too_long_for_a_socket_and_a_missing_version_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match=r"too long for the path of a socket.*PREFECT_HOME"):
        asyncio.run(Postgres(tmp_path / ("x" * 100)).start())
    assert list(tmp_path.iterdir()) == []

    made = Postgres(tmp_path / "of-another-version")
    (made.folder / "data").mkdir(parents=True)
    (made.folder / "data" / "PG_VERSION").write_text("9\n")
    with pytest.raises(BadInput, match=r"PostgreSQL 9, of which .* is not here.*postgresql-9"):
        made.stop()
