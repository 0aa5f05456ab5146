"""A sick node, deletions and evidence of a hang on the cluster, by monitors killed at each step."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.nodes.avoid_list import AvoidList
from autoexp.operations.phases import Phase
from autoexp.rules.events import CheckpointDeleted, EvidenceCollected, NodesFoundSick
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import create
from tests.core.monitor.driver import Driver
from tests.flows.sessions import SMALL
from tests.killing import die_at, killed_at
from tests.patience import PATIENCE_S
from tests.slurm.bench import clear_queue, slurm
from tests.slurm.commands import Commands

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WALKS = {
    "avoid": range(1, 12),
    "delete": range(1, 12),
    "restart": (6,),  # while evidence is collected: after a second time in vain it would be left
    "noted": range(1, 12),  # behind that
}
"""At which durable steps monitors die in turn, counted from where an action of the kind begins."""

HANGS = "   100/     300 |"
RULE = f"{{substring: '{HANGS}', actions: [{{restart: {{evidence: true}}}}]}}"


@pytest.fixture
def path(commands: Commands, tmp_path: Path) -> Iterator[Path]:
    """A training whose first node is sick, and that hangs at iteration 100 once."""
    del commands
    (tmp_path / "hold").mkdir()
    (tmp_path / "hold" / "100").touch()
    for healthy in ("n2", "n3"):
        (tmp_path / "disks" / healthy).mkdir(parents=True)
    where = f"disks: ['{tmp_path}/disks/{{hostname}}'], avoid_file: {tmp_path}/nodes.jsonl"
    words = (
        "slurm=local_cluster",
        "cooldowns=[]",
        "backend.args.save_interval=20",
        f"backend.args.hold={tmp_path}/hold",
        "retention={keep: [{last: 1}]}",
        f"nodes={{check: basic, {where}, slowest: 0.01}}",
        f"monitoring.log_events={{hang: {RULE}}}",
    )
    made = create(compose("demo", [*SMALL, *words]), tmp_path / "sessions")
    yield made
    clear_queue(made.name)


class Doomed(Driver):
    """A monitor that dies at a step of the first thing that it meets of those with a walk."""

    def __init__(self, path: Path, met: Path) -> None:
        super().__init__(path, SlurmScheduler(Session.load(path).experiment.slurm))
        self._met = met
        self._is_doomed = False

    def _act(self, action: ActionRecord) -> Iterator[None]:
        self._meet(action.action.kind)
        yield from super()._act(action)

    def _do(self, phase: Phase) -> Any:
        done = super()._do(phase)
        if any(isinstance(e.event, EvidenceCollected) for e in self.session.journal.entries):
            self._meet("noted")
        return done

    def _meet(self, what: str) -> None:
        walk, died = WALKS.get(what, ()), deaths(self._met)[what]
        if not self._is_doomed and died < len(walk):
            self._is_doomed = True
            with self._met.open("a") as file:
                file.write(f"{what}\n")
            die_at(walk[died])


def watch(path: Path, met: Path) -> None:
    """Be a monitor to the end, its own or the session's."""
    driver, deadline = Doomed(path, met), time.monotonic() + PATIENCE_S
    while not driver.is_over:
        assert time.monotonic() < deadline, "the session does not end"
        for _ in range(6):
            driver.go_on(list(driver.work))
        time.sleep(0.1)
        driver.tick()


def deaths(met: Path) -> Counter[str]:
    """How many monitors were doomed by what they met."""
    return Counter(met.read_text().split() if met.exists() else ())


def test_what_a_month_needs_is_done_once_however_often_its_monitor_is_killed(
    path: Path, tmp_path: Path
) -> None:
    met = tmp_path / "met"
    kills = 0
    while killed_at(0, lambda: watch(path, met)):
        kills += 1
        assert kills <= sum(map(len, WALKS.values()))
    # A walk is over before its end once what it is about is done. The last monitor may have been
    # doomed, too, and have come to the end before.
    assert all(deaths(met)[what] >= min(5, len(walk)) for what, walk in WALKS.items())
    assert kills >= sum(deaths(met).values()) - 1

    session = Session.load(path)
    (job,) = session.jobs.values()
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, 300), job.reason
    assert [each.state for each in job.attempts] == ["NODE_FAIL", "CANCELLED", "COMPLETED"]
    assert {action.status for action in session.actions.values()} == {ActionStatus.DONE}
    events = [entry.event for entry in session.journal.entries]
    keys = [event.key for event in events]
    assert len(keys) == len(set(keys))

    # One node, named once and listed once; SLURM was given one job for each attempt.
    (sick,) = [event for event in events if isinstance(event, NodesFoundSick)]
    assert [entry.node for entry in AvoidList(tmp_path / "nodes.jsonl").read()] == list(sick.nodes)
    assert job.attempts[0].nodes == "n1" and job.attempts[1].nodes != "n1"
    queued = ("sacct", "-X", "-n", "-P", "-S", "now-1hour", "-o", "JobID", "--name")
    for attempt in job.attempts:
        assert slurm(*queued, attempt.key).split() == [str(attempt.job_id)]
    (evidence,) = [event for event in events if isinstance(event, EvidenceCollected)]
    assert evidence.problem is None and any(Path(evidence.path).glob("n*.json"))
    gone = [event.iteration for event in events if isinstance(event, CheckpointDeleted)]
    saved = {event.iteration for event in session.journal.checkpoints()}
    assert saved >= {*range(20, 301, 20)} and sorted(gone) == sorted(saved - {300})
    left = sorted(found.name for found in Path(job.spec.save_dir).iterdir())
    assert left == ["iter_0000300", "latest_checkpointed_iteration.txt"]
