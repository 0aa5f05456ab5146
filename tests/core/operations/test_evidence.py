"""Evidence of a hang is collected before its attempt is ended, and never keeps that from ending."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autoexp import payload
from autoexp.operations.evidence import collection, collector
from autoexp.operations.evidence.stacks import NodeReport, Process, sentence
from autoexp.reports.explain import explain_job
from autoexp.resources import node
from autoexp.resources.local import LocalMachine
from autoexp.rules.events import EvidenceCollected
from autoexp.schedulers.base import AttemptRef
from autoexp.schedulers.local import LocalScheduler
from autoexp.session.session import Session
from tests.core.story import Story, StoryOf, go_on, perform, say
from tests.killing import KilledAt
from tests.patience import until

DATA = Path(__file__).parents[2] / "data"

HANGS = {"hang": {"substring": "it hangs", "actions": [{"restart": {"evidence": True}}]}}

SPY = """Process 7: python train.py
Python v3.11.2 (/usr/bin/python3.11)

Thread 8 (idle): "Watchdog"
    wait (threading.py:324)
Thread 7 (active): "MainThread"
    {frame}
    train_step (train.py:20)
    <module> (train.py:40)
"""
DUMP = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 324 in wait

Current thread 0x00007f02 (most recent call first):
  File "/home/me/io.py", line 3 in save
  File "/home/me/train.py", line 20 in step
"""


def spied(rank: int, frame: str, world: int = 4) -> Process:
    return Process(
        pid=7 + rank, rank=rank, world=world, how="py-spy", stack=SPY.format(frame=frame)
    )


LOAD = "load (data.py:7)"
REDUCE = "all_reduce (torch/distributed/distributed_c10d.py:2063)"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (
            {"n1": [spied(0, REDUCE), spied(2, REDUCE)], "n2": [spied(1, LOAD), spied(3, REDUCE)]},
            "rank 1 on n2 stands in load (data.py:7), 3 others wait in all_reduce",
        ),
        (
            {"n1": [spied(rank, REDUCE) for rank in range(4)]},
            "all 4 ranks stand in all_reduce",
        ),
        (
            {"n1": [spied(0, REDUCE), spied(1, REDUCE)], "n2": [spied(3, REDUCE)]},
            "all 3 ranks stand in all_reduce; of rank 2 there is no process",
        ),
        (
            {"n1": [spied(0, REDUCE, 2)], "n2": [spied(1, LOAD, 2)]},
            "rank 1 on n2 stands in load (data.py:7), 1 other waits in all_reduce",
        ),
        (
            {"n1": [Process(pid=1, rank=0, world=1, how="faulthandler", stack=DUMP)]},
            "rank 0 on n1 stands in save (io.py:3)",
        ),
        (
            {"n1": [Process(pid=1, rank=0, how="kernel", state="D", wchan="nfs_wait_bit")]},
            "rank 0 on n1 stands in nfs_wait_bit (uninterruptible)",
        ),
        ({"n1": [Process(pid=1, rank=0, how="kernel", state="S", wchan="hrtimer")]}, None),
        ({"n1": [Process(pid=1, rank=0, how="py-spy", stack="\x00Thread (((")]}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_rank_that_the_others_wait_for_is_named(
    nodes: dict[str, list[Process]], expected: str | None
) -> None:
    reports = [NodeReport(node=name, processes=tuple(found)) for name, found in nodes.items()]
    assert sentence(reports) == expected


SPY_OUTPUT = DATA / "py_spy"
"""What py-spy 0.4.3 has printed of hung processes, `PID-NAME.txt`."""


def recorded(name: str, rank: int, world: int) -> Process:
    (path,) = SPY_OUTPUT.glob(f"*-{name}.txt")
    pid = int(path.name.partition("-")[0])
    return Process(pid=pid, rank=rank, world=world, how="py-spy", stack=path.read_text())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["gloo-rank0", "gloo-rank1"],
            "rank 1 on n1 stands in load_batch (hangt.py:4), 1 other waits in all_reduce",
        ),
        # A method has its class's name before it.
        (["method"], "rank 0 on n1 stands in recv"),
        # What waits in Python's own library does so for somebody.
        (["loader"], "rank 0 on n1 stands in Loader.next_batch (loader.py:9)"),
        # Of a program that has not loaded `threading` no thread has a name.
        (["nameless"], "rank 0 on n1 stands in Saver.save (<string>:5)"),
    ],
)
def test_what_py_spy_really_prints_is_understood(names: list[str], expected: str) -> None:
    processes = tuple(recorded(name, rank, len(names)) for rank, name in enumerate(names))
    assert sentence([NodeReport(node="n1", processes=processes)]) == expected


