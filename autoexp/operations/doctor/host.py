"""Checks of a machine before anything is submitted: each line is ok, to mend, or not known."""

import fnmatch
import getpass
import os
import re
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from autoexp import proxies
from autoexp.config.experiment import Experiment
from autoexp.errors import AutoexpError, SchedulerUnavailable
from autoexp.jobs.spec import JobSpec
from autoexp.operations.doctor.quota import Quota, Unknown, mount_of, quotas
from autoexp.resources.containers import Edf, NoContainer, Pyxis
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.slurm.commands import SlurmCommandFailed, at, run
from autoexp.schedulers.slurm.parsing import read_longest
from autoexp.schedulers.slurm.script import body, executor_for

Verdict = Literal["ok", "to mend", "not known"]

_LEAST_FREE = 10 * 2**30  # bytes
_LEAST_FILES = 10_000
_MOST_SKEW_S = 2.0
_REFUSED = re.compile(r"^sbatch: error: (.*)$", re.MULTILINE)


class Finding(NamedTuple):
    """One line of the answer."""

    what: str
    verdict: Verdict
    text: str
    """What was found, and for `to mend` how."""


def examine(experiment: Experiment, trunk: JobSpec, root: Path) -> Iterator[Finding]:
    """Check everything that a session of this experiment needs on this host; changes nothing.

    Files are made and removed again in `root`, where sessions lie.
    """
    machine = experiment.slurm
    yield _python()
    yield from _processor_time()
    yield from _sessions(root)
    yield from _quotas(root, Path(trunk.save_dir))
    yield _proxy()
    yield from _image(experiment)
    if isinstance(machine, SlurmCluster):
        yield from _site(machine)
        yield from _asked_of_slurm(machine, trunk)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("python", "ok", f"{version} here, {sys.executable}")


def _processor_time() -> Iterator[Finding]:
    soft, _ = resource.getrlimit(resource.RLIMIT_CPU)
    if soft != resource.RLIM_INFINITY:
        how = 'watch from a small job: docs/login-node.md, "As a small SLURM job"'
        text = f"a process may use {soft / 60:.0f} minutes here, then it is killed; {how}"
        yield Finding("processor time", "to mend", text)


def _sessions(root: Path) -> Iterator[Finding]:
    """Room for files, and how far the file server's clock is from this host's."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=root, prefix=".doctor-") as file:
            before = time.time()
            file.write(b"x")
            file.flush()
            skew = Path(file.name).stat().st_mtime - before
        space, files = shutil.disk_usage(root).free, os.statvfs(root).f_favail
    except OSError as error:
        text = f"{root}: {error.strerror}; set AUTOEXP_SESSIONS to a shared directory of yours"
        yield Finding("sessions", "to mend", text)
        return
    gigabytes = f"{space / 2**30:,.0f} GiB free"
    if space < _LEAST_FREE:
        yield Finding("sessions", "to mend", f"{root}: {gigabytes}: make room")
    elif 0 < files < _LEAST_FILES:
        yield Finding("sessions", "to mend", f"{root}: room for {files:,} files: make room")
    else:
        yield Finding("sessions", "ok", f"{root}: {gigabytes}")
    if abs(skew) > _MOST_SKEW_S:
        text = f"the file server's clock is {skew:+.0f} s from this host's: tell the administrators"
        yield Finding("clock", "to mend", text)
    else:
        yield Finding("clock", "ok", "as the file server's")


def _quotas(*folders: Path) -> Iterator[Finding]:
    """What may still be written where sessions and checkpoints lie, by the filesystem's quotas."""
    try:
        table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
        there = [next(each for each in (x, *x.parents) if each.exists()) for x in folders]
    except OSError as error:
        yield Finding("quota", "not known", str(error))
        return
    mounts = {mount: each for each in reversed(there) if (mount := mount_of(each, table))}
    for mount, folder in sorted(mounts.items()):
        for each in quotas(folder, mount):
            if isinstance(each, Unknown):
                yield Finding("quota", "not known", each.text)
            elif each.limit_bytes or each.limit_files:
                yield _quota(mount.point, each)


def _quota(where: str, quota: Quota) -> Finding:
    parts: list[str] = []
    verdict: Verdict = "ok"
    if quota.limit_bytes is not None:
        used, limit = quota.used_bytes / 2**30, quota.limit_bytes / 2**30
        parts.append(f"{used:,.1f} of {limit:,.1f} GiB")
        verdict = "to mend" if quota.limit_bytes - quota.used_bytes < _LEAST_FREE else verdict
    if quota.limit_files is not None:
        parts.append(f"{quota.used_files:,} of {quota.limit_files:,} files")
        verdict = "to mend" if quota.limit_files - quota.used_files < _LEAST_FILES else verdict
    text = f"{where}: {quota.owner}: {', '.join(parts)}"
    return Finding("quota", verdict, text if verdict == "ok" else f"{text}: make room")


def _proxy() -> Finding:
    named = [name for name in ("http_proxy", "https_proxy", "all_proxy") if _variable(name)]
    if not named:
        return Finding("proxy", "ok", "none")
    apart = proxies.environment().get("no_proxy", "")
    return Finding("proxy", "ok", f"{', '.join(named)}; not for {apart or 'nothing'}")


