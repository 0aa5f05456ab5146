"""An MLflow server on this machine, for tests that send to one."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.patience import until


class MlflowServer:
    """An MLflow server on this machine, which can be away."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = int(free.getsockname()[1])
        self._folder = folder
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = f"sqlite:///{self._folder / 'mlflow.db'}"
        words = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, *words],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(self._answers, "the MLflow server answers")

    def _answers(self) -> bool:
        from urllib.request import urlopen

        try:
            with urlopen(f"{self.uri}/health") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, 15)
            self._process.wait()
            self._process = None


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """A server that answers, with its database in a folder; the test is skipped without mlflow."""
    pytest.importorskip("mlflow", reason="mlflow is not installed: make test-trackers")
    made = MlflowServer(folder)
    made.start()
    try:
        yield made
    finally:
        made.stop()
