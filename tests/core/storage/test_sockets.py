"""Who listens on a port of this machine."""

import os
import socket
from pathlib import Path

from autoexp.flows.deployment import sockets
from autoexp.storage import permissions

ROWS = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1068 00000000:0000 0A 00000000:00000000 00:00000000 00000000 65534        0 1 1
   1: 0100007F:1068 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 2 1
   2: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 3 1
"""


def test_a_port_belongs_to_whoever_listens_and_not_to_who_is_connected(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(ROWS)
    tables = (table, tmp_path / "none")
    assert sockets.listeners(4200, tables) == {65534}
    assert sockets.listeners(22, tables) == {0}
    assert sockets.listeners(4201, tables) == set()


def test_ones_own_port_is_found_in_the_kernels_table() -> None:
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
