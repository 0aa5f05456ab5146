"""The doctor's job: started as a training would be, it reports from its nodes and is warned."""

import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from autoexp import states
from autoexp.config.experiment import Experiment
from autoexp.errors import AutoexpError
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.operations.doctor import probe
from autoexp.operations.doctor.host import Finding
from autoexp.resources.launchers import ELASTIC
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers.base import (
    AttemptRef,
    JobStatus,
    Scheduler,
    SubmitOptions,
    prepare,
    submit_once,
)
from autoexp.schedulers.exit_files import read_start_file
from autoexp.schedulers.registry import scheduler_for
from autoexp.schedulers.slurm.commands import SlurmCommandFailed, at, run
from autoexp.storage import removal

_LIMIT_MIN = 3.0
_WARN_S = 30
_QUEUE_PATIENCE_S = 1800.0
_RUN_PATIENCE_S = 120.0
_WARNED_S = 45.0
_LINK_PATIENCE_S = 40.0
_END_S = 10.0
_FILES = 10_000  # of a folder, removed in one go
_SHOWN = 5
_LOG_END = 2000


class Report(NamedTuple):
    """One process's report from its node."""

    rank: int
    host: str
    python: str
    cores: tuple[int, ...]
    devices: tuple[str, ...]
    visible: tuple[str, ...]
    """Devices that a variable names."""
    hidden: bool = False
    """True if such a variable is empty."""

    @classmethod
    def read(cls, text: str) -> "Report":
        """Read what `probe.py` wrote; raises ValueError for anything else."""
        content: dict[str, Any] = json.loads(text)
        try:
            named = sorted(map(str, content["visible"].values()))
            return cls(
                int(content["rank"]),
                str(content["host"]),
                str(content["python"]),
                tuple(map(int, content["cores"])),
                tuple(map(str, content["devices"])),
                tuple(word for word in (named[0].split(",") if named else []) if word),
                named[:1] == [""],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no report: {error}") from error

    @property
    def sees(self) -> int:
        """Number of devices that it may use, as far as can be told without a framework."""
        if self.hidden:
            return 0
        return min(len(self.visible), len(self.devices)) if self.visible else len(self.devices)


def examine_job(
    experiment: Experiment, trunk: JobSpec, root: Path, notify: Callable[[str], None]
) -> Iterator[Finding]:
    """Submit a job of a few minutes with the experiment's resources, and say what it reports.

    Its files lie in `root` meanwhile. However this ends, the job is cancelled and they are removed.
    """
    root.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root))
    try:
        yield from _Job(experiment, trunk, folder).run(notify)
    except (AutoexpError, SlurmCommandFailed, OSError) as error:
        yield Finding("job", "to mend", str(error))
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder into which a job that ends may still write."""
    deadline = time.monotonic() + _END_S
    while folder.exists() and time.monotonic() < deadline:
        with suppress(OSError):  # not empty again
            removal.remove_part(folder, _FILES)
        time.sleep(0.1)


class _Job:
    """One job of the doctor's, in a folder of its own."""

    def __init__(self, experiment: Experiment, trunk: JobSpec, folder: Path) -> None:
        limits = {"time_limit_min": _LIMIT_MIN, "warn_before_limit_s": _WARN_S}
        self._machine = experiment.slurm.model_copy(update=limits)
        self._scheduler: Scheduler = scheduler_for(experiment)
        self._reports = folder / "reports"
        self._reports.mkdir()
        key = f"doctor{folder.name.rpartition('-')[2]}"
        self._ref = AttemptRef(key, folder / key, key, "batch.sh")
        self._attempt = Attempt(
            number=1, key=key, name=key, log=str(folder / "job.log"), intended_at=now()
        )
        warned_by = trunk.trainer.warning.file_in(folder / "checkpoints")
        script = folder / "probe.py"
        script.write_bytes(Path(probe.__file__).read_bytes())
        words = [_python(trunk, self._machine), str(script), str(self._reports)]
        changes: dict[str, Any] = {
            "name": "doctor",
            "machine": self._machine,
            "command": (*words, *([warned_by] if warned_by else [])),
            "output_dir": str(folder / "output"),
            "save_dir": str(folder / "checkpoints"),
        }
        self._spec = trunk.model_copy(update=changes)

    def run(self, notify: Callable[[str], None]) -> Iterator[Finding]:
        """Submit it, wait for its reports, warn it, and say what came of that."""
        directory = self._ref.directory
        spec = self._scheduler.payload_spec(self._spec, self._attempt)
        prepare(self._ref, self._spec, self._attempt, spec)
        options = SubmitOptions(self._ref.name, self._attempt.log, self._machine, _LIMIT_MIN)
        job_id = submit_once(self._ref, options, self._scheduler, fresh=True)
        self._ref = self._ref._replace(job_id=job_id)
        notify(f"job {job_id} of {_LIMIT_MIN:g} minutes is submitted; Ctrl-C cancels it")
        started = time.monotonic()
        try:
            status = self._wait(lambda: (directory / "started.json").exists(), _QUEUE_PATIENCE_S)
            queued = f"job {job_id} began after {time.monotonic() - started:.0f} s"
            if not (directory / "started.json").exists():
                yield self._unstarted(job_id, status)
                return
            yield Finding("job", "ok", queued)
            expected = self._machine.workers
            status = self._wait(lambda: len(self._told("report")) >= expected, _RUN_PATIENCE_S)
            reports = [Report.read(text) for text in self._told("report").values()]
            yield from read_reports(reports, expected, self._machine, self._end(status))
            if reports and machine_nodes(self._machine) > 1:
                yield self._link()
            if reports:
                yield self._warn(len(reports))
        finally:
            self._scheduler.cancel([self._ref])

    def _unstarted(self, job_id: str, status: JobStatus | None) -> Finding:
        ended = status is not None and states.is_terminal(status.state)
        text = f"job {job_id} did not begin{self._end(status)}"
        return Finding("job", "to mend" if ended else "not known", text)

    def _link(self) -> Finding:
        """Wait for what the two ends of the measured way say."""

        def said() -> list[dict[str, Any]]:
            both = (*self._told("receive").values(), *self._told("send").values())
            return [json.loads(text) for text in both]

        self._wait(lambda: any({"seconds", "error"} & set(x) for x in said()), _LINK_PATIENCE_S)
        return read_link(said())

    def _warn(self, reported: int) -> Finding:
        """Warn the job as SLURM does before its limit, and see whom that reaches."""
        name = self._spec.trainer.warning.file or self._spec.trainer.warning.signal
        began = time.monotonic()
        if isinstance(self._machine, SlurmCluster):
            words = ["scancel", "--signal=USR1", "--batch", str(self._ref.job_id)]
            run(at(self._machine.at, words), self._machine.query_timeout_s)
        elif (start := read_start_file(self._ref.directory)) is not None:
            os.kill(int(start["pid"]), signal.SIGUSR1)
        self._wait(lambda: len(self._told("told")) >= reported, _WARNED_S)
        took = time.monotonic() - began
        told = self._told("told")
        if len(told) == reported:
            return Finding("warning", "ok", f"{name} reached all {reported} within {took:.0f} s")
        ranks = sorted(self._told("report").keys() - told.keys())
        shown = ", ".join(str(rank) for rank in ranks[:_SHOWN])
        more = " and others" if len(ranks) > _SHOWN else ""
        text = f"{name} reached {len(told)} of {reported} processes, and not {shown}{more}: they "
        return Finding("warning", "to mend", f"{text}would not save before the time limit")

    def _told(self, kind: str) -> dict[int, str]:
        """The reports of a kind, by the process's number."""
        return {
            int(path.stem.partition("-")[2]): path.read_text()
            for path in self._reports.glob(f"{kind}-*.json")
        }

    def _wait(self, until: Callable[[], bool], patience_s: float) -> JobStatus | None:
        """Wait for a condition, or the job's end; returns the scheduler's last word."""
        deadline, asked, status = time.monotonic() + patience_s, 0.0, None
        while not until() and time.monotonic() < deadline:
            if time.monotonic() - asked >= self._machine.scheduler_tick_s:
                asked = time.monotonic()
                status = self._scheduler.query([self._ref]).get(self._ref.key, status)
                if status is not None and states.is_terminal(status.state):
                    break
            time.sleep(0.2)
        return status

    def _end(self, status: JobStatus | None) -> str:
        """The scheduler's last word and the log's, for a job that went wrong."""
        words = "" if status is None else f"; {status.state} {status.reason or ''}".rstrip()
        with suppress(OSError):
            text = Path(self._attempt.log).read_bytes()[-_LOG_END:].decode(errors="replace")
            last = [line.strip() for line in text.splitlines() if line.strip()][-1:]
            words += "".join(f"; its log ends with: {line}" for line in last)
        return words


