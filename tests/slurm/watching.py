"""Running sessions on the cluster, and what can be seen of them meanwhile."""

import asyncio
from pathlib import Path
from typing import NamedTuple

from autoexp import states
from autoexp.flows.train import train
from autoexp.reports.status import status_of
from autoexp.session.session import Session
from tests.slurm.bench import slurm


class Glimpse(NamedTuple):
    """A job at one moment, as `autoexp status` shows it, and its open attempts."""

    job: str
    state: str
    reason: str | None
    open_attempts: int


class Seen(NamedTuple):
    """A session that has ended, and all that was seen on the way."""

    session: Session
    state: str
    message: str
    glimpses: list[list[Glimpse]]

    def of(self, job: str) -> list[Glimpse]:
        return [glimpse for moment in self.glimpses for glimpse in moment if glimpse.job == job]


async def run_to_the_end(path: Path) -> Seen:
    """Run a session in this process, and look at it from outside all the while."""
    running = asyncio.create_task(run(path))
    glimpses: list[list[Glimpse]] = []
    while not running.done():
        glimpses.append(await asyncio.to_thread(glimpse, path))
        await asyncio.wait([running], timeout=0.5)
    state, message = await running
    return Seen(Session.load(path), state, message, glimpses)


async def run(path: Path) -> tuple[str, str]:
    state = await train(session=path.name, return_state=True)
    return state.type.value, state.message or ""


def glimpse(path: Path) -> list[Glimpse]:
    session = Session.load(path)
    shown = {job.name: job for job in status_of(session).jobs}
    return [
        Glimpse(name, shown[name].state, shown[name].reason, len(job.open_attempts))
        for name, job in session.jobs.items()
    ]


async def seen(path: Path, condition: str) -> None:
    """Wait until the journal has an event whose key begins like this."""
    deadline = asyncio.get_running_loop().time() + 300
    while not any(e.event.key.startswith(condition) for e in Session.load(path).journal.entries):
        assert asyncio.get_running_loop().time() < deadline, f"waited in vain for {condition}"
        await asyncio.sleep(0.2)


class Account(NamedTuple):
    """A job as accounting has it."""

    name: str
    state: str
    seconds: int
    nodes: str
    resources: str


def accounts(session: Session) -> dict[str, list[Account]]:
    """What accounting says of all attempts, by job id: a requeued one has several rows."""
    attempts = [a for job in session.jobs.values() for a in job.attempts if a.job_id]
    ids = ",".join(str(attempt.job_id) for attempt in attempts)
    columns = "JobID,JobName,State,ElapsedRaw,NodeList,AllocTRES"
    found: dict[str, list[Account]] = {}
    for line in slurm("sacct", "-X", "-D", "-n", "-P", "-j", ids, "-o", columns).splitlines():
        job_id, name, state, seconds, nodes, resources = line.split("|")
        account = Account(name, state.split()[0], int(seconds), nodes, resources)
        found.setdefault(job_id, []).append(account)
    return found


def is_accounted(session: Session) -> bool:
    """Whether accounting, which lags, knows the end of every attempt."""
    found = accounts(session)
    attempts = [a for job in session.jobs.values() for a in job.attempts if a.job_id]
    return all(
        states.is_terminal(row.state) for a in attempts for row in found.get(str(a.job_id), [])
    ) and all(str(a.job_id) in found for a in attempts)


def outcome(session: Session) -> dict[str, object]:
    """What must not depend on where a session runs and what happens meanwhile."""
    return {
        name: (job.verdict, job.reason, job.iteration, job.loss, sorted(job.checkpoints))
        for name, job in session.jobs.items()
    }
