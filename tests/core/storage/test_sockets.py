"""Who listens on a port of this machine."""

import os
import socket
from pathlib import Path

import pytest

from autoexp.flows.deployment import sockets
from autoexp.storage import permissions
from bench.world.measure import counted_calls

ROWS = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1068 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65534        0 1 1
   1: 0100007F:1068 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 2 1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1
"""


def test_a_port_belongs_to_whoever_listens_and_not_to_who_is_connected(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(ROWS)
    tables = (table, tmp_path / "none")
    assert sockets.listed(4200, tables) == {65534}
    assert sockets.listed(22, tables) == {0}
    assert sockets.listed(4201, tables) == set()


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
)
def test_ones_own_port_is_found_by_the_kernel_and_in_its_table(
    family: socket.AddressFamily, address: str
) -> None:
    with socket.create_server((address, 0), family=family) as mine:
        port = mine.getsockname()[1]
        assert sockets.listeners(port) == sockets.listed(port) == {os.geteuid()}
        with socket.create_connection((address, port)) as other:  # which only sends from its port
            assert sockets.listeners(other.getsockname()[1]) == set()
    assert sockets.listeners(port) == set()


def test_who_listens_is_asked_without_the_table_of_all_sockets() -> None:
    try:
        list(sockets._asked(socket.AF_INET, 1))
    except OSError as error:
        pytest.skip(f"this kernel does not answer: {error}")
    with counted_calls() as calls:
        sockets.listeners(1)
    assert "open" not in calls


def test_a_kernel_that_does_not_answer_has_its_table_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_SOCK_DIAG", 31)  # a protocol that there is not
    with socket.create_server(("127.0.0.1", 0)) as mine:
        assert sockets.listeners(mine.getsockname()[1]) == {os.geteuid()}


def test_a_user_without_a_name_is_a_number() -> None:
    assert permissions.user(0) == "root"
    assert permissions.user(4294901) == "uid 4294901"


def test_whoever_is_connected_to_a_port_is_seen_before_it_is_accepted(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(ROWS)
    assert sockets.is_connected(4200, (table,))
    assert not sockets.is_connected(22, (table,))
    with socket.create_server(("127.0.0.1", 0)) as mine:
        port = mine.getsockname()[1]
        assert not sockets.is_connected(port)
        with socket.create_connection(("127.0.0.1", port)):
            assert sockets.is_connected(port)