def _variable(name: str) -> str | None:
    return os.environ.get(name) or os.environ.get(name.upper())


def _image(experiment: Experiment) -> Iterator[Finding]:
    container = experiment.container
    if isinstance(container, NoContainer):
        return
    if isinstance(container, Pyxis | Edf):
        yield Finding(
            "container", "not known", f"{container.kind}: `srun --help` lists its options"
        )
        return
    program = container.program
    if shutil.which(program) is None:
        text = f"{program} is not on PATH here; on compute nodes a module may bring it"
        yield Finding("container", "not known", text)
    if container.kind == "docker" or "://" in container.image:
        yield Finding("image", "not known", f"{container.image}: not looked for")
        return
    there = Path(container.image).exists()
    text = container.image if there else f"{container.image}: no such file; see container.image"
    yield Finding("image", "ok" if there else "to mend", text)


def _site(machine: SlurmCluster) -> Iterator[Finding]:
    host = socket.gethostname()
    names = (host, host.partition(".")[0])
    known = machine.hosts
    if known and not any(fnmatch.fnmatch(name, own) for name in names for own in known):
        text = f"{host} is none of {', '.join(known)}: is this the site that you mean?"
        yield Finding("site", "not known", text)


def _asked_of_slurm(machine: SlurmCluster, trunk: JobSpec) -> Iterator[Finding]:
    def ask(*command: str) -> str:
        return run(at(machine.at, list(command)), machine.query_timeout_s)

    try:
        yield Finding("slurm", "ok", ask("sinfo", "--version").strip())
    except (SchedulerUnavailable, SlurmCommandFailed) as error:
        text = f"{str(error).splitlines()[-1]}: are you on a login node of the cluster?"
        yield Finding("slurm", "to mend", text)
        return
    for check in (_account, _partition):
        try:
            yield from check(machine, ask)
        except (AutoexpError, SlurmCommandFailed) as error:
            yield Finding(check.__name__[1:], "not known", str(error))
    yield _submission(machine, trunk)


def _account(machine: SlurmCluster, ask: Callable[..., str]) -> Iterator[Finding]:
    asked = ("sacctmgr", "-n", "-P", "show", "associations", f"user={getpass.getuser()}")
    rows = [line.split("|") for line in ask(*asked, "format=Account,QOS").splitlines()]
    accounts = sorted({row[0] for row in rows if row[0]})
    listed = ", ".join(accounts) or "none"
    if machine.account is None:
        verdict: Verdict = "not known" if accounts else "ok"
        yield Finding("account", verdict, f"none is asked for; yours: {listed}; see SLURM_ACCOUNT")
    elif accounts and machine.account not in accounts:
        yield Finding("account", "to mend", f"{machine.account} is none of yours: {listed}")
    else:
        yield Finding("account", "ok" if accounts else "not known", machine.account)
    allowed = {qos for row in rows if len(row) > 1 for qos in row[1].split(",") if qos}
    if machine.qos is not None and allowed:
        mine = machine.qos in allowed
        others = "" if mine else f" is none of yours: {', '.join(sorted(allowed))}"
        yield Finding("qos", "ok" if mine else "to mend", f"{machine.qos}{others}")


def _partition(machine: SlurmCluster, ask: Callable[..., str]) -> Iterator[Finding]:
    if machine.partition is None:
        yield Finding("partition", "ok", "the cluster's default")
        return
    # sinfo takes no `-p` beside `-a`, without which it keeps hidden partitions to itself.
    rows = [line.split() for line in ask("sinfo", "-h", "-a", "-o", "%P %l").splitlines()]
    limits = {row[0].rstrip("*"): " ".join(row) for row in rows if len(row) == 2}
    asked = machine.partition.split(",")
    if missing := [name for name in asked if name not in limits]:
        text = f"there is no {', '.join(missing)}; there are: {' '.join(sorted(limits))}"
        yield Finding("partition", "to mend", text)
        return
    answer = "\n".join(limits[name] for name in asked)
    longest, wanted = read_longest(answer, default=False), machine.time_limit_min
    if wanted is not None and wanted > longest:
        text = f"{machine.partition} allows {longest:g} minutes, and {wanted:g} are asked for"
        yield Finding("partition", "to mend", f"{text}: slurm.time_limit_min")
    else:
        yield Finding("partition", "ok", f"{machine.partition}, up to {longest:g} minutes")


def _submission(machine: SlurmCluster, trunk: JobSpec) -> Finding:
    """What SLURM says of the training's own batch script (`sbatch --test-only`)."""
    with tempfile.TemporaryDirectory(prefix="autoexp-doctor-") as folder:
        script = Path(folder) / "batch.sh"
        options = SubmitOptions("doctor", f"{folder}/job.log", machine, trunk.configured_limit_min)
        executor = executor_for(machine, script, options)
        script.write_text(executor.script(body(machine, Path(folder))))
        try:
            run(["sbatch", "--test-only", str(script)], machine.query_timeout_s)
        except SlurmCommandFailed as error:
            refused = _REFUSED.findall(error.stderr) or [error.stderr]
            return Finding("submission", "to mend", f"sbatch refuses it: {'; '.join(refused)}")
        except SchedulerUnavailable as error:
            return Finding("submission", "not known", str(error))
    return Finding("submission", "ok", "sbatch takes a training (--test-only)")
