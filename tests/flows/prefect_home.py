"""Prefect directories for servers that tests start, with a database that is made once for all.

A server with a new directory makes its database in dozens of steps, and registers in it each type
of block that Prefect knows, which costs more CPU than the test that started it.
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

# What a server does before it answers.
_MAKE = """
import asyncio

import prefect.server.api.server
from prefect.plugins import load_prefect_collections
from prefect.server.database import provide_database_interface
from prefect.server.models.block_registration import run_block_auto_registration


async def make():
    database = provide_database_interface()
    await database.create_db()
    async with await database.session() as session:
        await run_block_auto_registration(session=session)


load_prefect_collections()
asyncio.run(make())
"""


def prefect_home(folder: Path) -> Path:
    """The Prefect directory below `folder`, made with a copy of the database if it is new."""
    home = folder / "prefect"
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        copy_database(home / "prefect.db")
    return home


def copy_database(file: Path) -> None:
    """Make a file with a copy of the database, as a server has it that has just begun."""
    with closing(sqlite3.connect(_database())) as source, closing(sqlite3.connect(file)) as copy:
        source.backup(copy)


def _database() -> Path:
    _TEMPLATE.mkdir(mode=0o700, exist_ok=True)
    made = _TEMPLATE / "prefect.db"
    with (_TEMPLATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (_TEMPLATE / "done").exists():
            environment = {**os.environ, "PREFECT_HOME": str(_TEMPLATE)}
            environment.pop("PREFECT_API_URL", None)
            subprocess.run([sys.executable, "-c", _MAKE], env=environment, check=True)
            (_TEMPLATE / "done").touch()
    return made
