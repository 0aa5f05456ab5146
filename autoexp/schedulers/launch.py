"""The command of a job with its launcher, container and variables, as the payload runs it."""

import math
import sys
from pathlib import Path
from typing import Any

from autoexp.jobs.images import bound_paths
from autoexp.jobs.spec import JobSpec
from autoexp.payload import CHECK_FILE, NODE_FILE
from autoexp.resources.containers import NoContainer
from autoexp.resources.launchers import torchrun_workers
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.resources.runtimes import Handing
from autoexp.schedulers.base import PayloadSpec
from autoexp.schedulers.on_nodes import step_words

# Of a process under srun, what torch.distributed asks for. The text is fixed: the command follows
# as arguments of its own.
_RANKS = 'export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS; exec "$@"'
_RANK_NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MODULES = {
    "torchrun": "torch.distributed.run",
    # Of nvidia-resiliency-ext, which takes torchrun's options, and its variables PET_….
    "ft_launcher": "nvidia_resiliency_ext.fault_tolerance.launcher",
}
_SHUTDOWN = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Seconds from torchrun's SIGTERM to its SIGKILL, 30 unless set; read by torch 2.12 and later."""
_AGENT_S = 5
"""Seconds that its agent needs to end after its workers."""
_LOCAL_GRACE_S = 10.0


def payload_spec(machine: LocalMachine | SlurmCluster, spec: JobSpec, key: str) -> PayloadSpec:
    """What the payload of a job runs on its machine."""
    spec = _of_attempt(machine, spec, key)
    has_steps = isinstance(machine, SlurmCluster) and _is_launched(machine, spec)
    warning, save_dir = spec.trainer.warning, Path(spec.save_dir)
    trains = _trains(spec)
    save = spec.trainer.save_now if trains else None
    resumed = spec.trainer.resumed(spec.command, save_dir) if trains else spec.command
    again = spec.model_copy(update={"command": resumed})
    return PayloadSpec(
        with_launcher(machine, spec, key),
        variables_of(machine, spec),
        machine.grace_s if isinstance(machine, SlurmCluster) else _LOCAL_GRACE_S,
        signal_steps=has_steps,
        warning_signal=warning.signal if trains else "SIGTERM",
        warning_file=warning.file_in(save_dir) if trains else None,
        save_signal=save.signal if save and not save.file else None,
        save_file=save.file_in(save_dir) if save else None,
        resumed=() if resumed == spec.command else with_launcher(machine, again, key),
        files=spec.trainer.files(spec.decay, save_dir) if trains else {},
        before=_node_setup(machine),
        copies=spec.trainer.copies(save_dir) if trains else {},
        node_environment=machine.node_environment,
        inside=_inside(machine, spec),
        check=_node_check(machine, spec),
        signal_alone=spec.container.passes_signals and not has_steps,
        rendezvous=_rule(machine),
        stop=spec.container.stop(),
    )


def variables_of(machine: LocalMachine | SlurmCluster, spec: JobSpec) -> dict[str, str]:
    """The variables of a job, those of the machine and the container over the trainer's own."""
    return {**_configured(machine, spec), **spec.container.environment()}


def _configured(machine: LocalMachine | SlurmCluster, spec: JobSpec) -> dict[str, str]:
    shutdown: dict[str, str] = {}
    if machine.launcher == "torchrun" and _trains(spec):
        shutdown[_SHUTDOWN] = str(max(30, machine.warn_before_limit_s - _AGENT_S))
    return {**shutdown, **spec.environment, **machine.environment}


def with_launcher(machine: LocalMachine | SlurmCluster, spec: JobSpec, key: str) -> tuple[str, ...]:
    """The trainer's command with its launcher: srun, or torchrun or ft_launcher on every node.

    The launcher runs on the node; torchrun, which is a part of torch, inside the container.
    """
    spec = _of_attempt(machine, spec, key)
    names = (*_configured(machine, spec), *machine.node_environment)
    step = spec.container.step(spec.output_dir, names, bound_paths(spec))
    if not _is_launched(machine, spec):
        alone = ("srun", "--nodes=1", "--ntasks=1", *step) if step else ()
        return (*alone, *_on_node(machine, spec, spec.command))
    if isinstance(machine, LocalMachine):
        return _on_node(machine, spec, _under_torchrun(machine, spec.command, "--standalone"))
    # Since 22.05 srun does not take the CPUs of a task over from sbatch (srun(1)).
    cpus = (f"--cpus-per-task={machine.cpus_per_task}",) if machine.cpus_per_task else ()
    binds = {"cpu-bind": machine.cpu_bind, "gpu-bind": machine.gpu_bind}
    bound = (f"--{name}={how}" for name, how in binds.items() if how)
    # Where nodes may fail, neither the step nor the others end with one.
    fails = machine.min_nodes is not None and machine.min_nodes < machine.nodes
    ends = ("--no-kill", "--kill-on-bad-exit=0") if fails else ("--kill-on-bad-exit=1",)
    srun = ("srun", *ends, *cpus, *bound, *step, *machine.srun_arguments)
    if machine.launcher == "srun":
        return (*srun, "sh", "-c", _RANKS, "sh", *_on_node(machine, spec, spec.command))
    # The rendezvous endpoint is known only inside the job: the payload sets PET_RDZV_ENDPOINT.
    rendezvous = ("--rdzv-backend=c10d", f"--rdzv-id={key}")
    nodes = f"{machine.min_nodes}:{machine.nodes}" if fails else machine.nodes
    torchrun = _under_torchrun(machine, spec.command, f"--nnodes={nodes}", *rendezvous)
    return (*srun, "--ntasks-per-node=1", *_on_node(machine, spec, torchrun))