def _python(trunk: JobSpec, machine: LocalMachine | SlurmCluster) -> str:
    """The Python of the trainer, where its command begins with one."""
    if Path(trunk.command[0]).name.startswith("python"):
        return trunk.command[0]
    own = machine.python if isinstance(machine, SlurmCluster) else None
    return own or sys.executable


def read_reports(
    reports: Sequence[Report], expected: int, machine: LocalMachine | SlurmCluster, end: str
) -> Iterator[Finding]:
    """Findings from the reports of all processes."""
    hosts: dict[str, list[Report]] = defaultdict(list)
    for report in reports:
        hosts[report.host].append(report)
    each = ", ".join(sorted({f"{len(found)}" for found in hosts.values()}))
    text = f"{len(reports)} of {expected}, on {len(hosts)} nodes, {each or 'none'} on each"
    if len(reports) != expected:
        yield Finding("processes", "to mend", f"{text}{end}")
    else:
        yield Finding("processes", "ok", text)
    if not reports:
        return
    versions = ", ".join(sorted({report.python for report in reports}))
    yield Finding("python there", "ok", versions)
    yield _on_devices(reports, machine)
    yield _on_binding(hosts, machine)


def machine_nodes(machine: LocalMachine | SlurmCluster) -> int:
    """Nodes on which the job has processes that train."""
    return machine.nodes - machine.spares if isinstance(machine, SlurmCluster) else 1


