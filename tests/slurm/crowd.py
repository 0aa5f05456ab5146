"""Every way in which a job can end, or never start, on the cluster at the same time."""

import time

from tests.patience import until
from tests.slurm.bench import FOR_EVER, Bench, slurm
from tests.slurm.cluster import Cluster

TAKES_MEMORY = "x = bytearray(500_000_000); x[::4096] = x[::4096]; import time; time.sleep(60)"
# Waits to be put back into the queue, and ends when it runs again, not before it can be seen.
TWICE = ("sh", "-c", "[ ! -e again ] || exec sleep 5; touch again; exec sleep 600")

WAIT_FOR_EVER = ("held", "held_by_admin", "unreachable")
REQUEUED = ("requeued", "preempted_requeued")
# Started again within two seconds, a job is killed: "Job credential revoked".
_SHORTEST_S = 4.0


def gather(bench: Bench, cluster: Cluster) -> None:
    """Submit all of them, do to each what it takes, and watch until each has come to its end."""
    _submit(bench)
    running = ("cancelled", "scancelled", "timeout", "node_failed", "preempted", *REQUEUED)
    bench.wait("RUNNING", *running)
    # SLURM calls it running before the payload has started the command.
    until(lambda: all(bench.processes(name) for name in running), "commands that run")
    until(lambda: all(bench.output(name, "again").exists() for name in REQUEUED), "first runs")
    bench.wait("FAILED", "failed")

    cluster("kill-node", "3")
    bench.jobs["cancelled"].cancel_requested = "autoexp cancel by a test"
    bench.scheduler.cancel(bench.refs(["cancelled"]))
    slurm("scancel", _id(bench, "scancelled"), _id(bench, "scancelled_pending"))
    slurm("scontrol", "requeue", _id(bench, "requeued"))
    slurm("scontrol", "hold", _id(bench, "held_by_admin"))
    never = _id(bench, "unreachable")
    slurm("scontrol", "update", f"JobId={never}", f"Dependency=afterok:{_id(bench, 'failed')}")
    slurm("scontrol", "release", never)
    bench.submit(
        "urgent", FOR_EVER, partition="urgent", cpus_per_task=8, options={"nodelist": "n2"}
    )
    bench.wait("RUNNING", "urgent")
    slurm("scancel", _id(bench, "urgent"))

    waits_since: dict[str, float] = {}

    def done() -> bool:
        for name in REQUEUED:
            if bench.attempt(name).reason == "BeginTime":
                since = waits_since.setdefault(name, time.monotonic())
                if time.monotonic() - since > _SHORTEST_S:
                    # SLURM itself lets a requeued job wait for two minutes.
                    slurm("scontrol", "update", f"JobId={_id(bench, name)}", "StartTime=now")
        return all(_has_come_to_its_end(bench, name) for name in bench.jobs)

    bench.watch(done, "the end of all of them")


def _has_come_to_its_end(bench: Bench, name: str) -> bool:
    attempt = bench.attempt(name)
    if name in WAIT_FOR_EVER:
        return attempt.reason in ("JobHeldUser", "JobHeldAdmin", "DependencyNeverSatisfied")
    return attempt.verdict is not None


def _submit(bench: Bench) -> None:
    def on(node: str, **options: str | bool) -> dict[str, object]:
        return {"options": {"nodelist": node, **options}}

    submit = bench.submit
    # Asks for more than the partition has: capped, or it would wait for ever.
    submit("timeout", FOR_EVER, partition="short", time_limit_min=30, **on("n1"))
    submit("node_failed", FOR_EVER, **on("n3"))
    submit("completed", ("true",), **on("n1"))
    submit("failed", ("sh", "-c", "exit 3"), **on("n1"))
    submit("killed", ("sh", "-c", "kill -9 $$"), **on("n1"))
    submit("out_of_memory", ("python3", "-c", TAKES_MEMORY), **on("n1"))
    submit("step_out_of_memory", ("srun", "python3", "-c", TAKES_MEMORY), **on("n1"))
    submit("cancelled", FOR_EVER, **on("n1"))
    submit("scancelled", FOR_EVER, **on("n1"))
    submit("requeued", TWICE, requeue=True, gpus_per_node=2, **on("n1"))
    preemptible = {"partition": "preemptible", "cpus_per_task": 4, **on("n2")}
    submit("preempted", FOR_EVER, **preemptible)
    submit("preempted_requeued", TWICE, requeue=True, **preemptible)
    for name in ("scancelled_pending", "held", "unreachable"):
        submit(name, **on("n1", hold=True))
    submit("held_by_admin", **on("n1", begin="now+1hour"))
    submit("deadline", **on("n1", deadline="now+10seconds"))


def _id(bench: Bench, name: str) -> str:
    job_id = bench.attempt(name).job_id
    assert job_id is not None
    return job_id
