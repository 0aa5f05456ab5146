"""The doctor's job: a real one on this machine, and what its reports say."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.operations.doctor import job as doctor_job
from autoexp.operations.doctor import probe
from autoexp.operations.doctor.host import Finding
from autoexp.operations.doctor.job import Report, examine_job, read_link, read_reports
from autoexp.planning.plan import make_plan
from autoexp.resources.machines import LocalMachine, SlurmCluster
from tests.patience import until


def found(root: Path, *overrides: str, **changes: object) -> dict[str, Finding]:
    experiment = compose(
        "demo", ["slurm=local", "slurm.scheduler_tick_s=0.2", *overrides]
    ).experiment
    trunk = make_plan(experiment, root / "out").trunk.model_copy(update=changes)
    said: list[str] = []
    findings = {x.what: x for x in examine_job(experiment, trunk, root / "sessions", said.append)}
    assert list((root / "sessions").iterdir()) == []
    return findings


def test_a_job_of_this_machine_reports_and_is_reached_by_the_warning(tmp_path: Path) -> None:
    answers = found(tmp_path)
    assert {name: x.verdict for name, x in answers.items()} == dict.fromkeys(
        ("job", "processes", "python there", "devices", "binding", "warning"), "ok"
    )
    assert answers["processes"].text == "1 of 1, on 1 nodes, 1 on each"
    assert answers["python there"].text == ".".join(map(str, sys.version_info[:3]))
    assert answers["warning"].text.startswith("SIGTERM reached all 1 within")


def test_a_trainer_that_looks_for_a_file_is_warned_by_it(tmp_path: Path) -> None:
    own = ["backend=nanogpt", f"backend.source={tmp_path}", "slurm=local", "project.name=p"]
    experiment = compose(None, [*own, "backend.warn_file='{save_dir}/stop'"]).experiment
    trunk = make_plan(experiment, tmp_path / "out").trunk
    root = tmp_path / "sessions"
    answers = {x.what: x for x in examine_job(experiment, trunk, root, lambda words: None)}
    assert answers["warning"].verdict == "ok"
    assert answers["warning"].text.startswith("{save_dir}/stop reached all 1")


def test_a_job_whose_trainer_does_not_start_is_to_be_mended_with_its_log(tmp_path: Path) -> None:
    answers = found(tmp_path, command=(str(tmp_path / "python-that-is-not-there"),))
    assert answers["processes"].verdict == "to mend"
    assert answers["processes"].text.startswith("0 of 1")
    assert "No such file" in answers["processes"].text
    assert "warning" not in answers


def test_a_warning_that_does_not_arrive_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "kill", lambda pid, signum: None)
    monkeypatch.setattr(doctor_job, "_WARNED_S", 0.1)
    answer = found(tmp_path)["warning"]
    assert answer.verdict == "to mend"
    assert answer.text == (
        "SIGTERM reached 0 of 1 processes, and not 0: they would not save before the time limit"
    )


GPUS = ("/dev/nvidia0", "/dev/nvidia1", "/dev/nvidia2", "/dev/nvidia3")


def reports(
    *cores: tuple[int, ...], devices: tuple[str, ...] = GPUS, host: str = "n"
) -> list[Report]:
    return [Report(rank, "n", "3.11.7", own, devices, ()) for rank, own in enumerate(cores)]


def cluster(launcher: str, **settings: object) -> SlurmCluster:
    return SlurmCluster.model_validate({"launcher": launcher, "gpus_per_node": 4, **settings})


@pytest.mark.parametrize(
    ("machine", "seen", "what", "verdict", "text"),
    [
        (cluster("torchrun"), reports(*[(0,)] * 4), "binding", "to mend", "share 1 cores: give"),
        (cluster("torchrun"), reports(*[tuple(range(8))] * 4), "binding", "ok", "8 cores for each"),
        (
            cluster("srun", tasks_per_node=2, cpus_per_task=4),
            reports((0, 1, 2, 3), (4, 5)),
            "binding",
            "to mend",
            "2 cores for each process, apart: slurm.cpus_per_task is 4",
        ),
        (cluster("srun"), reports((0, 1), devices=()), "devices", "to mend", "0 on n; see slurm."),
        (cluster("srun"), reports((0, 1)), "devices", "ok", "each process sees 4"),
        (
            cluster("srun", gpus_per_node=0),
            reports((0,), devices=()),
            "devices",
            "ok",
            "none asked",
        ),
        (
            cluster("srun", tasks_per_node=2),
            reports((0,)),
            "processes",
            "to mend",
            "1 of 2, on 1 nodes, 1 on each; its log ends with: oops",
        ),
        (LocalMachine(), reports((0, 1, 2)), "binding", "ok", "3 cores for each process, alone"),
    ],
)
def test_reports_say_what_is_to_be_mended(
    machine: SlurmCluster, seen: list[Report], what: str, verdict: str, text: str
) -> None:
    log_end = "; its log ends with: oops"
    answers = {x.what: x for x in read_reports(seen, machine.workers, machine, log_end)}
    assert answers[what].verdict == verdict
    assert text in answers[what].text


def test_variables_that_name_devices_count_and_an_empty_one_hides_all() -> None:
    content = {"rank": 0, "host": "n", "python": "3", "cores": [0], "devices": list(GPUS)}

    def sees(**visible: str) -> int:
        return Report.read(json.dumps({**content, "visible": visible})).sees

    assert sees() == 4
    assert sees(CUDA_VISIBLE_DEVICES="1") == 1
    assert sees(CUDA_VISIBLE_DEVICES="") == 0


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rank": "x"}', "3"])
def test_what_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Report.read(text)


# The way between two nodes


def test_two_nodes_measure_what_one_connection_carries_from_one_to_the_other(
    tmp_path: Path,
) -> None:
    places = (("0", "0"), ("0", "1"), ("1", "0"))
    processes = []
    for rank, (node, local) in enumerate(places):
        own = {"SLURM_NNODES": "2", "SLURM_NODEID": node, "RANK": str(rank), "LOCAL_RANK": local}
        environment = {**os.environ, **own, "MASTER_ADDR": "127.0.0.1"}
        words = [sys.executable, probe.__file__, str(tmp_path)]
        processes.append(subprocess.Popen(words, env=environment))
    ends = (tmp_path / "receive-0.json", tmp_path / "send-2.json")
    reports = [tmp_path / f"report-{rank}.json" for rank in range(len(places))]
    until(lambda: all(path.exists() for path in (*ends, *reports)), "what the nodes say")
    for process in processes:
        process.terminate()
        assert process.wait(60) == 0
    got, sent = (json.loads(path.read_text()) for path in ends)
    assert 0 < sent["bytes"] == got["bytes"] <= probe._LINK_BYTES + len(probe._BLOCK)
    assert read_link([got, sent]).verdict == "ok"
    assert sorted(tmp_path.glob("receive-*")) + sorted(tmp_path.glob("send-*")) == list(ends)


def test_who_does_not_know_the_token_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_LINK_BYTES", 2**22)
    got: list[dict[str, Any]] = []
    receiver = threading.Thread(target=lambda: got.append(probe.receive(tmp_path, "127.0.0.1")))
    receiver.start()
    until(lambda: (tmp_path / "link.json").exists(), "a node that listens")
    port = json.loads((tmp_path / "link.json").read_text())["port"]
    with socket.create_connection(("127.0.0.1", port), 10) as stranger:
        stranger.sendall(b"x" * 1000)
    sent = probe.send(tmp_path, "127.0.0.1")
    receiver.join(60)
    assert [each["bytes"] for each in got] == [sent["bytes"]] != [0]


def test_a_node_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (tmp_path / "link.json").write_text(json.dumps({"port": port, "token": "x"}))
    with pytest.raises(OSError, match=r"127\.0\.0\.1: .*refused"):
        probe.send(tmp_path, "127.0.0.1")


@pytest.mark.parametrize(
    ("said", "verdict", "text"),
    [
        (
            [{"bytes": 5 * 10**9, "seconds": 2.0, "address": "n1i"}, {"bytes": 5 * 10**9}],
            "ok",
            "20.0 Gbit/s over one TCP connection to the first node (n1i, 4,768 MiB in 2.0 s)",
        ),
        (
            [{"error": "timed out"}, {"error": "n1: Connection refused"}],
            "to mend",
            "timed out; n1: Connection refused; see slurm.rendezvous",
        ),
        ([], "not known", "the second node's processes have sent nothing"),
    ],
)
def test_the_ends_of_the_way_say_how_fast_it_is(
    said: list[dict[str, Any]], verdict: str, text: str
) -> None:
    answer = read_link(said)
    assert (answer.what, answer.verdict) == ("bandwidth", verdict)
    assert text in answer.text
