"""How a trainer's processes are started, and what reaches them on their node."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from autoexp import payload
from autoexp.resources import node
from autoexp.resources.launchers import NODE_VALUES
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers import launch
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.launch import payload_spec
from autoexp.schedulers.slurm.script import executor_for
from autoexp.states import Kind
from tests.builders import spec_of
from tests.processes import JobOf, WaitFor

TRAINER = ("python3", "train.py", "--lr", "1")


def launched(machine: LocalMachine | SlurmCluster, *command: str, **changes: object) -> list[str]:
    spec = spec_of(*(command or TRAINER), **changes)
    return list(payload_spec(machine, spec, "key").command)


def refusal(kind: type[LocalMachine] | type[SlurmCluster], **settings: object) -> str:
    with pytest.raises(ValidationError) as refused:
        kind.model_validate(settings)
    return str(refused.value)


# Launchers


def test_torchrun_gets_its_own_arguments_and_as_many_processes_as_asked() -> None:
    words = launched(
        SlurmCluster(
            launcher="torchrun",
            gpus_per_node=4,
            workers_per_node=2,
            numa_binding="exclusive",
            launcher_arguments=("--max-restarts=1",),
        )
    )
    torchrun = words[words.index("torch.distributed.run") :]
    assert torchrun[1:4] == ["--nnodes=1", "--rdzv-backend=c10d", "--rdzv-id=key"]
    assert torchrun[4:] == [
        *("--nproc-per-node=2", "--numa-binding=exclusive", "--max-restarts=1"),
        *TRAINER[1:],
    ]


def test_several_processes_of_this_machine_meet_at_a_port_of_their_own() -> None:
    machine = LocalMachine(launcher="torchrun", gpus_per_node=2)
    assert machine.workers == 2
    assert launched(machine) == [
        *("python3", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *TRAINER[1:],
    ]


def test_torchrun_starts_what_is_no_script_of_python_as_it_is() -> None:
    machine = LocalMachine(launcher="torchrun", workers_per_node=2)
    head = ["--standalone", "--nproc-per-node=2", "--no-python"]
    assert launched(machine, "litgpt", "pretrain") == ["torchrun", *head, "litgpt", "pretrain"]
    told = launched(machine, "python3", "-c", "text", "train.py")
    run = ["python3", "-m", "torch.distributed.run"]
    assert told == [*run, *head, "python3", "-c", "text", "train.py"]


def test_a_job_that_does_not_train_has_no_launcher() -> None:
    machine = SlurmCluster(launcher="torchrun", gpus_per_node=4, numactl=("--membind=0",))
    spec = spec_of("evaluate", kind=Kind.EVALUATE)
    found = payload_spec(machine, spec, "key")
    assert found.command == ("evaluate",)
    assert not found.signal_steps
    assert "TORCH_ELASTIC_SHUTDOWN_TIMEOUT" not in found.environment


def test_bindings_are_sruns_and_numactl_stands_before_the_container() -> None:
    machine = SlurmCluster(
        launcher="srun",
        tasks_per_node=8,
        cpus_per_task=7,
        cpu_bind="mask_cpu:0xfe,0xfe00",
        gpu_bind="none",
        numactl=("--membind=0-3",),
    )
    words = launched(machine)
    assert words[:5] == [
        *("srun", "--kill-on-bad-exit=1", "--cpus-per-task=7"),
        *("--cpu-bind=mask_cpu:0xfe,0xfe00", "--gpu-bind=none"),
    ]
    assert words[-6:] == ["numactl", "--membind=0-3", *TRAINER]


def test_torchruns_agent_waits_as_long_as_the_warning_is_early() -> None:
    machine = SlurmCluster(launcher="torchrun", warn_before_limit_s=600)
    assert payload_spec(machine, spec_of(*TRAINER), "key").environment == {
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "595"
    }
    mine = SlurmCluster(launcher="torchrun", environment={"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "7"})
    found = payload_spec(mine, spec_of(*TRAINER), "key").environment
    assert found["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] == "7"


def elastic(launcher: str, **settings: object) -> SlurmCluster:
    words = {"launcher": launcher, "nodes": "2:4", "restarts": 3, "gpus_per_node": 8}
    return SlurmCluster.model_validate({**words, **settings})


@pytest.mark.parametrize(
    ("launcher", "module", "workers", "worlds"),
    [
        ("torchrun", "torch.distributed.run", 32, (32, 24, 16)),
        ("ft_launcher", "nvidia_resiliency_ext.fault_tolerance.launcher", 16, (16,)),
    ],
)
def test_two_to_four_nodes_are_four_that_may_fail_to_two(
    launcher: str, module: str, workers: int, worlds: tuple[int, ...]
) -> None:
    machine = elastic(launcher)
    assert (machine.nodes, machine.min_nodes, machine.gpus) == (4, 2, 32)
    assert (machine.workers, machine.worlds) == (workers, worlds)
    words = launched(machine)
    assert words[:3] == ["srun", "--no-kill", "--kill-on-bad-exit=0"]
    assert words[words.index(module) + 1 :] == [
        *("--nnodes=2:4", "--rdzv-backend=c10d", "--rdzv-id=key", "--nproc-per-node=8"),
        *("--max-restarts=3", *TRAINER[1:]),
    ]
    options = SubmitOptions("name", "/log", machine)
    script = executor_for(machine, Path("/batch.sh"), options).script("true")
    assert {"#SBATCH --nodes=4", "#SBATCH --no-kill"} <= set(script.splitlines())
    # As a session reads it again.
    assert SlurmCluster.model_validate(machine.model_dump(mode="json")) == machine


def test_ft_launcher_starts_what_is_no_script_of_python_as_it_is() -> None:
    machine = elastic("ft_launcher", nodes=1, restarts=0)
    words = launched(machine, "litgpt", "pretrain")
    assert words[words.index("ft_launcher") + 1] == "--nnodes=1"
    assert words[-3:] == ["--no-python", "litgpt", "pretrain"]
    assert "--no-kill" not in words


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"launcher_arguments": ["--x"]}, "srun's own are `srun_arguments`"),
        ({"numa_binding": "node"}, "`numa_binding` needs `launcher: torchrun`"),
        ({"numa_binding": "node", "launcher": "ft_launcher"}, "$NVRX_GPUS_PER_NUMA"),
        ({"restarts": 2, "launcher": "srun"}, "rules restart attempts"),
        (
            {
                "restarts": 2,
                "launcher": "torchrun",
                "launcher_arguments": ["--max-restarts=1"],
            },
            "both say --max-restarts",
        ),
        ({"nodes": "2:4", "launcher": "srun"}, "needs `launcher: torchrun` or `ft_launcher`"),
        ({"nodes": "2:4", "launcher": "torchrun"}, "goes on only by a restart"),
        ({"nodes": "4:2", "launcher": "torchrun"}, "`min_nodes` 4 is more than the 2 nodes"),
        ({"nodes": "2:x", "launcher": "torchrun"}, "nodes\n  Input should be a valid integer"),
        ({"nodes": "2:4", "min_nodes": 2}, "give one of them"),
        ({"tasks_per_node": 2, "launcher": "ft_launcher"}, "runs once a node"),
        ({"workers_per_node": 2}, "`tasks_per_node`"),
        ({"cpu_bind": "cores"}, "`cpu_bind` is an option of srun"),
        ({"rendezvous": {"suffix": "i", "interface": "ib0"}}, "give `suffix` or `interface`"),
        ({"rendezvous": {"interface": "ib0; reboot"}}, "should match pattern"),
        ({"node_environment": {"A": "{hostnam}"}}, "did you mean `{hostname}`"),
        (
            {"node_environment": {"A": "{local_rank}"}, "launcher": "torchrun"},
            "is not known before torchrun starts the processes",
        ),
    ],
)
def test_what_a_launcher_would_ignore_is_refused(settings: dict[str, object], told: str) -> None:
    assert told in refusal(SlurmCluster, **settings)


def test_this_machine_has_no_srun_and_no_rendezvous() -> None:
    assert "launcher" in refusal(LocalMachine, launcher="srun")
    assert "rendezvous" in refusal(LocalMachine, rendezvous={"suffix": "i"})


# Values of the node


def test_variables_of_a_node_are_filled_in_there_and_by_no_shell() -> None:
    known = {
        "SLURMD_NODENAME": "n7",
        "SLURM_NODEID": "1",
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "3",
        "TMPDIR": "/local/$(reboot)",
    }
    spec = {"node_environment": {name.upper(): f"<{{{name}}}>" for name in NODE_VALUES}}
    assert node.variables(spec, known, "4711") == {
        "HOSTNAME": "<n7>",
        "LOCAL_ADDRESS": f"<{socket.gethostname()}>",
        "NODE_RANK": "<1>",
        "RANK": "<5>",
        "LOCAL_RANK": "<3>",
        "JOB_ID": "<4711>",
        "TMPDIR": "</local/$(reboot)>",
    }


@pytest.mark.parametrize(
    ("rule", "address"),
    [
        ({}, socket.gethostname()),
        ({"suffix": "i"}, "jwb0001i"),
        ({"interface": "lo"}, "127.0.0.1"),
    ],
)
def test_a_node_is_named_by_the_rule_of_the_rendezvous(
    rule: dict[str, str], address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "jwb0001")
    assert payload.local_address(rule) == address


def test_torchrun_is_told_who_the_host_is_where_a_rule_names_the_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "jwb0002")
    spec = {"rendezvous": {"suffix": "i"}}
    for rank, host in (("0", "1"), ("3", "0")):
        assert node.variables(spec, {"SLURM_NODEID": rank}) == {
            "PET_LOCAL_ADDR": "jwb0002i",
            "PET_RDZV_CONF": f"is_host={host}",
        }
    assert node.variables({}, {}) == {}


def test_the_rule_of_the_rendezvous_reaches_every_node_and_the_first_one() -> None:
    machine = SlurmCluster.model_validate(
        {"launcher": "torchrun", "gpus_per_node": 4, "nodes": 2, "rendezvous": {"suffix": "i"}}
    )
    found = payload_spec(machine, spec_of(*TRAINER), "key")
    assert found.rendezvous == {"suffix": "i"}
    assert found.command[found.command.index("-c") + 1] == launch.running(payload.NODE_FILE)


def run(job: object, directory: Path, **environment: str) -> int:
    command = [sys.executable, str(directory / "payload.py")]
    given = {**os.environ, "SUBMITIT_LOCAL_JOB_ID": "41", **environment}
    return subprocess.run(command, env=given, timeout=120).returncode


SHOWS = "import os, json; print(json.dumps(dict(os.environ)))"


def test_a_job_of_this_machine_sees_its_variables_and_a_free_port(job_of: JobOf) -> None:
    ports = []
    for number in (1, 2):
        job = job_of(sys.executable, "-c", SHOWS, number=number)
        machine = LocalMachine(environment={"A": "1"}, node_environment={"B": "{job_id}-{rank}"})
        spec = job.spec.model_copy(update={"machine": machine})
        found = payload_spec(machine, spec, job.ref.key)
        job._replace(spec=spec).prepare(**_without_defaults(found))
        assert run(job, job.directory) == 0
        seen = json.loads(job.log)
        assert (seen["A"], seen["B"], seen["MASTER_ADDR"]) == ("1", "41-0", "127.0.0.1")
        ports.append(seen["MASTER_PORT"])
    assert len(set(ports)) == 2


def _without_defaults(found: object) -> dict[str, object]:
    fields = found._asdict()  # type: ignore[attr-defined]
    del fields["grace_s"]
    return dict(fields)


def test_the_set_up_of_the_nodes_comes_before_the_trainer(job_of: JobOf) -> None:
    job = job_of("sh", "-c", "echo trainer >> order")
    job.prepare(before=("sh", "-c", "echo set-up >> order"))
    assert run(job, job.directory) == 0
    assert (job.output / "order").read_text() == "set-up\ntrainer\n"


def test_a_failed_set_up_starts_no_trainer_and_says_so(job_of: JobOf) -> None:
    job = job_of("sh", "-c", "echo trainer >> order")
    job.prepare(before=("sh", "-c", "exit 5"))
    assert run(job, job.directory) == 5
    assert not (job.output / "order").exists()
    ended = job.read("exit.json")
    assert ended["exit_code"] == 5
    assert "set-up of the nodes failed" in ended["reason"]


def test_the_set_up_runs_once_on_each_node() -> None:
    lines = ("mkdir -p /tmp/data", "cp x /tmp/data")
    machine = SlurmCluster(launcher="torchrun", nodes=2, node_setup=lines)
    step = ("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1")
    shell = ("sh", "-e", "-c", "\n".join(lines))
    assert payload_spec(machine, spec_of(*TRAINER), "key").before == (*step, *shell)
    here = LocalMachine(node_setup=lines)
    assert payload_spec(here, spec_of(*TRAINER), "key").before == shell


# The warning

# A trainer with a data loader, as torch has them: forked, or started anew.
LOADS = """
import multiprocessing, signal, sys, time
context = multiprocessing.get_context({method!r})

