"""A Prefect server for all flow tests, and small sessions that run in seconds."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_BLOCKS_REGISTER_ON_START,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)
from prefect.testing.utilities import prefect_test_harness

from autoexp.config.compose import compose
from autoexp.flows.deployment import server
from tests.builders import create
from tests.flows.prefect_home import copy_database
from tests.flows.sessions import BRANCHES, SMALL, Make, end


@pytest.fixture(scope="session", autouse=True)
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One server for the whole run: it takes many seconds to start.

    Its database is a copy of one that has all that a server makes at its first start.
    """
    os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    # Every client of ours has to bring it.
    auth_string = server.new_auth_string()
    locked = {PREFECT_API_AUTH_STRING: auth_string, PREFECT_SERVER_API_AUTH_STRING: auth_string}
    made = {**locked, PREFECT_API_BLOCKS_REGISTER_ON_START: False}
    folder = tmp_path_factory.mktemp("server")
    copy_database(folder / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        # Where the harness keeps its database, which it finds there.
        patch.setattr("prefect.testing.utilities.mkdtemp", lambda: str(folder))
        with temporary_settings(made), prefect_test_harness(server_startup_timeout=600):
            # For the processes that tests start, too.
            patch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
            patch.setenv("PREFECT_API_AUTH_STRING", auth_string)
            yield


@pytest.fixture
def make_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Creates small sessions below a root of their own; their jobs end with the test."""
    root = tmp_path / "sessions"
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(root))

    def make(*overrides: str) -> Path:
        return create(compose("demo", [*SMALL, BRANCHES, *overrides]), root)

    yield make
    for path in root.glob("[!.]*/session.json"):
        end(path.parent)
