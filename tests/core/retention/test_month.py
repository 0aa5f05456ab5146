"""A month in virtual time with kills and node failures: disk within the plan's figure."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoexp.planning.plan import make_plan
from autoexp.rules.actions import Delete
from autoexp.rules.events import CheckpointDeleted
from bench import simulate
from bench.world.cluster import DAY, Rates

_FAMILIES = 2
# Three bytes are what a checkpoint of the simulated trainers has.
_WORDS = (
    "backend.args.save_interval=120",
    "slurm.max_jobs=4",
    "retention={keep: [branch_points, {last: 2}, {every: 1440}], checkpoint_size: 3}",
)


def disk(root: Path) -> int:
    """Bytes of checkpoints below a folder; of a file of several names once."""
    found = {}
    for folder, _, names in os.walk(root):
        if "iter_" in folder or ".autoexp-" in folder:
            for name in names:
                status = os.lstat(Path(folder, name))
                found[status.st_dev, status.st_ino] = status.st_size
    return sum(found.values())


class Watched(simulate.Simulation):
    """A simulation in which the disk is looked at before and after each tick of the monitor."""

    peak = 0

    def _counted(self, work: Callable[[], Any], kind: str = "tick") -> Any:
        self._measure()
        try:
            return super()._counted(work, kind)
        finally:
            self._measure()

    def _measure(self) -> None:
        self.peak = max(self.peak, disk(self._folder))


def test_a_month_with_failures_stays_within_the_disk_space_of_its_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulate, "_KILLED_EVERY_S", DAY / 8)
    worse = Rates(node_failures_per_hour=0.02, preemptions_per_hour=0.01)
    jobs = _FAMILIES * simulate.FAMILY
    month = Watched(tmp_path, jobs, 30, 1, worse, _WORDS)
    with simulate.virtual(month.clock, month.fate):
        session = month.run()
    month.check(session)
    planned = make_plan(month._composed.experiment, tmp_path).disk
    assert planned is not None and planned.bytes is not None
    assert month.fate.kills > 10
    whole = _FAMILIES * planned.bytes
    assert 0.5 * whole < month.peak <= whole
    deleted = [e.event for e in session.journal.entries if isinstance(e.event, CheckpointDeleted)]
    actions = [a for a in session.actions.values() if isinstance(a.action, Delete)]
    assert len(deleted) == len(actions) > 20
    left = {(e.job, e.iteration) for e in session.checkpoints()}
    assert all(Path(e.path).is_dir() for e in session.checkpoints()) and len(left) > 20
