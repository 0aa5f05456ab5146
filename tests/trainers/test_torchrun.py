"""A real torchrun of four processes on the CPU: the warning, and a save that takes its time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp.resources.machines import LocalMachine
from autoexp.schedulers.base import prepare
from autoexp.schedulers.launch import payload_spec
from tests.processes import Job, JobOf, wait_for

# Four processes that train together, perhaps with a data loader each. At a SIGTERM the first one
# tells the others, and all save a shard slowly, in parts of 0.1 s. Torchrun's agent waits for one
# second here, for 30 by itself.
TRAINER = """
import os, signal, sys, time
import torch, torch.distributed as dist

class Numbers(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(4)

told = False
def tell(*_):
    global told
    told = True

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, tell)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    loader = iter(torch.utils.data.DataLoader(Numbers(), num_workers=int(os.environ["LOADERS"])))
    print("ready", dist.get_world_size(), flush=True)
    for iteration in range(100_000):
        total = next(loader).sum()
        stop = torch.tensor([int(told)])
        dist.all_reduce(stop)
        dist.all_reduce(total)
        if stop:
            for part in range(int(os.environ["PARTS"])):
                time.sleep(0.1)
                with open(f"shard-{rank}", "a") as file:
                    file.write("x")
            dist.barrier()
            print("saved", flush=True)
            dist.destroy_process_group()
            os._exit(0)
        time.sleep(0.02)
"""


@pytest.fixture
def job(job_of: JobOf, torch: str) -> Job:
    made = job_of(torch, "train.py")
    machine = LocalMachine(
        launcher="torchrun",
        workers_per_node=4,
        environment={
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1",
            "OMP_NUM_THREADS": "1",
            "LOADERS": "1",
            "PARTS": "30",
        },
    )
    spec = made.spec.model_copy(update={"machine": machine})
    prepare(made.ref, spec, made.attempt, payload_spec(machine, spec, made.ref.key))
    (made.output / "train.py").write_text(TRAINER)
    return made


def start(job: Job) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, str(job.directory / "payload.py")],
        env={**os.environ, "SUBMITIT_LOCAL_JOB_ID": "41"},
    )


def change(job: Job, wait_s: int | None, parts: int = 30, **variables: str) -> None:
    """Have torchrun's agent wait so long, None: as long as it does by itself."""
    path = job.directory / "spec.json"
    spec = json.loads(path.read_text())
    spec["environment"] |= {"PARTS": str(parts), **variables}
    if wait_s is None:
        del spec["environment"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    else:
        spec["environment"]["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = str(wait_s)
    path.write_text(json.dumps(spec | {"grace_s": 120}))


def shards(directory: Path) -> list[int]:
    return [path.stat().st_size for path in sorted(directory.glob("shard-*"))]


@pytest.mark.parametrize(
    ("wait_s", "parts"), [(1, 30), pytest.param(None, 450, marks=pytest.mark.slow)]
)
def test_a_save_that_takes_longer_than_torchruns_time_out_is_whole_after_the_warning(
    job: Job, wait_s: int | None, parts: int
) -> None:
    """Three seconds of saving against one, and 45 against the 30 that torchrun has by itself."""
    change(job, wait_s, parts=parts)
    with start(job) as process:
        wait_for(lambda: job.log.count(b"ready 4") == 4, "four processes that train")
        process.send_signal(signal.SIGUSR1)
        code = process.wait(240)
    assert (code, shards(job.output)) == (0, [parts] * 4), job.log.decode()
    assert job.log.count(b"saved") == 4
    assert job.read("exit.json")["warned"] is True


@pytest.mark.parametrize(("wait_s", "whole"), [(1, False), (60, True)])
def test_torchruns_own_time_out_is_the_variable_that_autoexp_sets(
    job: Job, wait_s: int, whole: bool
) -> None:
    """A cancellation, or a warning that only the whole job can be sent, reaches the agent too.

    And it reaches data loaders, of which a trainer dies, whatever is set: here it has none.
    """
    change(job, wait_s, LOADERS="0")
    with start(job) as process:
        wait_for(lambda: job.log.count(b"ready 4") == 4, "four processes that train")
        process.terminate()
        process.wait(120)
    assert (shards(job.output) == [30] * 4) is whole, job.log.decode()
