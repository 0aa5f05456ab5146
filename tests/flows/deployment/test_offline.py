"""`autoexp deploy` on a machine without a network, and a server that dies while it starts."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.settings import PREFECT_HOME, temporary_settings

from autoexp.errors import AutoexpError
from autoexp.flows.deployment import deploy, server, server_checks
from tests.flows.prefect_home import prefect_home
from tests.patience import PATIENCE_S

# A network namespace of its own: no route but loopback. The server is ended with its log behind.
SCRIPT = """
ip link set lo up || exit 77
"$@"
code=$?
pid=$(cat "$PREFECT_HOME/server.pid") && ps -o sid= -p "$pid" && echo "pid $pid" && kill "$pid"
exit $code
"""


def without_network() -> list[str]:
    found = shutil.which("unshare") and shutil.which("ip")
    command = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    if not found or subprocess.run([*command, "true"], capture_output=True).returncode != 0:
        pytest.skip("no network namespace can be made here")
    return command


@pytest.mark.prefect
def test_deploy_works_in_a_project_of_ones_own_where_there_is_no_network_but_loopback(
    tmp_path: Path,
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    home = prefect_home(tmp_path)
    (home / "server.pid").write_text("999999999")  # of a server that was killed
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    answer = subprocess.run(
        [*without_network(), "sh", "-c", SCRIPT, "sh", sys.executable, "-m", "autoexp", "deploy"],
        env={**kept, "PREFECT_HOME": str(home)},
        cwd=project,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert f"deployed. Runs work in {project}." in answer.stdout
    assert "done: autoexp automations install" in answer.stdout
    *_, session, pid = answer.stdout.splitlines()
    assert f"pid {session.strip()}" == pid != "pid 999999999"  # it leads a session of its own
    assert (home / "autoexp-server.log").exists()


@pytest.mark.prefect
def test_a_server_that_dies_as_it_starts_is_told_with_the_end_of_its_log_and_leaves_no_pid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "settings", lambda *_: {"PREFECT_SERVER_API_AUTH_STRING": ""})
    monkeypatch.delenv("PREFECT_API_AUTH_STRING", raising=False)
    bound = server.socket_of_its_own()
    port = bound.getsockname()[1]
    bound.close()
    with (
        temporary_settings({PREFECT_HOME: tmp_path}),
        pytest.raises(AutoexpError) as died,
    ):
        deploy.start_at(f"http://127.0.0.1:{port}/api", "a:b")
    said = str(died.value)
    assert "did not start (exit 1); its log ends:" in said
    assert "this server needs a lock" in said
    assert said.endswith(f"read {tmp_path / 'autoexp-server.log'}")
    assert not (tmp_path / "server.pid").exists()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:4200/api", "127.0.0.1"),
        ("http://127.0.0.2:4200/api", "127.0.0.2"),
        ("http://[::1]:4200/api", "::1"),
    ],
)
def test_the_server_listens_at_the_address_of_prefect_api_url(url: str, address: str) -> None:
    assert server_checks.host_of(url) == address
    try:
        bound = server.bound_socket(0, server_checks.host_of(url))
    except OSError:
        assert ":" in address  # no IPv6 here
        return
    with bound:
        assert bound.getsockname()[0] == address