# A real process, as a hung trainer is one

TRAINER = """
import faulthandler, signal, sys, threading, time
def all_reduce():
    threading.Event().wait()
def load_batch():
    time.sleep(1000)
{register}
print("ready", flush=True)
all_reduce()
"""


class Hung:
    """A trainer that hangs, under an attempt's key."""

    def __init__(
        self,
        folder: Path,
        *,
        register: str = "",
        environment: dict[str, str] | None = None,
        ref: AttemptRef | None = None,
    ) -> None:
        self.ref = ref or AttemptRef("k1", folder / "attempts" / "k1", "k1", "batch.sh", "1")
        key, directory = self.ref.key, self.ref.directory
        directory.mkdir(parents=True, exist_ok=True)
        self.log = directory / "job.log"
        spec = {"key": key, "log": str(self.log)}
        (directory / "spec.json").write_text(json.dumps(spec))
        own = {payload.COOKIE: key, payload.ATTEMPT: str(directory), "RANK": "0"}
        begun = self.log.read_text().count("ready") if self.log.exists() else 0
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", TRAINER.format(register=register)],
                stdout=log,
                stderr=log,
                env={**os.environ, **own, "WORLD_SIZE": "1", **(environment or {})},
            )
        until(lambda: self.log.read_text().count("ready") > begun, "the trainer")

    def collect(self, signal: str | None = None) -> collection.Found:
        own = collection.Collection(self.ref, LocalMachine(), self.log, signal)
        return own.run(LocalScheduler())

    @property
    def folder(self) -> Path:
        return self.ref.directory / collection.FOLDER

    def process_seen(self) -> Process:
        ((process,),) = [report.processes for report in collection.read_reports(self.folder)]
        return process


@pytest.fixture
def hung(tmp_path: Path) -> Iterator[Callable[..., Hung]]:
    made: list[Hung] = []

    def make(**options: Any) -> Hung:
        made.append(Hung(tmp_path / str(len(made)), **options))
        return made[-1]

    yield make
    for each in made:
        each.process.kill()
        each.process.wait()


@pytest.fixture
def not_allowed(tmp_path: Path) -> dict[str, str]:
    """A trainer's environment with a py-spy that may not look at it."""
    program = tmp_path / "not allowed" / "bin" / "py-spy"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho Permission Denied >&2\nexit 1\n")
    program.chmod(0o755)
    return {"VIRTUAL_ENV": str(program.parent.parent)}


def test_a_trainer_that_registered_faulthandler_says_where_it_stands(
    hung: Callable[..., Hung], not_allowed: dict[str, str]
) -> None:
    register = "faulthandler.register(signal.SIGUSR2)"
    trainer = hung(register=register, environment=not_allowed)
    assert trainer.collect("SIGUSR2") == (
        f"rank 0 on {collection.read_reports(trainer.folder)[0].node} stands in all_reduce",
        None,
    )
    assert trainer.process_seen().how == "faulthandler"
    assert "ready" in (trainer.folder / "log-end.txt").read_text()
    assert trainer.process.poll() is None


def test_a_signal_that_the_trainer_does_not_catch_is_never_sent(
    hung: Callable[..., Hung], not_allowed: dict[str, str]
) -> None:
    trainer = hung(environment=not_allowed)
    found = trainer.collect("SIGUSR2")
    assert (found.sentence, found.problem) == (None, None)
    seen = trainer.process_seen()
    assert (seen.how, seen.state) == ("kernel", "S")
    assert "thread" in seen.stack and seen.wchan
    assert trainer.process.poll() is None


