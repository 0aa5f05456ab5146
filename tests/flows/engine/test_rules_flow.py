"""Rules in a real session: real jobs, real commands, a real Prefect server."""

import asyncio
import logging
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from autoexp.cli.main import main
from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.flows.concurrency.children import Children, Updates
from autoexp.flows.concurrency.writer import SessionWriter
from autoexp.flows.engine.condition_checker import ConditionChecker
from autoexp.flows.train import train
from autoexp.model import now
from autoexp.monitor.monitor import Monitor
from autoexp.rules.actions import Log
from autoexp.rules.conditions import FileExists
from autoexp.rules.events import CheckpointComplete, MetricAlarm, Published, RestartAsked
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from tests.builders import create
from tests.flows.commands import autoexp
from tests.flows.runs import task_runs
from tests.flows.sessions import SMALL, Make

pytestmark = pytest.mark.prefect

LOG = """\
 [2026-08-01 10:00:00] iteration       10/     300 | learning rate: 1.0E-02 | lm loss: 2.4E+00 |
[rank3]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, x
[rank1]: Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, x
"""

AWKWARD = """it's "$HOME" `x` ${y} \\ *"""
RULES = yaml.safe_load(
    """
log_events:
  saved:
    pattern: 'saving checkpoint at iteration\\s+(?P<number>\\d+)'
    every: true
    jobs: [train]
    actions:
      - write_file: {path: saved.txt, line: '{job.name} {number}'}
checkpoint_events:
  evaluate:
    at: [150]
    actions:
      - run_command: {run: [touch, late]}
      - run_command: {run: [printf, '%s|', AWKWARD, '{checkpoint_path}']}
      - run_command: {run: [sh, -c, 'echo out; echo err >&2; exit 3']}
      - run_command: {run: [sleep, '60'], timeout: 1s}
      - launch:
          name: '{job.name}-eval{checkpoint_iteration}'
          command: [echo, '{checkpoint_path}']
      - publish: {name: evaluated, payload: {at: '{checkpoint_iteration}'}}
  waits:
    at: [100]
    actions:
      - write_file: {path: saved.txt, line: the file is there}
        when: [{file_exists: late}, {command: {run: [test, -e, late], every: 1s}}]
      - log: {}
        when: [{file_exists: never}]
        within: 1s
metric_events:
  nan:
    not_a_number: {logged: 2}
    jobs: [train]
    actions:
      - restart: {roll_back: true, backend: {args: {nan_at_iteration: null}}}
session_events:
  heard:
    published: evaluated
    actions: [{log: {message: 'heard of {name}'}}]
"""
)
RULES["checkpoint_events"]["evaluate"]["actions"][1]["run_command"]["run"][2] = AWKWARD.replace(
    "{", "{{"
).replace("}", "}}")


async def test_what_rules_ask_for_happens_once_and_is_told(
    make_session: Make, tmp_path: Path
) -> None:
    changes = {f"monitoring.{kind}": rules for kind, rules in RULES.items()}
    words = [*SMALL, "backend.args.nan_at_iteration=170", "backend.args.sleep_per_iteration_ms=10"]
    path = create(
        compose("demo", [*words, "cooldowns=[]"], setting(changes)), tmp_path / "sessions"
    )

    state = await train(session=path.name, return_state=True)

    session = Session.load(path)
    assert state.is_completed(), state.message
    trunk, evaluation = session.jobs["demo"], session.jobs["demo-eval150"]
    assert [job.verdict for job in session.jobs.values()] == [Verdict.FINISHED] * 2
    assert (evaluation.spec.kind, evaluation.spec.parent) == (Kind.EVALUATE, "demo")
    # The NaN was seen, and the training went on from the checkpoint before it.
    events = [entry.event for entry in session.journal.entries]
    (alarm,) = [event for event in events if isinstance(event, MetricAlarm)]
    (asked,) = [event for event in events if isinstance(event, RestartAsked)]
    assert (alarm.last_good, asked.roll_back_to, len(trunk.attempts)) == (160, 150, 2)
    assert "--nan-at-iteration" not in trunk.spec.command
    assert trunk.loss is not None
    assert list(Path(trunk.spec.save_dir).glob("set-aside-*"))
    # Each line and file, once; a file that came late; a condition that never held.
    lines = (path / "saved.txt").read_text().splitlines()
    assert Counter(lines) == Counter(set(lines))
    assert {"demo 50", "demo 300", "the file is there"} <= set(lines)
    told = {(a.rule, a.action.kind): a for a in session.actions.values()}
    late = told["waits", "log"]
    assert (late.status, late.reason) == ("failed", f"not done: not within 1 s: {waits_for(path)}")
    # Commands: data stays data, the exit code and the output are kept, a time-out ends them.
    results = [a for a in session.actions.values() if a.action.kind == "run_command"]
    first = {action.key.rsplit("--", 1)[1]: action for action in results}
    checkpoint = Path(trunk.spec.save_dir) / "iter_0000150"
    assert first["1"].result == f"{AWKWARD}|{checkpoint}|"
    assert (first["2"].reason, first["2"].result) == ("exit code 3", "out\nerr")
    assert (first["3"].status, first["3"].reason) == ("failed", "did not end within 1 s")
    published = [event for event in events if isinstance(event, Published)]
    assert {event.payload["at"] for event in published} == {"150"}
    assert told["heard", "log"].result == "heard of evaluated"

    names = Counter(run.name.partition(" ")[0] for run in await task_runs(session))
    assert names["write"] == sum(a.action.kind == "write_file" for a in session.actions.values())
    assert names["replace"] == names["restart"] == 1
    said = autoexp("explain", path.name, "demo", root=path.parent).stdout
    assert "demo has finished: reached iteration 300." in said
    assert "rule nan did restart the attempt from the last good checkpoint" in said
    queue = autoexp("queue", path.name, root=path.parent).stdout
    assert "not done: not within 1 s" in queue


