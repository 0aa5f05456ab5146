"""Two sessions of one id under two roots, each with a real monitor, at the same time."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoexp.config.compose import compose
from autoexp.session.session import Session
from tests.builders import create
from tests.flows.commands import autoexp
from tests.flows.recovery.starts import assert_each_job_ran_once, count_starts
from tests.flows.sessions import SMALL, hold_back
from tests.patience import PATIENCE_S, until

BRANCH = "cooldowns=[{at: [100], decay: {iterations: 50}}]"


def twins(tmp_path: Path, name: str, *overrides: str) -> tuple[Path, Path]:
    """Two sessions of one id, each with a sessions root and an output root of its own."""
    found = []
    for n in (1, 2):
        own = f"project.output_root={tmp_path}/out{n}"
        composed = compose("demo", [*SMALL, BRANCH, own, *overrides])
        found.append(create(composed, tmp_path / f"root{n}", session_id=name))
        count_starts(found[-1])
    return found[0], found[1]


def run_both(first: Path, second: Path, *overrides: str) -> None:
    """The second begins and ends while the first one's trainer runs; a third is refused meanwhile.

    Neither finds anything of the other's.
    """
    gate, name, top = hold_back(first), first.name, first.parents[1]
    with monitor(first) as one:
        until(lambda: Session.load(first).jobs["demo"].state == "RUNNING", "the first one's job")
        with monitor(second) as other:
            asked = (*SMALL, BRANCH, f"project.output_root={top}/out1", *overrides)
            refused = autoexp("run", "demo", "--session", name, *asked, root=top / "root3")
            assert refused.returncode == 2, refused.stdout + refused.stderr
            assert f"out1/{name} is where session {name} writes ({first})" in refused.stderr
            assert len(refused.stderr.splitlines()) == 1
            assert not (top / "root3").exists()
            assert other.wait(PATIENCE_S) == 0, said(second)
        assert one.poll() is None, said(first)
        (attempt,) = Session.load(first).jobs["demo"].attempts
        assert attempt.state == "RUNNING"
        gate.touch()
        assert one.wait(PATIENCE_S) == 0, said(first)

    keys = []
    for n, path in enumerate((first, second), 1):
        session = assert_each_job_ran_once(path)
        keys += [attempt.key for job in session.jobs.values() for attempt in job.attempts]
        for job in session.jobs.values():
            assert Path(job.spec.save_dir).is_relative_to(top / f"out{n}" / name)
            assert Path(job.spec.save_dir).is_dir()
    assert len(set(keys)) == len(keys) == 4


@contextmanager
def monitor(path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`autoexp resume`; killed at the end, if need be."""
    environment = {**os.environ, "AUTOEXP_SESSIONS": str(path.parent)}
    command = [sys.executable, "-m", "autoexp", "resume", path.name]
    with (
        (path.parent / "said").open("wb") as file,
        subprocess.Popen(command, env=environment, stdout=file, stderr=file) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def said(path: Path) -> str:
    """What its monitor printed."""
    return (path.parent / "said").read_text(errors="replace")