def read_link(said: Sequence[dict[str, Any]]) -> Finding:
    """What one TCP connection between two nodes carries, from what its ends say."""
    for each in said:
        if each.get("bytes") and each.get("seconds"):
            bits, seconds = 8 * float(each["bytes"]), float(each["seconds"])
            text = f"{bits / seconds / 1e9:.1f} Gbit/s over one TCP connection to the first node"
            where = f"{each.get('address')}, {float(each['bytes']) / 2**20:,.0f} MiB"
            return Finding("bandwidth", "ok", f"{text} ({where} in {seconds:.1f} s)")
    reasons = "; ".join(str(each["error"]) for each in said if "error" in each)
    if not reasons:
        return Finding("bandwidth", "not known", "the second node's processes have sent nothing")
    text = f"the second node does not reach the first: {reasons}; see slurm.rendezvous"
    return Finding("bandwidth", "to mend", text)


def _on_devices(reports: Sequence[Report], machine: LocalMachine | SlurmCluster) -> Finding:
    if not machine.gpus_per_node:
        return Finding("devices", "ok", "none asked for (slurm.gpus_per_node)")
    blind = [report for report in reports if not report.sees]
    if blind:
        where = ", ".join(f"{report.rank} on {report.host}" for report in blind[:_SHOWN])
        text = f"processes without a GPU in sight: {where}; see slurm.gpus_per_node and gpu_bind"
        return Finding("devices", "to mend", text)
    seen = sorted({report.sees for report in reports})
    return Finding("devices", "ok", f"each process sees {' or '.join(map(str, seen))}")


def _on_binding(hosts: dict[str, list[Report]], machine: LocalMachine | SlurmCluster) -> Finding:
    reports = [report for found in hosts.values() for report in found]
    fewest = min(len(report.cores) for report in reports)
    shared = any(
        set(one.cores) & set(other.cores)
        for found in hosts.values()
        for place, one in enumerate(found)
        for other in found[:place]
    )
    most = max(len(found) for found in hosts.values())
    how = "alone" if most == 1 else "shared" if shared else "apart"
    text = f"{fewest} {'core' if fewest == 1 else 'cores'} for each process, {how}"
    wanted = machine.cpus_per_task if isinstance(machine, SlurmCluster) else None
    if wanted is not None and fewest < wanted and machine.launcher == "srun":
        return Finding("binding", "to mend", f"{text}: slurm.cpus_per_task is {wanted}")
    if fewest < most and machine.launcher in ELASTIC:
        text = f"{most} processes of a node share {fewest} cores: give slurm.cpus_per_task"
        return Finding("binding", "to mend", text)
    return Finding("binding", "ok", text)
