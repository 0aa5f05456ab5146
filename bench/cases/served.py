"""Cases that need a Prefect server: one is started for them, and counted calls go through a relay.

What imports Prefect is imported only once the server's address is in the environment.
"""

import os
import re
import socket
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoexp.flows.deployment.embedded import Server
from bench.world.measure import Figure

_REQUEST = re.compile(rb"^(GET|POST|PUT|PATCH|DELETE) (/api/\S*) HTTP/1\.1\r$", re.MULTILINE)
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class Relay:
    """Passes bytes on to a server, and counts the requests by what they ask for."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.calls: Counter[str] = Counter()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/api"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            try:
                server = socket.create_connection(("127.0.0.1", self._port))
            except OSError:
                client.close()  # the server has been stopped
                continue
            for source, target, counts in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pass_on, args=(source, target, counts), daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if counts:
                    for verb, path in _REQUEST.findall(data):
                        asked = _ID.sub("ID", path.decode().partition("?")[0])
                        self.calls[f"{verb.decode()} {asked}"] += 1
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@contextmanager
def served() -> Iterator[tuple[Path, Relay]]:
    """A folder and a Prefect server of our own, for as long as the case runs."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFECT_HOME"] = f"{folder}/prefect"
        server = Server(Path(folder))
        try:
            server.wait()
            relay = Relay(int(server.url.rpartition(":")[2]))
            os.environ["PREFECT_API_URL"] = relay.url
            os.environ["PREFECT_API_AUTH_STRING"] = server.auth_string
            os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
            yield Path(folder), relay
        finally:
            server.stop()


def reaction() -> list[Figure]:
    """From a checkpoint that is complete on disk to the call of sbatch."""
    with served() as (folder, _):
        from bench.cases import reaction as flowing

        return flowing.reaction(folder)


def burst() -> list[Figure]:
    """From a checkpoint to the call of sbatch, while fifty cooldowns start at once."""
    with served() as (folder, _):
        from bench.cases import reaction as flowing

        return flowing.burst(folder)


def blocking() -> list[Figure]:
    """The longest gap between two looks while twenty actions take five seconds each."""
    with served() as (folder, _):
        from bench.cases import reaction as flowing

        return flowing.blocking(folder)


def prefect() -> list[Figure]:
    """What Prefect is asked for a cooldown, and while nothing happens."""
    with served() as (folder, relay):
        from bench.cases import prefect_api

        return prefect_api.prefect(folder, relay)