def test_py_spy_is_asked_where_the_trainers_environment_has_it(
    hung: Callable[..., Hung], tmp_path: Path
) -> None:
    program = tmp_path / "bin" / "py-spy"
    program.parent.mkdir()
    stack = SPY.format(frame=REDUCE).replace('"', '\\"')
    program.write_text(f'#!/bin/sh\n[ "$1 $2" = "dump --pid" ] && printf "%s" "{stack}"\n')
    program.chmod(0o755)
    trainer = hung(environment={"VIRTUAL_ENV": str(tmp_path)})
    assert str(trainer.collect("SIGUSR2").sentence).endswith("stands in all_reduce")
    assert trainer.process_seen().how == "py-spy"


def test_the_flight_recorder_is_asked_and_its_file_kept(
    hung: Callable[..., Hung], not_allowed: dict[str, str], tmp_path: Path
) -> None:
    record, pipe = tmp_path / "trace_rank_", tmp_path / "pipe0.pipe"
    real = (DATA / "flight_recorder" / "torch-2.13-gloo-rank0").read_bytes()
    os.mkfifo(pipe)

    def torch() -> None:
        with pipe.open() as asked:
            if asked.read(1) == "1":
                Path(f"{record}0").write_bytes(real)

    listening = threading.Thread(target=torch, daemon=True)
    listening.start()
    trainer = hung(
        environment={
            **not_allowed,
            "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",
            "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": str(record),
            "TORCH_NCCL_DEBUG_INFO_PIPE_FILE": str(tmp_path / "pipe"),
        }
    )
    said = trainer.collect().sentence
    (kept,) = trainer.folder.glob("*-flight-recorder-trace_rank_0")
    assert kept.read_bytes() == real
    assert said == "flight recorder: rank 0 is in all_reduce 4 of default_pg"


def of_a_life_before(record: Path) -> None:
    """As of a rank that was begun again within its job."""
    before = time.time() - 20
    os.utime(record, (before, before))


