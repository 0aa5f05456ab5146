"""A Prefect server behind a lock.

    python -m autoexp.flows.deployment.serve [SOCKET_FD [STARTER_FD]]

The socket comes as a file descriptor from whoever starts this: between a port's choice and its use
nobody else can take it. Without one it is the port of Prefect's settings, as under systemd.
With a pipe to whoever started it, the server stands still while nobody asks it anything.
The authentication string comes in PREFECT_SERVER_API_AUTH_STRING, never on the command line.
"""

import asyncio
import os
import socket
import stat
import sys
import traceback
from contextlib import suppress
from pathlib import Path

from autoexp.flows.concurrency import memory
from autoexp.storage import processes

with processes.without_collections():
    import uvicorn
    from prefect.server.api.server import create_app
    from prefect.server.database import provide_database_interface
    from prefect.settings import (
        PREFECT_API_DATABASE_MIGRATE_ON_START,
        PREFECT_HOME,
        PREFECT_SERVER_API_AUTH_STRING,
        PREFECT_SERVER_API_KEEPALIVE_TIMEOUT,
        PREFECT_SERVER_API_PORT,
        PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE,
        PREFECT_SERVER_LOGGING_LEVEL,
        temporary_settings,
    )

    from autoexp.flows.deployment.dormancy import Dormancy
    from autoexp.flows.deployment.server import bound_socket, end_with_parent
    from autoexp.flows.deployment.server_lock import App, Lock

_LEASES = "prefect.server.concurrency.lease_storage.filesystem"
# Parameters of runs, results, the key of what blocks keep secret, passwords.
_PRIVATE = ("prefect.db", "prefect.db-wal", "prefect.db-shm", "profiles.toml", "storage")


def main(descriptor: int | None = None, starter: int | None = None) -> None:
    """Serve until a signal comes."""
    auth_string = PREFECT_SERVER_API_AUTH_STRING.value()
    if not auth_string:
        raise SystemExit("PREFECT_SERVER_API_AUTH_STRING is not set: this server needs a lock")
    if descriptor is None:
        bound = bound_socket(PREFECT_SERVER_API_PORT.value())
    else:
        bound = socket.socket(fileno=descriptor)
    app: App = create_app(final=True)
    # From here on files are written, and nobody else is to read what stands in the database.
    os.umask(0o077)
    _take_from_others(Path(PREFECT_HOME.value()))
    memory.use_one_arena()
    if PREFECT_API_DATABASE_MIGRATE_ON_START.value():
        _migrate()
    dormancy = Dormancy(app, bound.getsockname()[1], starter) if starter is not None else None
    config = uvicorn.Config(
        Lock(dormancy or app, auth_string),
        # A connection that is kept open, and may bring a request, keeps the server awake.
        timeout_keep_alive=1 if dormancy else PREFECT_SERVER_API_KEEPALIVE_TIMEOUT.value(),
        log_level=PREFECT_SERVER_LOGGING_LEVEL.value().lower(),
        callback_notify=dormancy.stop_when_quiet if dormancy else None,
        timeout_notify=1,
    )
    # In memory, Prefect's default, they are lost with the server: their slots would stay taken.
    leases = {PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE: _LEASES}
    with temporary_settings({PREFECT_API_DATABASE_MIGRATE_ON_START: False}, set_defaults=leases):
        uvicorn.Server(config).run(sockets=[bound])


def _migrate() -> None:
    """Bring the database up to date, in a process of its own.

    What that takes for a moment, a fifth of the server's memory, would stay with it.
    """
    child = os.fork()
    if child == 0:
        end_with_parent()
        status = 1
        try:
            asyncio.run(provide_database_interface().create_db())
            status = 0
        except BaseException:
            # Into the server's log, where its starter looks for the reason.
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise SystemExit("the database could not be brought up to date: see above")


def _take_from_others(home: Path) -> None:
    """Remove others' access to the files of earlier servers in Prefect's home."""
    for name in _PRIVATE:
        with suppress(OSError):  # it is not there, or somebody else's
            path = home / name
            path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
