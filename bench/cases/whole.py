"""What a session that waits keeps alive, as a user's node sees it: processes, threads, memory.

Everything is read from `/proc`, over real seconds. Beside the sessions a bare loop does the least
that watching a job needs, in the same time on the same machine: the floor.
"""

import json
import os
import pty
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.flows.deployment import keeper
from autoexp.flows.deployment.server_checks import answers
from bench.world.measure import Figure
from bench.world.sessions import log_lines
from bench.world.slurm_commands import FakeCluster

SECONDS = "BENCH_SECONDS"
_DAY_S = 86400.0
_SETTLE_S = 45.0
_PATIENCE_S = 300.0
# An iteration a second and a line every ten; one job that goes on for longer than anybody measures.
_JOB = (
    "cooldowns=[]",
    "backend.args.train_iters=1000000",
    "backend.args.save_interval=1000000",
    "backend.args.sleep_per_iteration_ms=1000",
    "backend.args.log_interval=10",
    "backend.args.hidden_size=16",
    "backend.args.global_batch_size=8",
    # As for real trainings; the demo's own looks twice a second.
    "monitoring.file_tick_s=2",
    "monitoring.publish_every_s=30",
)
_MANY = 100
_SESSIONS = 20
_WORKER = "under a worker"
_LOG_EVERY_S = 10.0
_LOOP = """
import os, subprocess, time
asked = 0.0
while True:
    os.stat(__import__("sys").argv[1])
    if time.monotonic() - asked >= 15:
        asked = time.monotonic()
        subprocess.run(["true"])
    time.sleep(2)
"""


class Part(NamedTuple):
    """What one process has used so far, and what it holds."""

    cpu_s: float
    rss_mb: float
    pss_mb: float
    threads: dict[int, float]
    """Seconds of CPU by thread, those of ended threads left out."""


def whole() -> list[Figure]:
    """Sessions in the foreground: one job here, in a terminal and into a file; on SLURM, 100 jobs
    that run, and one that is pending. And one job under a worker, with its server."""
    seconds = float(os.environ.get(SECONDS) or 600)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bare = stack.enter_context(_started([sys.executable, "-c", _LOOP, folder]))
        sessions: dict[str, tuple[int, ...]] = {
            name: (
                stack.enter_context(_session(Path(folder) / key, is_terminal=key == "terminal")),
            )
            for key, name in (("terminal", "in a terminal"), ("file", "into a file"))
        }
        for key, state in (("many", "RUNNING"), ("pending", "PENDING")):
            count = _MANY if key == "many" else 1
            name = f"{count} on SLURM, {state.lower()}"
            queued = _queued(Path(folder) / key, state, count)
            sessions[name] = (stack.enter_context(queued),)
        sessions[_WORKER] = stack.enter_context(_under_a_worker(Path(folder) / "worker"))
        time.sleep(_SETTLE_S)
        before = {name: _parts(*pids) for name, pids in sessions.items()}
        floor = sum(part.cpu_s for part in _parts(bare).values())
        began = time.monotonic()
        time.sleep(seconds)
        scale = _DAY_S / (time.monotonic() - began)
        after = {name: _parts(*pids) for name, pids in sessions.items()}
        floor = (sum(part.cpu_s for part in _parts(bare).values()) - floor) * scale
        figures.append(Figure("a bare loop: the floor, a day", "s", [floor]))
        for name, (pid, *_) in sessions.items():
            names = _thread_names(pid)
            figures += _figures(name, before[name], after[name], scale, floor, names)
    return figures