def load():
    signal.signal(signal.SIGTERM, lambda *_: (open("loader", "w").close(), sys.exit(1)))
    print("loading", flush=True)
    while True:
        time.sleep(0.05)

def save(*_):
    open("saved", "w").close()
    loader.kill()
    sys.exit(0)

if __name__ == "__main__":
    loader = context.Process(target=load)
    loader.start()
    signal.signal(signal.SIGTERM, save)
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
"""

# torchrun's agent: it dies at a SIGTERM, and its workers, which have sessions of their own, save.
AGENT = """
import os, subprocess, sys
own = {**os.environ, "TORCHELASTIC_RUN_ID": "none"}
workers = [
    subprocess.Popen([sys.executable, "worker.py"], env=own, start_new_session=True)
    for _ in range(2)
]
sys.exit(max(worker.wait() for worker in workers))
"""
WORKER = """
import os, signal, sys, time
def save(*_):
    open(f"saved-{os.getpid()}", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def start(directory: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(directory / "payload.py")],
        env={**os.environ, "SUBMITIT_LOCAL_JOB_ID": "41"},
    )


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_the_warning_reaches_a_trainer_and_not_its_data_loaders(
    job_of: JobOf, method: str, wait_for: WaitFor
) -> None:
    job = job_of(sys.executable, "train.py")
    job.prepare()
    (job.output / "train.py").write_text(LOADS.format(method=method))
    with start(job.directory) as process:
        wait_for(lambda: b"ready" in job.log and b"loading" in job.log, "the trainer")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
    assert (job.output / "saved").exists()
    assert not (job.output / "loader").exists()
    assert job.read("exit.json")["warned"] is True


