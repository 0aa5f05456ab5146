"""How a trainer's processes start on nodes of a real cluster, and what reaches them there."""

import sys

import pytest

from autoexp.states import Kind
from tests.patience import until
from tests.slurm.bench import Bench, slurm

pytestmark = pytest.mark.slurm

# Saves at a SIGTERM, and has a data loader that would say so if it got one as well.
TRAINER = """
import os, signal, sys, time
rank = os.environ["RANK"]

def told(*_):
    open(f"loader-{rank}", "w").close()

loader = os.fork()
if loader == 0:
    signal.signal(signal.SIGTERM, told)
    while True:
        time.sleep(0.05)

def save(*_):
    open(f"saved-{rank}", "w").close()
    os.kill(loader, signal.SIGKILL)
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
names = ("WHERE", "SLURMD_NODENAME", "MASTER_ADDR", "PET_LOCAL_ADDR", "PET_RDZV_CONF")
print("ready", rank, *(os.environ.get(name) for name in names), flush=True)
while True:
    time.sleep(0.05)
"""


def test_the_warning_reaches_the_trainers_of_all_nodes_and_no_data_loader(bench: Bench) -> None:
    bench.submit(
        "trainer",
        (sys.executable, "-c", TRAINER),
        kind=Kind.TRAIN,
        launcher="srun",
        nodes=2,
        tasks_per_node=2,
        cpus_per_task=1,
        gpus_per_node=0,
        options={"mem": "100M"},
        node_environment={"WHERE": "{hostname}/{node_rank}/{rank}/{local_rank}/{job_id}"},
        node_setup=("echo set up $SLURMD_NODENAME",),
        rendezvous={"suffix": "i"},
    )
    bench.wait("RUNNING", "trainer")
    until(lambda: bench.log("trainer").count("ready") == 4, "trainers that listen")
    job_id = str(bench.attempt("trainer").job_id)

    lines = [line.split() for line in bench.log("trainer").splitlines() if "ready" in line]
    where = {rank: (place, node, *others) for _, rank, place, node, *others in lines}
    first = where["0"][1]
    for rank, (place, node, address, local, conf) in where.items():
        number = int(node != first)
        assert place == f"{node}/{number}/{rank}/{int(rank) % 2}/{job_id}"
        assert (address, local) == (f"{first}i", f"{node}i")
        assert conf == f"is_host={int(node == first)}"
    log = bench.log("trainer")
    assert log.count("set up ") == 2
    assert log.rindex("set up ") < log.index("ready")

    slurm("scancel", "--signal=USR1", "--batch", job_id)
    bench.watch(lambda: not bench.attempt("trainer").is_open, "the end")
    left = {path.name for path in (bench.session.path / "output" / "trainer").iterdir()}
    assert {f"saved-{rank}" for rank in range(4)} <= left
    assert not [name for name in left if name.startswith("loader")]
    assert bench.attempt("trainer").state == "COMPLETED"
    assert bench.attempt("trainer").warned
