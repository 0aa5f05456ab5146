"""A Prefect server on PostgreSQL for a group: both are brought up, and ended, in user space.

Nothing is noted of what runs: the server's own environment, which its owner alone can read, says
which database it is of and where it answers.
"""

import asyncio
import os
import signal
import time
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_SERVER_API_PORT, load_profiles

from autoexp.errors import AutoexpError
from autoexp.flows.deployment import deploy, sockets
from autoexp.flows.deployment.postgres import Postgres
from autoexp.flows.deployment.server import new_auth_string
from autoexp.flows.deployment.server_checks import (
    HOST,
    is_local,
    port_of,
    problem,
    refuse_strangers,
)
from autoexp.reports.terminal import say
from autoexp.storage import locks
from autoexp.storage.processes import identity

_DATABASE = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
# Below the kernel's own choice of ports, which begins at 32768.
_FIRST_PORT, _PORTS = 20000, 10000
_PATIENCE_S = 300.0
_STOPS_WITHIN_S = 30.0


class _Running(NamedTuple):
    """A Prefect server of this database."""

    pid: int
    url: str


def start() -> None:
    """Start PostgreSQL and Prefect's server on it; what is up stays up."""
    postgres = _postgres()
    postgres.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(postgres):
        if (running := _running(postgres)) is not None and postgres.pid is not None:
            say(f"up already: {running.url.removesuffix('/api')} (pid {running.pid})")
            return
        if running is not None:  # its database is gone from under it
            _end(running.pid)
        url = _url()
        refuse_strangers(url)
        if sockets.listeners(port_of(url)):
            raise AutoexpError(
                f"port {port_of(url)} is taken: by a server on SQLite, `prefect server stop` ends "
                "it; else choose another port: `PREFECT_SERVER_API_PORT=PORT autoexp server start`"
            )
        asyncio.run(postgres.start())
        say(f"PostgreSQL is up (pid {postgres.pid}), with its files in {postgres.folder}")
        auth_string = deploy.known_auth_string(url) or new_auth_string()
        deploy.save_profile(url, auth_string)
        try:
            deploy.start_at(url, auth_string, {_DATABASE: postgres.url})
        except BaseException:
            if (late := _running(postgres)) is not None:
                _end(late.pid)
            postgres.stop()
            raise
    address, profiles = url.removesuffix("/api"), deploy.profiles_path()
    say(f"up: {address}; its login is in {profiles} (for you alone)")
    say(f"  export PREFECT_PROFILE={deploy.PROFILE}\n  autoexp deploy")


def stop() -> None:
    """Stop both; the database's files stay."""
    postgres = _postgres()
    if not postgres.folder.is_dir():
        say("no server was started here")
        return
    with _alone(postgres):
        if (running := _running(postgres)) is not None:
            _end(running.pid)
            _pid_file().unlink(missing_ok=True)
            say(f"stopped Prefect's server (pid {running.pid})")
        pid = postgres.pid
        postgres.stop()
        say(f"stopped PostgreSQL (pid {pid})" if pid else "PostgreSQL was not up")
    say(f"the database stays in {postgres.folder}")


def status() -> bool:
    """Say what is up; True if both are, and answer."""
    postgres = _postgres()
    running, pid = _running(postgres), postgres.pid
    if pid is None:
        say(f"PostgreSQL: not up{'' if postgres.is_made else ', and has no files yet'}")
    else:
        size, connections = asyncio.run(postgres.size())
        say(
            f"PostgreSQL: up (pid {pid}), {size / 2**20:.0f} MiB, {connections} connections, "
            f"in {postgres.folder}"
        )
    if running is None:
        say("Prefect: not up")
        return False
    wrong = problem(running.url, deploy.known_auth_string(running.url))
    answer = "answers" if wrong is None else wrong
    say(f"Prefect: up (pid {running.pid}), {running.url.removesuffix('/api')}, {answer}")
    return pid is not None and wrong is None


def _postgres() -> Postgres:
    return Postgres(Path(PREFECT_HOME.value()).absolute() / "postgres")


def _alone(postgres: Postgres) -> AbstractContextManager[None]:
    return locks.exclusively(postgres.folder / "lock", _PATIENCE_S)


def _url() -> str:
    """Where the server is to answer: as set, else as before, else at a port of this user's own."""
    if url := PREFECT_API_URL.value():
        if not is_local(url):
            raise AutoexpError(
                f"PREFECT_API_URL is {url}, which is not this machine; unset it, or set the "
                "address that the server is to have here"
            )
        return str(url)
    if "PREFECT_SERVER_API_PORT" not in os.environ:
        known = load_profiles(include_defaults=False).profiles_by_name.get(deploy.PROFILE)
        before = str(known.settings.get(PREFECT_API_URL) or "") if known else ""
        if before and is_local(before):
            return before
        return f"http://{HOST}:{_FIRST_PORT + os.geteuid() % _PORTS}/api"
    return f"http://{HOST}:{PREFECT_SERVER_API_PORT.value()}/api"


def _pid_file() -> Path:
    return Path(PREFECT_HOME.value()) / "server.pid"


def _running(postgres: Postgres) -> _Running | None:
    """Prefect's server on this database, as its own environment says; None: there is none."""
    with suppress(OSError, ValueError):
        pid = int(_pid_file().read_text())
        words = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        variables = dict(word.split("=", 1) for word in words if "=" in word)
        if variables.get(_DATABASE) == postgres.url:
            return _Running(pid, variables["PREFECT_API_URL"])
    return None


def _end(pid: int) -> None:
    """End a process, by force where it takes too long, and wait for it."""
    deadline = time.monotonic() + _STOPS_WITHIN_S
    signum = signal.SIGTERM
    with suppress(ProcessLookupError):
        while identity(pid):
            os.kill(pid, signum)
            while identity(pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            signum, deadline = signal.SIGKILL, time.monotonic() + _STOPS_WITHIN_S