def many() -> list[Figure]:
    """Twenty sessions in the foreground of one user, one job each: memory with their one server."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        home = Path(folder) / "prefect"
        sessions = [
            stack.enter_context(_queued(Path(folder) / str(number), "RUNNING", 1, home))
            for number in range(_SESSIONS)
        ]
        time.sleep(_SETTLE_S)
        found = [_parts(pid) for pid in sessions]
    shares = [(what, part.pss_mb) for parts in found for what, part in parts.items()]
    servers = [share for what, share in shares if what == "server"]
    return [
        Figure(
            *(f"{_SESSIONS} sessions: all of it, memory (Pss)", "MB"),
            [sum(share for _, share in shares)],
            below=2500,
        ),
        Figure("servers", "", [float(len(servers))], below=1.5),
        Figure("the server", "MB", servers, below=150),
        Figure("a session's process", "MB", [parts["flow process"].pss_mb for parts in found]),
        Figure("the keeper", "MB", [share for what, share in shares if "keeper" in what]),
    ]


def _figures(
    name: str,
    before: dict[str, Part],
    after: dict[str, Part],
    scale: float,
    floor: float,
    names: dict[int, str],
) -> Iterator[Figure]:
    used = {
        what: (part.cpu_s - (before[what].cpu_s if what in before else 0.0)) * scale
        for what, part in after.items()
    }
    total = sum(used.values())
    memory = sum(part.pss_mb for part in after.values())
    note = f"{total / floor:.1f} times the floor" if floor else ""
    # A server of all sessions, and a worker, are no one session's.
    marks = (None, None) if name == _WORKER else (158, 270)
    yield Figure(f"{name}: all of it, a day", "s", [total], below=marks[0], note=note)
    yield Figure(f"{name}: all of it, memory (Pss)", "MB", [memory], below=marks[1])
    for what, part in after.items():
        yield Figure(f"{name}: {what}, a day", "s", [used[what]], note=f"{part.rss_mb:.0f} MB Rss")
        yield Figure(f"{name}: {what}, memory (Pss)", "MB", [part.pss_mb])
        earlier = before[what].threads if what in before else {}
        spent = {tid: cpu - earlier.get(tid, 0.0) for tid, cpu in part.threads.items()}
        for tid, cpu in sorted(spent.items(), key=lambda item: -item[1])[:8]:
            if cpu * scale >= 0.5:
                thread = names.get(tid, f"thread {tid}")
                yield Figure(f"{name}: {what}: {thread}, a day", "s", [cpu * scale])


@contextmanager
def _started(command: list[str], **options: Any) -> Iterator[int]:
    with subprocess.Popen(command, **options) as process:
        try:
            yield process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def _environment(folder: Path, home: Path | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {
        **kept,
        "PREFECT_HOME": str(home or folder / "prefect"),
        "AUTOEXP_SESSIONS": str(folder / "sessions"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "TERM": "xterm",
    }


_RUN = (sys.executable, "-m", "autoexp", "run", "demo", "--session", "waits", "--yes")


@contextmanager
def _queued(folder: Path, state: str, count: int, home: Path | None = None) -> Iterator[int]:
    """A session on a made-up cluster, where all its jobs are in this state; yields its process."""
    (folder / "bin").mkdir(parents=True)
    FakeCluster(folder / "bin").takes(state)
    environment = _environment(folder, home)
    environment["PATH"] = f"{folder / 'bin'}:{environment['PATH']}"
    rates = ",".join(f"{n / 1e5:.5f}" for n in range(1, count + 1))
    command = [*_RUN, *_JOB, "slurm=base", f"backend.args.lr={rates}"]
    session = folder / "sessions" / "waits"
    done = threading.Event()
    writer = threading.Thread(target=_let_log, args=(session, done), daemon=True)
    with (folder / "output").open("w") as output:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        with _started(command, env=environment, **options) as pid:
            _until(lambda: _in_state(session, state) >= count, f"{count} jobs of {session}")
            if state == "RUNNING":
                writer.start()
            try:
                yield pid
            finally:
                done.set()


def _let_log(session: Path, done: threading.Event) -> None:
    """Jobs that are made up log all the same: an iteration each, every ten seconds."""
    number = 1
    while not done.wait(_LOG_EVERY_S):
        for folder in session.glob("attempts/*"):
            with (folder / "job.log").open("ab") as log:
                log.write(log_lines(number, 1))
        number += 1


def _in_state(session: Path, state: str) -> int:
    found = 0
    for path in session.glob("jobs/*.json"):
        with suppress(OSError, ValueError):
            attempts = json.loads(path.read_text()).get("attempts") or [{}]
            found += attempts[-1].get("state") == state
    return found


@contextmanager
def _session(folder: Path, *, is_terminal: bool) -> Iterator[int]:
    """A session that runs in the foreground, from when it is quiet on; yields its process."""
    folder.mkdir()
    environment = _environment(folder)
    command = [*_RUN, *_JOB]
    screen, output = pty.openpty() if is_terminal else (None, (folder / "output").open("w"))
    if screen is not None:
        threading.Thread(target=_drain, args=(screen,), daemon=True).start()
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
    session = folder / "sessions" / "waits"
    try:
        with _started(command, env=environment, **options) as pid:
            _until(lambda: _goes_on(session), f"iteration 20 of {session}")
            yield pid
    finally:
        cancel = [sys.executable, "-m", "autoexp", "cancel", "waits"]
        subprocess.run(cancel, env=environment, capture_output=True)


@contextmanager
def _under_a_worker(folder: Path) -> Iterator[tuple[int, ...]]:
    """A session that a worker runs; yields the worker's process and its server's."""
    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    url, auth_string = f"http://127.0.0.1:{port}/api", secrets.token_hex(16)
    environment = {
        **_environment(folder),
        "PREFECT_API_URL": url,
        "PREFECT_API_AUTH_STRING": f"bench:{auth_string}",
        "PREFECT_SERVER_API_AUTH_STRING": f"bench:{auth_string}",
        "PREFECT_SERVER_API_PORT": str(port),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    sessions = folder / "sessions"
    with (folder / "output").open("w") as output:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        options |= {"env": environment, "cwd": folder}

        def done(*words: str) -> None:
            subprocess.run([sys.executable, "-m", *words], check=True, **options)

        serve = [sys.executable, "-m", "autoexp.flows.deployment.serve"]
        worker = [sys.executable, "-m", "autoexp", "worker"]
        with _started(serve, **options) as server:
            _until(lambda: answers(url, environment["PREFECT_API_AUTH_STRING"]), "the server")
            done("autoexp", "deploy")
            with _started(worker, **options) as pid:
                asked = ["-p", "config=demo", "-p", f"overrides={json.dumps(_JOB)}"]
                done("prefect", "deployment", "run", "autoexp/train", *asked)
                _until(
                    lambda: any(map(_goes_on, sessions.glob("[!.]*"))), "iteration 20 of a session"
                )
                try:
                    yield pid, server
                finally:
                    for path in sessions.glob("[!.]*"):
                        done("autoexp", "cancel", path.name)


def _goes_on(session: Path) -> bool:
    return _iteration(session) >= 20


def _drain(screen: int) -> None:
    with suppress(OSError):
        while os.read(screen, 1 << 16):
            pass


def _iteration(session: Path) -> int:
    with suppress(OSError, ValueError):
        for path in session.glob("jobs/*.json"):
            return int(json.loads(path.read_text()).get("iteration") or 0)
    return 0


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {_PATIENCE_S:.0f} s in vain for {what}")
        time.sleep(0.5)


# What /proc says


_KINDS = (
    ("deployment.serve", "server"),
    (keeper.SERVER, "server"),
    (keeper.NAME, "keeper of the server"),
    ("prefect worker", "Prefect's worker"),
    ("autoexp worker", "what watches the worker"),
    ("prefect.engine", "flow process"),
    ("flow_engine", "flow process"),
    ("autoexp run", "flow process"),
)
"""What a process is, by words of its command."""


def _parts(*pids: int) -> dict[str, Part]:
    """A session's processes by what they are; the jobs' own are left out: a cluster has them."""
    found: dict[str, Part] = {}
    for pid in pids:
        for each in (pid, *_children(pid)):
            what, part = _kind(each), _part(each)
            found[what] = _sum(found[what], part) if what in found else part
    reaped = sum(_reaped_s(each) for pid in pids for each in (pid, *_children(pid)))
    found["children that ended"] = Part(reaped, 0.0, 0.0, {})
    return found


def _kind(pid: int) -> str:
    command = _command(pid)
    return next((kind for words, kind in _KINDS if words in command), "another")


def _sum(one: Part, other: Part) -> Part:
    numbers = (one.cpu_s + other.cpu_s, one.rss_mb + other.rss_mb, one.pss_mb + other.pss_mb)
    return Part(*numbers, one.threads | other.threads)


def _part(pid: int) -> Part:
    rollup = dict(
        line.split(":", 1) for line in _read(f"/proc/{pid}/smaps_rollup").splitlines()[1:]
    )
    threads = {
        int(thread.name): int(_read(f"{thread}/schedstat").split()[0]) / 1e9
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }
    return Part(
        time.clock_gettime((~pid << 3) | 2),  # clock_getcpuclockid(3), which counts no ticks
        _mb(rollup["Rss"]),
        _mb(rollup["Pss"]),
        threads,
    )


def _reaped_s(pid: int) -> float:
    # The name in parentheses may hold spaces.
    fields = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in _read(f"{task}/children").split():
            if "submitit" not in _command(int(child)):
                yield int(child)
                yield from _children(int(child))


def _command(pid: int) -> str:
    with suppress(OSError):
        return _read(f"/proc/{pid}/cmdline").replace("\0", " ")
    return ""


def _read(path: str) -> str:
    return Path(path).read_text()


def _mb(field: str) -> float:
    return int(field.split()[0]) * 1024 / 1e6


def _thread_names(pid: int) -> dict[int, str]:
    """Names of a process's Python threads by their ids, where py-spy is installed."""
    if (spy := shutil.which("py-spy")) is None:
        return {}
    shown = subprocess.run([spy, "dump", "--json", "--pid", str(pid)], capture_output=True)
    with suppress(ValueError, KeyError, TypeError):
        return {
            each["os_thread_id"]: each["thread_name"] or "unnamed"
            for each in json.loads(shown.stdout)
        }
    return {}
