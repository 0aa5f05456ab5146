"""Prefect directories for servers that tests start, with a database that is made once for all.

A server with a new directory makes its database in dozens of steps, which costs more CPU than the
test that started it.
"""

import fcntl
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

# tests/conftest.py chooses it before anything else, for all workers of a run.
_TEMPLATE = Path(os.environ["PREFECT_HOME"]) / "template"


def prefect_home(folder: Path) -> Path:
    """The Prefect directory below `folder`, made with a copy of the database if it is new."""
    home = folder / "prefect"
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        with (
            closing(sqlite3.connect(_database())) as source,
            closing(sqlite3.connect(home / "prefect.db")) as copy,
        ):
            source.backup(copy)
    return home


def _database() -> Path:
    _TEMPLATE.mkdir(mode=0o700, exist_ok=True)
    made = _TEMPLATE / "prefect.db"
    with (_TEMPLATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_TEMPLATE / "done").exists():
            environment = {**os.environ, "PREFECT_HOME": str(_TEMPLATE)}
            environment.pop("PREFECT_API_URL", None)
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"]
            subprocess.run(command, env=environment, check=True, capture_output=True)
            (_TEMPLATE / "done").touch()
    return made
