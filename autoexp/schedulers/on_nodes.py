"""Runs a command on each node of an attempt that is running, beside its trainer."""

from collections.abc import Sequence

from autoexp.errors import SchedulerUnavailable
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers.slurm import commands


def step_words(nodes: int) -> tuple[str, ...]:
    """A step of one process on each node, beside other steps, that takes none of their cores."""
    each = (f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1")
    return ("srun", "--overlap", *each, "--cpus-per-task=1", "--cpu-bind=none", "--input=none")


def run_on_nodes(
    machine: LocalMachine | SlurmCluster, job_id: str, words: Sequence[str], timeout_s: float
) -> str:
    """Run a command on each node of a job; returns what it printed.

    Raises SchedulerUnavailable when it does not end in time or cannot be run, and
    SlurmCommandFailed when it fails on a node.
    """
    if isinstance(machine, SlurmCluster):
        step, *rest = step_words(machine.nodes)
        asked = commands.at(machine.at, [step, f"--jobid={job_id}", *rest, *words])
        return commands.run(asked, timeout_s)
    if not isinstance(machine, LocalMachine):
        raise SchedulerUnavailable("nobody knows how to run a command on this machine's nodes")
    return commands.bounded(words, timeout_s).stdout