def of_another_user(record: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a file to somebody else")
    in_a_while = time.time() + 3600
    os.utime(record, (in_a_while, in_a_while))
    os.chown(record, 12345, -1)


@pytest.mark.parametrize("whose", [of_a_life_before, of_another_user])
def test_a_record_of_another_process_on_that_node_is_no_evidence(
    hung: Callable[..., Hung],
    not_allowed: dict[str, str],
    tmp_path: Path,
    whose: Callable[[Path], None],
) -> None:
    record = tmp_path / "trace_rank_0"
    record.write_bytes((DATA / "flight_recorder" / "torch-2.13-gloo-rank0").read_bytes())
    whose(record)
    trainer = hung(
        environment={
            **not_allowed,
            "TORCH_FR_BUFFER_SIZE": "2000",
            "TORCH_FR_DUMP_TEMP_FILE": str(tmp_path / "trace_rank_"),
        }
    )
    assert trainer.collect().sentence is None
    assert not list(trainer.folder.glob("*flight-recorder*"))


@pytest.mark.parametrize("ill", ["hangs", "fails", "is killed"])
def test_whatever_becomes_of_it_it_ends_in_time_with_what_was_wrong(
    hung: Callable[..., Hung], monkeypatch: pytest.MonkeyPatch, ill: str
) -> None:
    trainer = hung()
    words = {"hangs": "sleep 1000", "fails": "exit 1", "is killed": "kill -9 $$"}[ill]
    program = trainer.ref.directory.parent / "python"
    program.write_text(f"#!/bin/sh\n{words}\n")
    program.chmod(0o755)
    monkeypatch.setattr(collection, "python_of", lambda machine: str(program))
    monkeypatch.setattr(collection, "_STEP_S", 1.0)
    found = trainer.collect()
    assert found.sentence is None and found.problem


def test_a_thread_that_hangs_is_left_behind(
    hung: Callable[..., Hung], monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()
    monkeypatch.setattr(collection, "run_on_nodes", lambda *_: released.wait())
    monkeypatch.setattr(collection, "_BOUND_S", 0.5)
    assert hung().collect() == (None, "it did not end within 0.5 s")
    released.set()


def test_the_collector_needs_the_standard_library_alone(tmp_path: Path) -> None:
    for source in (payload.__file__, collector.__file__, str(node.__file__)):
        shutil.copy(str(source), tmp_path)
    (tmp_path / "spec.json").write_text(json.dumps({"log": "none"}))
    words = ["-I", str(tmp_path / "collector.py"), "none", str(tmp_path), str(tmp_path), "5"]
    subprocess.run([sys.executable, "-S", *words], check=True, cwd="/")
    assert len(collection.read_reports(tmp_path)) == 1


# In a session


def collected(session: Session) -> list[EvidenceCollected]:
    return [e.event for e in session.journal.entries if isinstance(e.event, EvidenceCollected)]


def test_a_restart_with_evidence_says_what_was_found_and_then_ends_the_attempt(
    story_of: StoryOf,
) -> None:
    story = story_of(log_events=HANGS)
    say(story, "it hangs")
    (action,) = story.look().actions
    perform(story, action)
    (event,) = collected(story.session)
    assert story.job().restart is not None
    *_, last = explain_job(story.path, "tiny").sentences
    assert last == (
        "Before attempt 1 was ended, where its ranks stood cannot be told (no process of the "
        f"trainer was found); evidence: {event.path}."
    )


@pytest.fixture
def py_spy() -> str:
    """The real py-spy; skips where there is none, or the kernel lets it look at nobody."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = shutil.which("py-spy", path=places)
    if program is None:
        pytest.skip("py-spy is not installed")
    words = [sys.executable, "-c", "print('ready', flush=True); input()"]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe) as looked_at:
        assert looked_at.stdout is not None and looked_at.stdout.readline()
        dump = [program, "dump", "--pid", str(looked_at.pid)]
        asked = subprocess.run(dump, capture_output=True, text=True)
        looked_at.communicate(b"\n")
    if asked.returncode:
        pytest.skip(f"py-spy may not look at processes here: {asked.stderr}")
    return program


def test_the_real_py_spy_finds_the_rank_that_the_others_wait_for(
    story_of: StoryOf, hung: Callable[..., Hung], py_spy: str
) -> None:
    story = story_of(log_events=HANGS)
    attempt = story.job().attempt
    assert attempt is not None
    own = {"WORLD_SIZE": "2", "PATH": f"{Path(py_spy).parent}{os.pathsep}{os.environ['PATH']}"}
    for rank, hangs in enumerate(("", "all_reduce = load_batch")):
        environment = {**own, "RANK": str(rank)}
        hung(ref=story.session.ref(attempt), register=hangs, environment=environment)
    say(story, "it hangs")
    (action,) = story.look().actions
    perform(story, action)
    (event,) = collected(story.session)
    (report,) = collection.read_reports(Path(event.path))
    assert [(process.rank, process.how) for process in report.processes] == [
        (0, "py-spy"),
        (1, "py-spy"),
    ]
    *_, last = explain_job(story.path, "tiny").sentences
    assert last == (
        f"Before attempt 1 was ended, rank 1 on {report.node} stands in load_batch (<string>:6), "
        f"1 other waits in all_reduce; evidence: {event.path}."
    )


def test_an_attempt_that_has_ended_leaves_no_evidence(story_of: StoryOf) -> None:
    story = story_of(log_events=HANGS)
    say(story, "it hangs")
    (action,) = story.look(state="FAILED", exit_code=1).actions
    perform(story, action)
    assert collected(story.session) == []
    assert story.job().restart is not None


def test_a_kill_at_any_step_ends_in_one_restart_and_collects_at_most_twice(
    story_of: StoryOf, killed_at: KilledAt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = tmp_path / "count"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho >> {count}\n")
    program.chmod(0o755)
    monkeypatch.setattr(collection, "python_of", lambda machine: str(program))
    for n in range(1, 100):
        count.write_text("")
        story: Story = story_of(log_events=HANGS)
        say(story, "it hangs")
        was_killed = killed_at(n, lambda story=story: go_on(story))  # type: ignore[misc]
        go_on(story)
        session = Session.load(story.path)
        job = session.jobs["tiny"]
        assert [attempt.number for attempt in job.attempts] == [1, 2], n
        assert job.restart is None
        assert len(collected(session)) == 1
        assert len(count.read_text().splitlines()) in (1, 2)
        if not was_killed:
            assert n > 15
            return
    raise AssertionError("it never came to its end")