def waits_for(path: Path) -> str:
    return f"waits for {path / 'never'}"


def test_a_preset_is_tried_on_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "job.log"
    log.write_text(LOG)
    assert main(["rules", "test", "nccl", str(log)]) == 0
    said = capsys.readouterr().out
    assert "nccl_timeout: [rank3]: Watchdog caught" in said
    assert "sequence=7, operation=ALLREDUCE" in said
    assert "-> restart the attempt  when value, max_attempts, max_attempts_without_progress" in said
    assert "nccl_timeout: 2 lines" in said
    assert "1 events, up to iteration 10; silent: nccl_error" in said

    log.write_text(LOG.splitlines()[0] + "\n")
    assert main(["rules", "test", "nccl", str(log)]) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rules", "test", "nowhere", "{log}"], "nowhere"),
        (["rules", "test", "nccl", "{log}-gone"], "no such file"),
        (["rules", "test", "nccl", "{log}", "--kind", "cooldown"], "has no cooldown"),
        (["rules", "test", "nccl", "{log}", "backend.args.lrr=1"], "did you mean `lr`"),
    ],
)
def test_what_cannot_be_tried_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    (tmp_path / "log").write_text("")
    assert main([word.replace("{log}", str(tmp_path / "log")) for word in words]) == 2
    assert message in capsys.readouterr().err


async def test_a_deadline_counts_from_the_event_however_often_the_monitor_restarts(
    make_session: Make,
) -> None:
    path = make_session("cooldowns=[]")
    event = CheckpointComplete(job="demo", iteration=100, path="/c")
    for hours, key in ((2, "late"), (0.5, "early")):
        record = ActionRecord(
            key=key,
            rule=key,
            event=event,
            action=Log(),
            when=(FileExists(file_exists="never"),),
            within_s=3600,
            asked_at=now() - timedelta(hours=hours),
        )
        Session.load(path).save_action(record)

    stamps = set()
    for _ in range(2):  # the second monitor finds nothing new to write
        session, updates, log = Session.load(path), Updates(), logging.getLogger()
        disk, monitor = SessionWriter(path, updates, log), Monitor(session)
        checker = ConditionChecker(session, monitor, disk, updates, log)
        async with Children(log) as children:
            checker.start_check(children)
        assert monitor.worklist.next_work().actions == []
        late, early = session.actions["late"], session.actions["early"]
        assert (late.status, late.reason) == (
            "failed",
            f"not done: not within 1 h: {waits_for(path)}",
        )
        assert (early.status, early.reason) == ("pending", waits_for(path))
        stamps.add((path / "actions" / "early.json").stat().st_mtime_ns)
    assert len(stamps) == 1


async def test_an_interruption_does_not_wait_for_a_command_to_end() -> None:
    updates, ended, begun = Updates(), [], asyncio.Event()

    async def command() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("ended")

    waiting = asyncio.create_task(updates.unless_interrupted(command()))
    await begun.wait()
    updates.interrupt("SIGINT")
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(waiting, 300)
    assert ended == ["ended"]
    assert await Updates().unless_interrupted(asyncio.sleep(0, "done")) == "done"
