"""Writes the batch scripts of a plan into a directory instead of submitting them."""

import shlex
from contextlib import suppress
from pathlib import Path

from autoexp.jobs.spec import JobSpec
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.base import SubmitOptions
from autoexp.schedulers.launch import variables_of, with_launcher
from autoexp.schedulers.slurm.script import executor_for
from autoexp.storage import atomic


def write_scripts(jobs: tuple[JobSpec, ...], directory: Path) -> list[Path]:
    """Write one script for each job's first attempt; returns their paths.

    Under SLURM it is what `sbatch` would get, with the trainer's command as its last line, where a
    real one starts the payload. On this machine it is the command and its variables.
    """
    atomic.make_directory(directory.parent, by_umask=True)
    with suppress(FileExistsError):
        atomic.make_own_directory(directory, 0o700)
    written = []
    for job in jobs:
        path = directory / f"{job.name}.sh"
        atomic.write(path, _script(job, directory), executable=True)
        written.append(path)
    return written


def _script(job: JobSpec, directory: Path) -> str:
    machine = job.machine
    lines = _lines(with_launcher(machine, job, job.name), variables_of(machine, job))
    if not isinstance(machine, SlurmCluster):
        return "\n".join(["#!/bin/bash", *lines, ""])
    options = SubmitOptions(
        name=job.name,
        log=str(directory / f"{job.name}.log"),
        machine=machine,
        time_limit_min=job.configured_limit_min,
    )
    executor = executor_for(machine, directory / "batch.sh", options)
    return executor.script("\n".join(lines))


def _lines(command: tuple[str, ...], variables: dict[str, str]) -> list[str]:
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    return [*exports, shlex.join(command)]
