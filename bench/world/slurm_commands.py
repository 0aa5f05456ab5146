"""SLURM's commands as scripts on PATH that answer from a file and write down each call."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from autoexp.jobs.record import Attempt

_ANSWERS = """#!/bin/sh
echo "{name}" >> {folder}/calls
cat {folder}/{name}.answer
"""
_SBATCH = """#!/bin/sh
date +%s.%N > {folder}/.now.$$
for last; do :; done
name=$(sed -n 's/^#SBATCH --job-name=//p' "$last")
echo "sbatch" >> {folder}/calls
echo "$(cat {folder}/.now.$$) $name" >> {folder}/submissions
rm {folder}/.now.$$
echo $$
"""


_QUEUE = """#!/bin/sh
for last; do :; done
name=$(sed -n 's/^#SBATCH --job-name=//p' "$last")
echo "$$|{state}|0|{reason}|{start}|N/A|{nodes}|$name|" >> {folder}/squeue.answer
echo $$
"""


class FakeCluster:
    """A folder of commands; what they answer is set with `shows`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calls = folder / "calls"
        self._submissions = folder / "submissions"
        for name in ("squeue", "sacct", "scontrol", "sinfo", "scancel"):
            self._write(name, _ANSWERS.format(name=name, folder=folder))
            (folder / f"{name}.answer").write_text("")
        self._write("sbatch", _SBATCH.format(folder=folder))
        self._submissions.touch()
        self._calls.touch()

    def takes(self, state: str) -> None:
        """From now on sbatch puts jobs into the queue, all in this state."""
        runs = state == "RUNNING"
        words = {
            "state": state,
            "reason": "None" if runs else "Priority",
            "start": str(int(time.time())) if runs else "N/A",
            "nodes": "n1" if runs else "",
        }
        self._write("sbatch", _QUEUE.format(folder=self._folder, **words))

    def _write(self, name: str, script: str) -> None:
        path = self._folder / name
        path.write_text(script)
        path.chmod(0o755)

    @contextmanager
    def on_path(self) -> Iterator[None]:
        """These commands are found before any real ones."""
        path = f"{self._folder}:{os.environ['PATH']}"
        with mock.patch.dict(os.environ, {"PATH": path}):
            yield

    def shows(self, attempts: Iterable[tuple[Attempt, str]]) -> None:
        """What squeue lists from now on: attempts and their states; a good end is the job's own."""
        attempts = list(attempts)
        for attempt, state in attempts:
            if state == "COMPLETED":
                _end_well(attempt)
        self._answer("squeue", "".join(_queue_row(*each) for each in attempts))

    def accounts(self, attempts: Iterable[tuple[Attempt, str]]) -> None:
        """What sacct lists from now on."""
        self._answer("sacct", "".join(_account_row(*each) for each in attempts))

    def _answer(self, name: str, text: str) -> None:
        temporary = self._folder / f".{name}"
        temporary.write_text(text)
        temporary.rename(self._folder / f"{name}.answer")

    def taken_calls(self) -> list[str]:
        """The names of the commands that were run since the last time this was asked."""
        calls = self._calls.read_text().split()
        self._calls.write_text("")
        return calls

    def submissions(self) -> dict[str, float]:
        """When sbatch was called, by the name of the job."""
        rows = (row.split() for row in self._submissions.read_text().splitlines())
        return {name: float(at) for at, name in rows}


def _end_well(attempt: Attempt) -> None:
    """Leave the exit file that a job leaves by itself."""
    ended = {"job_id": attempt.job_id, "exit_code": 0, "signal": None, "reason": ""}
    times = {"started_at": time.time() - 3600, "ended_at": time.time()}
    text = json.dumps({**ended, **times, "warned": False, "limit": False, "superseded": False})
    (Path(attempt.log).parent / "exit.json").write_text(text)


def _queue_row(attempt: Attempt, state: str) -> str:
    start = int(time.time()) - 3600
    code = "256" if state == "FAILED" else "0"
    cells = (str(attempt.job_id), state, code, "None", str(start), "N/A", "n1")
    return "|".join((*cells, attempt.name)) + "|\n"


def _account_row(attempt: Attempt, state: str) -> str:
    start = int(time.time()) - 3600
    cells = (attempt.job_id, attempt.name, state, "0:0", "0:0", start, start + 60, "n1")
    return "|".join(str(cell) for cell in cells) + "\n"
