"""The sites of configs/slurm: what they ask for, what their pages allow, whose nodes they are."""

import socket
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.planning.study import plan_study
from autoexp.resources.machines import SlurmCluster
from autoexp.storage.places import SHIPPED

SITES = sorted(
    path.stem
    for path in (SHIPPED / "slurm").glob("*.yaml")
    if path.stem not in ("base", "local", "block")
)


def cluster(site: str, *overrides: str) -> SlurmCluster:
    machine = compose("demo", [f"slurm={site}", *overrides]).experiment.slurm
    assert isinstance(machine, SlurmCluster)
    return machine


def notes(site: str, *overrides: str) -> str:
    composed = compose("demo", [f"slurm={site}", "cooldowns=[]", *overrides])
    return "\n".join(plan_study(composed, Path("/out")).notes)


@pytest.mark.parametrize("site", SITES)
def test_a_site_asks_for_no_more_than_its_pages_allow(site: str) -> None:
    assert cluster(site).remarks() == []


@pytest.mark.parametrize("site", [site for site in SITES if site.endswith("_debug")])
def test_short_tests_of_a_site_are_short_and_its_own(site: str) -> None:
    own, whole = cluster(site), cluster(site.removesuffix("_debug"))
    assert own.time_limit_min is not None
    assert whole.time_limit_min is not None
    assert own.time_limit_min < whole.time_limit_min
    assert (own.partition, own.qos) != (whole.partition, whole.qos)
    assert own.gpus_per_node == whole.gpus_per_node


def test_a_plan_says_what_a_partition_does_not_allow() -> None:
    told = notes("jupiter", "slurm.time_limit_min=1440", "slurm.cooldown_time_limit_min=800")
    assert "`slurm.time_limit_min: 1440` is more than the 720 minutes that booster allows" in told
    assert "`slurm.cooldown_time_limit_min: 800` is more than the 720" in told
    assert notes("jupiter") == ""


def test_a_plan_says_what_a_qos_does_not_allow_in_place_of_its_partition() -> None:
    told = notes("leonardo", "slurm.qos=boost_qos_dbg", "slurm.nodes=3")
    assert "`slurm.nodes: 3` is more than the 2 that boost_qos_dbg allows" in told
    assert "than the 30 minutes that boost_qos_dbg allows" in told
    assert notes("leonardo", "slurm.qos=boost_qos_bprod", "slurm.nodes=100") == ""


def test_a_stage_with_internet_on_leonardo_as_its_file_says_it() -> None:
    lines = (SHIPPED / "slurm" / "leonardo.yaml").read_text().splitlines()
    said = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#     "))
    resources = said.removeprefix("slurm: ")
    fetch = ["stages.fetch.command=[python, fetch.py]", f"stages.fetch.slurm={resources}"]
    composed = compose("demo", ["slurm=leonardo", *fetch])
    stage = next(
        job for job in plan_study(composed, Path("/out")).jobs if job.name.endswith("-fetch")
    )
    machine = stage.machine
    assert isinstance(machine, SlurmCluster)
    assert machine.partition == "lrd_all_serial"
    # A whole node is refused there, and so is more than four hours.
    assert (machine.gpus_per_node, machine.options) == (0, {"exclusive": False})
    assert machine.remarks() == []
    offline = {name for name in machine.environment if "OFFLINE" in name}
    assert {machine.environment[name] for name in offline} == {"0"}
    assert machine.environment["WANDB_MODE"] == "online"


@pytest.mark.parametrize(
    ("nodes", "most"), [(1, 120), (91, 120), (92, 360), (183, 360), (184, 720), (5000, 720)]
)
def test_the_longest_job_of_frontier_goes_by_its_nodes(nodes: int, most: int) -> None:
    for minutes, told in ((most, []), (most + 1, [f"more than the {most} minutes"])):
        sized = cluster("frontier", f"slurm.nodes={nodes}", f"slurm.time_limit_min={minutes}")
        remarks = sized.remarks()
        assert len(remarks) == len(told)
        assert all(part in said for part, said in zip(told, remarks, strict=True))


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("jpbl-s01-02", "jupiter"),
        ("jwlogin07.juwels", "juwels"),
        ("login02.leonardo.local", "leonardo"),
        ("uan01", "lumi"),
        ("alogin1", "marenostrum"),
        ("clariden-ln002", "clariden"),
        ("login1.vista.tacc.utexas.edu", "vista"),
        ("int4.local.snellius.surf.nl", "snellius"),
    ],
)
def test_a_site_is_known_by_the_name_of_its_hosts(
    host: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    composed = compose("demo", ["slurm=auto"])
    assert composed.overrides == (f"slurm={site}",)
    assert composed.experiment.slurm == cluster(site)


def test_a_host_of_no_site_or_of_several_is_refused_with_what_to_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "desk.example.org")
    with pytest.raises(BadInput, match=r"names this host, desk\.example\.org.*slurm=lumi"):
        compose("demo", ["slurm=auto"])
    monkeypatch.setattr(socket, "gethostname", lambda: "nid001234")
    sites = "clariden, isambard, lumi, perlmutter"
    with pytest.raises(BadInput, match=f"may be one of {sites}; say which"):
        compose("demo", ["slurm=auto"])


def test_a_site_of_ones_own_is_known_by_its_hosts_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "ours.yaml").write_text("defaults: [base]\nhosts: ['head?']\n")
    (tmp_path / "slurm" / "torn.yaml").write_text("hosts: [")
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path))
    monkeypatch.setattr(socket, "gethostname", lambda: "head1.cluster.local")
    assert compose("demo", ["slurm=auto"]).overrides == ("slurm=ours",)
