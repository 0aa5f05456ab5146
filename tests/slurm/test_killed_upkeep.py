"""Sick nodes, deletions and evidence of hangs on the cluster, by monitors killed at each step."""

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
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
from tests.processes import exit_code, in_a_process
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
def paths(commands: Commands, tmp_path: Path) -> Iterator[list[Path]]:
    """Three trainings whose first node is sick, and that hang at iteration 100 once."""
    del commands
    for healthy in ("n2", "n3"):
        (tmp_path / "disks" / healthy).mkdir(parents=True)
    (tmp_path / "hold").mkdir()
    (tmp_path / "hold" / "100").touch()
    where = f"disks: ['{tmp_path}/disks/{{hostname}}'], avoid_file: {tmp_path}/nodes.jsonl"
    words = (
        "slurm=local_cluster",
        "slurm.gpus_per_node=1",
        "cooldowns=[]",
        "backend.args.save_interval=20",
        f"backend.args.hold={tmp_path}/hold",
        "retention={keep: [{last: 1}]}",
        f"nodes={{check: basic, {where}, slowest: 0.01}}",
        f"monitoring.log_events={{hang: {RULE}}}",
    )
    names = [f"project.name=p{number}" for number in range(3)]
    made = [
        create(compose("demo", [*SMALL, *words, name]), tmp_path / "sessions") for name in names
    ]
    yield made
    for path in made:
        clear_queue(path.name)


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


def walk(path: Path, met: Path) -> int:
    """Be one monitor after the other until the session is over; 1 if one lived that was to die."""
    kills, most = 0, sum(map(len, WALKS.values()))
    while kills <= most and killed_at(0, lambda: watch(path, met)):
        kills += 1
    # The last monitor may have been doomed, too, and have come to the end before.
    return 0 if deaths(met).total() - 1 <= kills <= most else 1


def test_three_sessions_do_once_what_a_month_needs_however_often_their_monitors_are_killed(
    paths: list[Path], tmp_path: Path
) -> None:
    """They write to one list of avoided nodes at the same time."""
    met = {path: tmp_path / f"{path.name}.met" for path in paths}
    walks = [in_a_process(partial(walk, path, met[path])) for path in paths]
    assert [exit_code(each) for each in walks] == [0, 0, 0]

    found = [see_through(path, deaths(met[path])) for path in paths]
    told = [node for events in found for event in events for node in event.nodes]
    listed = AvoidList(tmp_path / "nodes.jsonl")
    assert told and set(told) == {"n1"}
    assert [entry.node for entry in listed.read()] == told
    assert len(listed.path.read_text().splitlines()) == len(told)


def see_through(path: Path, died: Counter[str]) -> list[NodesFoundSick]:
    """Check a session that is over; returns which nodes it has found sick."""
    session = Session.load(path)
    (job,) = session.jobs.values()
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, 300), job.reason
    events = [entry.event for entry in session.journal.entries]
    sick = [event for event in events if isinstance(event, NodesFoundSick)]
    # One that was submitted later knows of the node from the others, and never meets it.
    states = [each.state for each in job.attempts]
    assert states == ["NODE_FAIL"] * len(sick) + ["CANCELLED", "COMPLETED"] and len(sick) < 2
    assert [each.nodes == "n1" for each in job.attempts] == [True] * len(sick) + [False, False]
    # A walk is over before its end once what it is about is done.
    met = {what for what in WALKS if died[what] >= min(5, len(WALKS[what]))}
    assert met >= WALKS.keys() - ({"avoid"} if not sick else set())

    assert {action.status for action in session.actions.values()} == {ActionStatus.DONE}
    keys = [event.key for event in events]
    assert len(keys) == len(set(keys))
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
    return sick