def test_the_warning_reaches_torchruns_workers_and_not_its_agent(
    job_of: JobOf, wait_for: WaitFor
) -> None:
    job = job_of(sys.executable, "agent.py")
    job.prepare()
    (job.output / "agent.py").write_text(AGENT)
    (job.output / "worker.py").write_text(WORKER)
    with start(job.directory) as process:
        wait_for(lambda: job.log.count(b"ready") == 2, "the workers")
        process.send_signal(signal.SIGUSR1)
        # The agent would have died of it, and its exit code would be that of a signal.
        assert process.wait(60) == 0
    assert len(list(job.output.glob("saved-*"))) == 2


def test_a_trainer_that_looks_for_a_file_is_warned_by_it(job_of: JobOf, wait_for: WaitFor) -> None:
    job = job_of("sh", "-c", "echo ready; while [ ! -e stop ]; do sleep 0.05; done; echo saved")
    file = job.output / "stop"
    job.prepare(warning_file=str(file))
    file.touch()  # an earlier attempt's
    with start(job.directory) as process:
        wait_for(lambda: b"ready" in job.log, "the trainer")
        assert not file.exists()
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
    assert job.log == b"ready\nsaved\n"


def test_the_signal_that_a_trainer_is_warned_by_is_its_own(
    job_of: JobOf, wait_for: WaitFor
) -> None:
    job = job_of("sh", "-c", "trap 'echo saved; exit 0' USR2; echo ready; sleep 600 & wait")
    job.prepare(warning_signal="SIGUSR2")
    with start(job.directory) as process:
        wait_for(lambda: b"ready" in job.log, "the trainer")
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 0
    assert b"saved" in job.log
