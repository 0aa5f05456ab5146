"""The check of nodes: each reports itself, and the first one says which of them are sick."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoexp import payload
from autoexp.nodes import check

ASKED: dict[str, Any] = {
    "kind": "basic",
    "own": [],
    "timeout": 60.0,
    "disks": ["{tmpdir}"],
    "least_free": 1,
    "most_skew": 10.0,
    "slowest": 0.5,
    "gpus": 0,
}


def report(node: str, **values: Any) -> dict[str, Any]:
    own = {"memory": 100, "speed": 10.0, "by": "numpy", "skew": 0.1}
    return {"node": node, "problems": [], **own, **values}


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([report("n1"), report("n2"), report("n3")], {}),
        ([report("n1", problems=["/tmp: full"]), report("n2")], {"n1": "/tmp: full"}),
        (
            [report("n1"), report("n2", speed=4.0), report("n3")],
            {"n2": "40% of the speed of the other nodes"},
        ),
        (
            [report("n1"), report("n2", memory=49), report("n3")],
            {"n2": "49% of memory of the other nodes"},
        ),
        # Another way of multiplying is no measure.
        ([report("n1"), report("n2", speed=1.0, by="python")], {}),
        (
            [report("n1"), report("n2", skew=-20.0), report("n3")],
            {"n2": "its clock is +20 s from the other nodes' clocks"},
        ),
        # Of two nobody knows whose clock is wrong.
        ([report("n1"), report("n2", skew=-20.0)], {}),
        ([{"node": "n1"}], {}),
    ],
)  # fmt: skip
def test_a_node_is_sick_by_its_own_word_or_beside_the_others(
    reports: list[dict[str, Any]], expected: dict[str, str]
) -> None:
    assert check.decide(reports, [], ASKED) == expected


def test_a_node_that_does_not_answer_is_sick_and_no_node_is_where_none_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = check.decide([report("n1")], ["n1", "n2"], ASKED)
    assert said == {"n2": "did not answer the check within 60 s"}
    spec = {"check": {**ASKED, "command": ["srun"]}}
    assert check.sick_nodes(spec, tmp_path, lambda command: 1) == {}
    assert "left no report (exit code 1)" in capsys.readouterr().out


def test_a_directory_that_is_not_there_or_has_no_room_is_a_problem(tmp_path: Path) -> None:
    assert check.disk_problems([str(tmp_path)], 1) == []
    assert check.disk_problems([f"{tmp_path}/{{hostname}}"], 1) == [
        f"{tmp_path}/{check.hostname()}: No such file or directory"
    ]
    (said,) = check.disk_problems([str(tmp_path)], 10**18)
    assert said.startswith(f"{tmp_path}: ") and said.endswith(" GB are free")
    assert list(tmp_path.iterdir()) == []


def test_gpus_are_counted_and_their_errors_and_remains_are_seen() -> None:
    table = "0, 3, 81920, 0\n1, 60000, 81920, 0\n2, 3, 81920, 2\n"
    assert check.read_gpus(table, 4) == [
        "3 of 4 GPUs",
        "GPU 1: 58.6 GiB of its memory are in use",
        "GPU 2: 2 uncorrectable ECC errors",
    ]
    assert check.read_gpus("0, 3, 81920, [N/A]\n", 1) == []
    log = (
        "[ 100.1] NVRM: Xid (PCI:0000:0a:00): 79, GPU has fallen off the bus.\n"
        "[9000.0] NVRM: Xid (PCI:0000:0b:00): 31, pid=1, MMU fault\n"
        "[9000.5] NVRM: Xid (PCI:0000:0c:00): 79, GPU has fallen off the bus.\n"
    )
    assert check.read_xids(log, 9100.0) == ["Xid 79 of PCI:0000:0c:00"]


class Cards:
    """Stands for the files of AMD's driver, as its documentation describes them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.root.mkdir()
        (root / "version").write_text("drm 1.1.0 20060810\n")
        (root / "card9-DP-1").mkdir()

    def add(self, number: int, vendor: str = "0x1002", used: int = 0, errors: int = 0) -> None:
        device = self.root / f"0000:c{number}:00.0"
        (device / "ras").mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "mem_info_vram_used").write_text(f"{used << 30}\n")
        (device / "mem_info_vram_total").write_text(f"{64 << 30}\n")
        (device / "ras" / "umc_err_count").write_text(f"ue: {errors}\nce: 7\nde: 9\n")
        (device / "ras" / "gfx_err_count").write_text("ue: 0\nce: 0\n")
        (device / "ras" / "features").write_text("feature mask: 0x5\n")
        (self.root / f"card{number}").mkdir()
        (self.root / f"card{number}" / "device").symlink_to(device)


def test_gpus_of_amd_are_read_from_the_files_of_their_driver(tmp_path: Path) -> None:
    cards = Cards(tmp_path / "drm")
    cards.add(0, vendor="0x1a03")  # the screen of the node's management
    cards.add(1)
    cards.add(2, used=60)
    cards.add(3, errors=2)
    assert check.amd_problems(3, 0, cards.root) == [
        "GPU 0000:c2:00.0: 60.0 GiB of its memory are in use",
        "GPU 0000:c3:00.0: 2 uncorrectable ECC errors",
    ]
    assert check.amd_problems(4, 0, cards.root) == ["3 of 4 GPUs"]
    # The others are another job's, whose memory is in use.
    assert check.amd_problems(2, 0, cards.root) == []
    # Each of them divided in two.
    assert check.amd_problems(6, 6, cards.root) == []
    assert check.amd_problems(6, 5, cards.root) == ["5 of 6 GPUs"]
    assert check.amd_problems(1, 0, tmp_path / "nowhere") == ["0 of 1 GPUs"]


def test_files_of_a_driver_that_are_unreadable_or_strange_are_no_problem(tmp_path: Path) -> None:
    cards = Cards(tmp_path / "drm")
    cards.add(1)
    device = cards.root / "card1" / "device"
    (device / "mem_info_vram_used").write_bytes(b"\xff\xb2\n")
    (device / "mem_info_vram_total").unlink()
    (device / "ras" / "umc_err_count").write_text("Query currently inaccessible\n")
    assert check.amd_problems(1, 0, cards.root) == []


def test_matrices_are_multiplied_without_numpy() -> None:
    assert check.product([[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]) == [
        [19.0, 22.0],
        [43.0, 50.0],
    ]


@pytest.mark.parametrize("isolated", [True, False])
def test_a_copy_beside_the_payload_needs_the_standard_library_alone(
    tmp_path: Path, isolated: bool
) -> None:
    for source in (payload.__file__, check.__file__):
        shutil.copy(source, tmp_path)
    own = ["sh", "-c", "echo a first line; echo the fan is dead; exit 3"]
    spec = {"check": {**ASKED, "kind": "gpu", "gpus": 9, "own": own}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    (tmp_path / check.FOLDER).mkdir()
    words = ["-I", "-S"] if isolated else []
    subprocess.run([sys.executable, *words, str(tmp_path / "check.py")], check=True, cwd="/")
    (found,) = check.read_reports(tmp_path / check.FOLDER)
    assert found["by"] == ("python" if isolated else "numpy")
    assert found["speed"] > 0 and found["memory"] > 0 and abs(found["skew"]) < 60
    assert found["problems"][-2:] == ["0 of 9 GPUs", "the fan is dead"]
