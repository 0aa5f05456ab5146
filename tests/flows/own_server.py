"""A Prefect server of a test's own, behind a lock."""

import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autoexp.flows.deployment import server
from tests.patience import PATIENCE_S


class Own:
    """A Prefect server of the test's own, which it may end, or take the database from."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.database = home / "prefect.db"
        self.login = login = server.new_auth_string()
        patch.setenv("PREFECT_HOME", str(home))
        with server.bound_socket(0) as bound:
            self.url = url = f"http://127.0.0.1:{bound.getsockname()[1]}/api"
            patch.setenv("PREFECT_API_URL", url)
            patch.setenv("PREFECT_API_AUTH_STRING", login)
            self.process = server.start_server(bound, login, home / "log")
        server.await_answer(lambda: None, url, login, "the server", home / "log")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wipe(self) -> None:
        """Empty each table of the database, as somebody does who cleans up with SQL."""
        with closing(sqlite3.connect(self.database, timeout=PATIENCE_S)) as database:
            found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in found.fetchall():
                if table != "alembic_version" and not table.startswith("sqlite_"):
                    database.execute(f'DELETE FROM "{table}"')
            database.commit()
            assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (0,)