def _of_attempt(machine: LocalMachine | SlurmCluster, spec: JobSpec, key: str) -> JobSpec:
    """The job with the settings of its container as they are in one attempt."""
    if isinstance(spec.container, NoContainer):
        return spec
    values = {"job": spec.name, "key": key, "output_dir": spec.output_dir}
    container = spec.container.for_attempt(values)
    # Several processes of a node, each in a container of its own, cannot have one name.
    if not (_is_launched(machine, spec) and machine.launcher == "srun"):
        container = container.named(key)
    return spec.model_copy(update={"container": container})


def _is_launched(machine: LocalMachine | SlurmCluster, spec: JobSpec) -> bool:
    return machine.launcher != "none" and (_trains(spec) or spec.launched_as is not None)


def _trains(spec: JobSpec) -> bool:
    return spec.kind.trains


def _under_torchrun(
    machine: LocalMachine | SlurmCluster, command: tuple[str, ...], *options: str
) -> tuple[str, ...]:
    binding = (f"--numa-binding={machine.numa_binding}",) if machine.numa_binding else ()
    words = (
        *options,
        f"--nproc-per-node={torchrun_workers(machine)}",
        *binding,
    )
    again = (f"--max-restarts={machine.restarts}",) if machine.restarts else ()
    words = (*words, *again, *machine.launcher_arguments)
    python, *script = command
    if not Path(python).name.startswith("python"):
        return (machine.launcher, *words, "--no-python", *command)
    torchrun = (python, "-m", _MODULES[machine.launcher], *words)
    # It takes a file or a module, and no program's text.
    return (*torchrun, "--no-python", *command) if script[:1] == ["-c"] else (*torchrun, *script)


def _on_node(
    machine: LocalMachine | SlurmCluster, spec: JobSpec, command: tuple[str, ...]
) -> tuple[str, ...]:
    """The command of one task, on its node: variables of the node, NUMA binding, container."""
    names = (*_configured(machine, spec), *machine.node_environment)
    place = spec.trainer.working_directory if _trains(spec) else None
    launched = _is_launched(machine, spec)
    ranks = _RANK_NAMES if launched and machine.launcher == "srun" else ()
    container, own = spec.container, dict.fromkeys((*names, *ranks, *spec.container.environment()))
    if place is not None and isinstance(container, NoContainer):
        command = ("env", f"--chdir={place}", *command)
    elif place is not None and not isinstance(container, NoContainer) and not container.workdir:
        container = container.model_copy(update={"workdir": place})
    inside = container.inside(command, spec.output_dir, own, bound_paths(spec))
    if machine.numactl and _trains(spec):
        inside = ("numactl", *machine.numactl, *inside)
    each = _inside(machine, spec).get("each")
    if machine.node_environment or each or (_rule(machine) and launched):
        return (python_of(machine), "-c", running(NODE_FILE), "start", *inside)
    return inside


def _inside(machine: LocalMachine | SlurmCluster, spec: JobSpec) -> dict[str, Any]:
    """What a container's runtime is to set inside; empty where it needs no help for it."""
    names = (*_configured(machine, spec), *machine.node_environment)
    handing = spec.container.handing(names)
    if handing == Handing():
        return {}
    # Processes that srun starts have their own ranks; a runtime that srun is, is told once.
    has_steps = isinstance(machine, SlurmCluster) and _is_launched(machine, spec)
    each = has_steps and bool(handing.prefixes)
    return {**handing._asdict(), "each": each}


def _node_setup(machine: LocalMachine | SlurmCluster) -> tuple[str, ...]:
    """The command that runs the set-up once on each node; empty without one."""
    if not machine.node_setup:
        return ()
    shell = ("sh", "-e", "-c", "\n".join(machine.node_setup))
    if isinstance(machine, LocalMachine):
        return shell
    nodes = machine.nodes
    return ("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", *shell)


def _node_check(machine: LocalMachine | SlurmCluster, spec: JobSpec) -> dict[str, Any]:
    """The check of the nodes, as `nodes/check.py` reads it; empty without one."""
    policy = spec.nodes
    if policy is None or not policy.checks or not _trains(spec):
        return {}
    command: tuple[str, ...] = (python_of(machine), "-c", running(CHECK_FILE))
    if isinstance(machine, SlurmCluster):
        # One that a node holds up is ended by SLURM, which counts whole minutes.
        bound = f"--time={math.ceil(policy.timeout / 60) + 1}"
        command = (*step_words(machine.nodes), "--kill-on-bad-exit=0", bound, *command)
    return {
        "command": command,
        "kind": policy.check,
        "own": policy.command,
        "timeout": policy.timeout,
        "disks": policy.disks,
        "least_free": policy.least_free,
        "most_skew": policy.most_skew,
        "slowest": policy.slowest,
        "gpus": machine.gpus_per_node,
    }


def _rule(machine: LocalMachine | SlurmCluster) -> dict[str, str | bool]:
    """The rule of the rendezvous, as the payload reads it; empty for the node's own name."""
    if isinstance(machine, LocalMachine):
        return {}
    return machine.rendezvous.model_dump(exclude_defaults=True)


def running(file: str) -> str:
    """Python's text that runs a file of the attempt: where it lies is known only inside the job."""
    path = f"os.path.join(os.environ['AUTOEXP_ATTEMPT'],'{file}')"
    return f"import os,runpy; runpy.run_path({path},run_name='__main__')"


def python_of(machine: LocalMachine | SlurmCluster) -> str:
    """Python on the nodes of a machine."""
    own = machine.python if isinstance(machine, SlurmCluster) else None
    return own or sys.executable
