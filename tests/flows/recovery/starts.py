"""How often each job's trainer was started."""

from collections import Counter
from pathlib import Path

from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.flows.sessions import edit_job


def count_starts(path: Path) -> None:
    """Have every job note each start of its trainer in a file."""
    for name in Session.load(path).jobs:
        note = f'echo {name} >> {path}/starts; exec "$@"'
        edit_job(path, name, lambda command, note=note: ["/bin/sh", "-c", note, "sh", *command])


def ran(path: Path) -> Counter[str]:
    return Counter((path / "starts").read_text().split())


def assert_each_job_ran_once(path: Path, *, restarted: str | None = None) -> Session:
    """Each job ran once, and the one that a rule restarted twice."""
    session = Session.load(path)
    times = {name: 2 if name == restarted else 1 for name in session.jobs}
    assert {job.verdict for job in session.jobs.values()} == {Verdict.FINISHED}
    assert {name: len(job.attempts) for name, job in session.jobs.items()} == times
    assert ran(path) == {n: x for n, x in times.items() if not session.jobs[n].spec.launched_by}
    keys = [entry.event.key for entry in session.journal.entries]
    assert len(keys) == len(set(keys))
    assert {action.status for action in session.actions.values()} <= {"done"}
    return session
