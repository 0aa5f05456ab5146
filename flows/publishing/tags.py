"""The tags by which a session's flow runs are found: session, project and cluster."""

import re

from autoexp.errors import SchedulerUnavailable
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm_commands import SlurmCommandFailed, run
from autoexp.session.session import Session


def tags_of(session: Session) -> tuple[str, ...]:
    """`session:demo-1124-k3fq`, `project:demo`, `cluster:lumi`."""
    found = (f"session:{session.id}", f"project:{session.experiment.project.name}")
    name = _cluster(session)
    return (*found, f"cluster:{name}") if name else found


def _cluster(session: Session) -> str | None:
    """The cluster's own name for itself; None when it does not answer now."""
    machine = session.experiment.slurm
    if not isinstance(machine, SlurmCluster):
        return machine.kind
    try:
        answer = run(["scontrol", "show", "config"], machine.query_timeout_s)
    except (SchedulerUnavailable, SlurmCommandFailed):
        return None
    named = re.search(r"^ClusterName\s*=\s*(\S+)", answer, re.M)
    return named[1] if named else None
