"""Asks SLURM about a job that somebody else submitted, and for the cluster's name."""

import re
from functools import cache

from autoexp.errors import BadInput, SchedulerUnavailable
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.commands import SlurmCommandFailed, at, run

_JOB_ID = re.compile(r"[1-9][0-9]*(_(0|[1-9][0-9]*))?")
# Each of these ends its line, so that names may hold spaces.
_DESCRIBED = {
    "JobName": r"^JobId=.*? JobName=(.*)$",
    "Command": r"^ +Command=(.*)$",
    "StdOut": r"^ +StdOut=(.*)$",
    "UserId": r"^ +UserId=.*?\(([0-9]+)\)",
}


def describe(job_id: str, cluster: SlurmCluster) -> dict[str, str]:
    """Fields of `scontrol show job`; raises BadInput when SLURM does not know the job."""
    if not _JOB_ID.fullmatch(job_id):
        raise BadInput(f"{job_id}: no SLURM job id, such as 123, or 123_4 for a task of an array")
    try:
        command = at(cluster.at, ["scontrol", "show", "job", job_id])
        answer = run(command, cluster.query_timeout_s)
    except SlurmCommandFailed as error:
        raise BadInput(f"job {job_id}: {error.stderr}; `squeue --me` lists yours") from error
    if "ArrayTaskId=" in answer and "_" not in job_id:
        raise BadInput(f"job {job_id} is an array: adopt its tasks, one by one, as {job_id}_0")
    found = {key: re.search(pattern, answer, re.M) for key, pattern in _DESCRIBED.items()}
    described = {key: match[1].strip() for key, match in found.items() if match}
    if not described.get("JobName"):
        raise BadInput(f"job {job_id}: scontrol gives no name for it; it said: {answer[:200]!r}")
    return {"StdOut": "/dev/null", **described}


def cluster_name(cluster: SlurmCluster) -> str:
    """The cluster's name: the configured one, else ClusterName of `scontrol show config`."""
    if cluster.at is not None:
        return cluster.at.lower()
    try:
        answer = run(["scontrol", "show", "config"], cluster.query_timeout_s)
    except SlurmCommandFailed as error:
        raise BadInput(f"SLURM does not name its cluster ({error.stderr}); try again") from error
    found = re.search(r"^ClusterName\s*=\s*(\S+)", answer, re.M)
    return found[1].lower() if found else ""


def nodes_of_partition(cluster: SlurmCluster) -> int | None:
    """Number of the partition's nodes, asked once; None where SLURM does not say it."""
    which = ("-p", cluster.partition) if cluster.partition else ()
    try:
        return _count_nodes(cluster.at, which, cluster.query_timeout_s) or None
    except (SlurmCommandFailed, SchedulerUnavailable):
        return None


@cache
def _count_nodes(cluster: str | None, which: tuple[str, ...], timeout_s: float) -> int:
    answer = run(at(cluster, ["sinfo", "-h", "-N", "-o", "%N", *which]), timeout_s)
    return len(set(answer.split()))
