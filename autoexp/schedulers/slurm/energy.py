"""The energy of jobs, where the cluster's accounting has it (AcctGatherEnergyType)."""

from collections.abc import Iterable, Sequence

from autoexp.errors import SchedulerUnavailable
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.slurm.commands import SlurmCommandFailed, at, run

_JOULES = 3.6e6  # of a kWh
_UNSET = 2**32 - 2
"""What sacct has for a job that nobody measured (NO_VAL)."""


def energy_kwh(job_ids: Sequence[str], cluster: SlurmCluster) -> dict[str, float]:
    """Energy of jobs by id; without those that accounting has none for, or does not answer."""
    if not job_ids:
        return {}
    words = ["sacct", "-n", "-P", "-D", "-o", "JobID,ConsumedEnergyRaw", "-j", ",".join(job_ids)]
    try:
        return read_energy(run(at(cluster.at, words), cluster.query_timeout_s).splitlines())
    except (SchedulerUnavailable, SlurmCommandFailed):
        return {}


def read_energy(lines: Iterable[str]) -> dict[str, float]:
    """Read `sacct -P -o JobID,ConsumedEnergyRaw`: a job's own row, or the sum of its steps."""
    own: dict[str, float] = {}
    steps: dict[str, float] = {}
    for line in lines:
        job_id, _, joules = line.partition("|")
        if not joules.isdecimal() or not 0 < int(joules) < _UNSET:
            continue
        name, _, step = job_id.partition(".")
        place = steps if step else own
        place[name] = place.get(name, 0.0) + int(joules) / _JOULES
    return {**steps, **own}
