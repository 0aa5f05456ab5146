"""Asks SLURM what it would refuse, before anything is made; where it does not answer, nothing."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from autoexp.errors import SchedulerUnavailable
from autoexp.jobs.spec import JobSpec
from autoexp.model import nearest
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.slurm.commands import NO_ANSWER, SlurmCommandFailed, at, in_one_line, run
from autoexp.schedulers.slurm.parsing import read_longest
from autoexp.schedulers.slurm.script import executor_for, is_passing
from autoexp.storage import atomic

_MOST_KINDS = 8
"""Different requests that are tried: a plan of thousands of jobs has a few."""
_SETTINGS = ("partition", "account", "qos")


class _Request(NamedTuple):
    """What several jobs ask of SLURM alike."""

    machine: SlurmCluster
    limit_min: float | None


def refusals(jobs: Iterable[JobSpec]) -> list[str]:
    """Reasons why SLURM would not take jobs of a plan, each with the first job that it is about."""
    alike: dict[str, tuple[str, _Request]] = {}
    for job in jobs:
        if isinstance(job.machine, SlurmCluster):
            request = _Request(job.machine, job.configured_limit_min)
            key = f"{job.machine.model_dump_json()} {request.limit_min}"
            alike.setdefault(key, (job.name, request))
    found: dict[str, str] = {}
    for name, request in list(alike.values())[:_MOST_KINDS]:
        try:
            reason = _over_limit(request) or _refusal(request)
        except (SchedulerUnavailable, SlurmCommandFailed):
            break  # no SLURM here, or an outage: the submission itself will see
        if reason is not None:
            found.setdefault(reason, name)
    return [f"{name}: SLURM would not take it: {reason}" for reason, name in found.items()]


def _over_limit(request: _Request) -> str | None:
    """Reason when a job asks for more time than its partition allows: it would get less."""
    machine, wanted = request
    if wanted is None:
        return None
    which = ["-p", machine.partition] if machine.partition else []
    answer = _ask(machine, ["sinfo", "-h", "-o", "%P %l", *which])
    longest = read_longest(answer, default=not machine.partition)
    if wanted <= longest:
        return None
    where = f"partition {machine.partition}" if machine.partition else "the default partition"
    return f"it asks for {wanted:g} min, and {where} allows {longest:g} (slurm.time_limit_min)"


def _refusal(request: _Request) -> str | None:
    """sbatch's words about a request that is not submitted, with the settings that they name."""
    machine = request.machine
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "batch.sh"
        options = SubmitOptions("autoexp-test", "/dev/null", machine, request.limit_min)
        atomic.write(script, executor_for(machine, script, options).script("true"))
        try:
            run(["sbatch", "--test-only", str(script)], machine.query_timeout_s)
        except SlurmCommandFailed as error:
            words = error.stderr
            if is_passing(words) or NO_ANSWER.search(words):
                raise
            return f"{_said(words)}{_hint(words, machine)}"
    return None


def _said(words: str) -> str:
    """sbatch's words in one line, each once."""
    parts = in_one_line(words).split("; ")
    return "; ".join(dict.fromkeys(part.removeprefix("allocation failure: ") for part in parts))


def _hint(words: str, machine: SlurmCluster) -> str:
    """The settings that sbatch's words are about, and a partition of a similar name."""
    lowered = words.lower()
    given = {name: getattr(machine, name) for name in _SETTINGS}
    named = [f"slurm.{n}={value}" for n, value in given.items() if n in lowered and value]
    settings = f" ({', '.join(named)})" if named else ""
    if machine.partition is None or not re.search("invalid partition", lowered):
        return settings
    try:
        known = _ask(machine, ["sinfo", "-h", "-o", "%R"]).split()
    except (SchedulerUnavailable, SlurmCommandFailed):
        return settings
    return settings + (nearest(machine.partition, known) or f"; there are {', '.join(known)}")


def _ask(machine: SlurmCluster, command: list[str]) -> str:
    return run(at(machine.at, command), machine.query_timeout_s)
