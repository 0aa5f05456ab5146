"""A session of thirty jobs in which every line of every log is one that once ended a monitor."""

import shlex
import sys
from pathlib import Path

from autoexp.config.compose import compose
from autoexp.dotted import setting
from autoexp.rules.events import LogMatched
from autoexp.session.inbox import SubmitRequest, enqueue
from autoexp.session.session import Session
from autoexp.states import Kind
from tests.builders import create

LINES = (
    *(b"loss: nan", b"loss: -inf", b"loss: 1,000", b"loss: 3.2e+4", b"loss: 28.2K", b"loss: "),
    *(b"loss: " + b"9" * 5000, b"loss: 1e999", b"loss: 0x1F", b"loss: 1_000"),
    b" iteration    1,000/     300 | lm loss: 2.5 |",
    b" iteration " + b"7" * 400 + b"/ 300 | lm loss: nan |",
    b" iteration       -5/     300 | lm loss: 2,5 | learning rate: inf |",
    b"10%|#         | 30/300 [00:01<00:09]\r20%|##        | 60/300\r" * 40 + b"Killed",
    *(b"\0" * 3000, b"\x1b[31mred\x1b[0m", b"\x1b[2K\x1b[1Gbar", b"\x1b]0;title\x07"),
    *(b"\xff\xfe\xc3", "\u2028 \u0085 größer".encode(), b"m" * 1_100_000, b"{job.name} $(touch x)"),
)
RULES = {
    "monitoring.log_events": {
        "loss": {
            "pattern": "^loss: ?(?P<n>.*)",
            "every": True,
            "actions": [{"write_file": {"path": "seen/losses", "line": "{job.name} {n}"}}],
        },
        "part": {"pattern": "(?P<n>[0-9]+)?red", "actions": [{"log": {"message": "{line} {n}"}}]},
        "killed": {"substring": "Killed", "actions": [{"log": {}}]},
    },
    "monitoring.metric_events": {
        "spike": {"spike": {"times": 1.5, "over": 2, "logged": 1}, "actions": [{"log": {}}]},
        "nan": {"not_a_number": {"logged": 1}, "actions": [{"log": {}}]},
    },
}
COMMANDS = 27


def make(root: Path, *overrides: str) -> Path:
    """The session: a training between such lines, its two cooldowns, and commands of them alone."""
    lines = root.parent / "lines"
    lines.write_bytes(b"\n".join(LINES) + b"\n")
    path = create(compose("demo", overrides, setting(RULES)), root)
    say = f"cat {shlex.quote(str(lines))}"
    with Session.hold(path) as (session, _):
        trunk = session.jobs["demo"]
        wrapped = ("/bin/sh", "-c", f'{say}; "$@"; code=$?; {say}; exit $code', "sh")
        changed = trunk.spec.model_copy(update={"command": (*wrapped, *trunk.spec.command)})
        session.change_job(trunk, spec=changed)
        for number in range(COMMANDS):
            name, code = f"says{number:02d}", 3 * (number % 2)
            output = path / "output" / name
            changes = {
                "name": name,
                "kind": Kind.COMMAND,
                "command": ("/bin/sh", "-c", f"{say}; exit {code}"),
                "output_dir": str(output),
                "save_dir": str(output / "checkpoints"),
                "target_iteration": None,
                "scores": None,
            }
            spec = trunk.spec.model_copy(update=changes)
            enqueue(path, SubmitRequest(jobs=(spec,), by=sys.argv[0][-40:]))
    return path


def check(path: Path) -> None:
    """Every job has its right verdict, and the rules have seen the lines of each."""
    session = Session.load(path)
    verdicts = {name: str(job.verdict) for name, job in session.jobs.items()}
    commands = {f"says{n:02d}": "failed" if n % 2 else "finished" for n in range(COMMANDS)}
    trainings = dict.fromkeys(("demo", "demo-cd100", "demo-cd200"), "finished")
    assert verdicts == trainings | commands, {n: j.reason for n, j in session.jobs.items()}
    for number in range(1, COMMANDS, 2):
        assert str(session.jobs[f"says{number:02d}"].reason).startswith("FAILED (exit code 3")
    events = [entry.event for entry in session.journal.entries]
    lost = {e.job for e in events if isinstance(e, LogMatched) and e.rule == "loss"}
    killed = {e.job for e in events if isinstance(e, LogMatched) and e.rule == "killed"}
    assert lost == killed == {"demo", *commands}
    values = {e.values["n"] for e in events if isinstance(e, LogMatched) and e.rule == "loss"}
    assert {"nan", "-inf", "1,000", "3.2e+4", "28.2K", ""} <= values
    assert not list(path.rglob("x"))
