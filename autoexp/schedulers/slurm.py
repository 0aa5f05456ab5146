"""Attempts on a SLURM cluster: one squeue for all of them, sacct only for those that left it.

Facts about commands and their words: docs/slurm.md. An outage is never a state: whatever fails or
hangs raises SchedulerUnavailable and says nothing about any job.
"""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta

from autoexp import states
from autoexp.errors import SchedulerUnavailable, SubmissionRefused
from autoexp.jobs import Attempt, JobSpec, now
from autoexp.machines import LocalMachine, SlurmCluster
from autoexp.payload import TASKS
from autoexp.schedulers import slurm_commands
from autoexp.schedulers.base import Orders, Request, Sighting, Ticket, read_claim
from autoexp.schedulers.exit_files import with_own_account
from autoexp.schedulers.slurm_answers import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    Row,
    of_script,
    read_limit,
    read_sacct,
    read_squeue,
)
from autoexp.schedulers.slurm_batch import REFUSAL, body, executor_for, launched
from autoexp.schedulers.slurm_commands import NO_ANSWER, CommandFailed, run
from autoexp.schedulers.slurm_gone import Gone, ended_by_us

# After "Socket timed out" the first healthy squeue did not show an accepted job yet, in 6 of 6
# tries; 60 ms later it did. Several seconds are asked for, to be sure.
_HEALTHY_S = 5.0
# The end of a job reaches sacct up to three seconds after squeue, and more on a busy site.
_ACCOUNTING_LAG_S = 10.0
_NO_ACCOUNTING = "accounting storage is disabled"
# sacct's window starts at midnight unless told otherwise.
_WINDOW = timedelta(days=30)
_SQUEUE = ("squeue", "--me", "-h", "-r", "-t", "all")


class SlurmScheduler:
    """Submits, finds, looks at and cancels attempts through SLURM's commands."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self._cluster = cluster
        self._gone = Gone(cluster.lost_after_s)
        self._failed_at_s: dict[str, float] = {}
        self._has_accounting = True
        self._answered_at: float | None = None
        self._longest_array: int | None = None
        self._longest_min: dict[str | None, float] = {}

    def orders(self, spec: JobSpec, attempt: Attempt) -> Orders:
        cluster = _asked(spec.machine)
        command = launched(cluster, spec, attempt.key)
        variables = {
            **spec.environment,
            **cluster.environment,
            **spec.container.environment(),
        }
        steps = cluster.launcher != "none"
        return Orders(command, variables, cluster.grace_s, signal_steps=steps)

    def submit(self, ticket: Ticket, request: Request, lock: int) -> str:
        cluster = _asked(request.machine)
        limit = self._capped(request.time_limit_min, cluster.partition)
        request = request._replace(time_limit_min=limit)
        executor = executor_for(cluster, ticket.directory / ticket.script, request, lock)
        try:
            return str(executor._submit_command(body(cluster, ticket.directory)).job_id)
        except SubmissionRefused as error:
            # Words that are not SLURM's own, as of a site's wrapper, may come after a submission.
            found = None if REFUSAL.search(str(error)) else self.find(ticket, in_flight=False)
            if found is None:
                raise
            return found

    def _capped(self, wanted: float | None, partition: str | None) -> float | None:
        """The time limit, but no more than the partition allows: such a job pends for ever."""
        if wanted is None:
            return None
        if partition not in self._longest_min:
            self._longest_min[partition] = self._ask_longest(partition)
        return min(wanted, self._longest_min[partition])

    def _ask_longest(self, partition: str | None) -> float:
        """The partition's time limit in minutes; infinite where there is none."""
        which = ["-p", partition] if partition else []
        answer = self._ask(["sinfo", "-h", "-o", "%P %l", *which])
        lines = [line.split() for line in answer.splitlines()]
        limits = [x[1] for x in lines if len(x) == 2 and (partition or x[0].endswith("*"))]
        return min((read_limit(limit) for limit in limits), default=math.inf)

    def longest_array(self) -> int:
        """SLURM's MaxArraySize, 1001 unless the site has set it (slurm.conf(5))."""
        if self._longest_array is None:
            answer = self._ask(["scontrol", "show", "config"])
            found = re.search(r"MaxArraySize\s*=\s*(\d+)", answer)
            self._longest_array = int(found[1]) - 1 if found else 1000
        return self._longest_array

    def find(self, ticket: Ticket, *, in_flight: bool) -> str | None:
        """Look an attempt up by name and script, until SLURM has answered healthily for seconds."""
        healthy_since: float | None = None
        command = [*_SQUEUE, "-o", "%i|%o", "--name", ticket.name]
        while True:
            found = _first(self._ask(command), ticket)
            if found is not None:
                return found
            if in_flight:
                return None
            healthy_since = healthy_since or time.monotonic()
            if time.monotonic() - healthy_since >= _HEALTHY_S:
                break
            time.sleep(0.5)
        return _claimed_by(ticket) or self._find_in_accounting(ticket)

    def _find_in_accounting(self, ticket: Ticket) -> str | None:
        try:
            answer = self._ask([*_sacct(), "-o", "JobID,SubmitLine", "--name", ticket.name])
        except SchedulerUnavailable:
            # Without accounting the queue and the claim have to do: a job that started has left
            # its claim, and one that has not is in the queue.
            return None
        return _first(answer, ticket)

    def query(self, tickets: Sequence[Ticket]) -> dict[str, Sighting]:
        """One squeue for all; one sacct for those it does not tell all of; then the exit files."""
        try:
            listed = read_squeue(self._ask([*_SQUEUE, "-O", SQUEUE_FORMAT]))
        except SchedulerUnavailable:
            self._answered_at = None
            raise
        rows = {(row.job_id, row.name): row for row in listed}
        now_s = time.monotonic()
        healthy_s = 0.0 if self._answered_at is None else now_s - self._answered_at
        self._answered_at = now_s
        # Identity is id and name: after a controller's loss ids are used again.
        found = {
            ticket.key: rows[str(ticket.job_id), ticket.name].sighting
            for ticket in tickets
            if (str(ticket.job_id), ticket.name) in rows
        }
        gone = [ticket for ticket in tickets if ticket.key not in found]
        failed = [t for t in tickets if t.key in found and found[t.key].state == "FAILED"]
        accounts = self._accounted([*gone, *failed])
        self._correct_failures(found, failed, accounts)
        found |= self._gone.sight(gone, accounts, healthy_s, self._end)
        return {t.key: _of_its_own(t, found[t.key], rows) for t in tickets if t.key in found}

    def _accounted(self, tickets: Sequence[Ticket]) -> dict[str, Sighting] | None:
        """What accounting says, by key, and it lags by seconds; None: it does not answer."""
        if not tickets:
            return {}
        try:
            job_ids = ",".join(str(ticket.job_id) for ticket in tickets)
            rows = read_sacct(self._ask([*_sacct(), "-o", SACCT_FORMAT, "-j", job_ids]))
        except SchedulerUnavailable as error:
            # Where there is no accounting at all, squeue's answers are all that one can have.
            self._has_accounting = _NO_ACCOUNTING not in str(error)
            return None if self._has_accounting else {}
        listed = {(row.job_id, row.name): row.sighting for row in rows}
        named = {t.key: listed.get((str(t.job_id), t.name)) for t in tickets}
        return {key: sighting for key, sighting in named.items() if sighting is not None}

    def _correct_failures(
        self,
        found: dict[str, Sighting],
        failed: Sequence[Ticket],
        accounts: Mapping[str, Sighting] | None,
    ) -> None:
        """Make OUT_OF_MEMORY of a FAILED: of a kill inside a step only accounting knows."""
        now_s = time.monotonic()
        since = {t.key: self._failed_at_s.get(t.key, now_s) for t in failed}
        for key, at_s in since.items():
            known = (accounts or {}).get(key)
            if known is not None and states.is_terminal(known.state):
                found[key] = found[key]._replace(state=known.state)
            elif accounts is not None and self._has_accounting and now_s - at_s < _ACCOUNTING_LAG_S:
                del found[key]  # nothing is said of the job yet
        self._failed_at_s = since

    def cancel(self, tickets: Sequence[Ticket]) -> dict[str, str]:
        """One scancel for all; it answers 0 for unknown ids too, so its words are returned.

        Raises SchedulerUnavailable for words that say nothing of a job: they are no answer.
        """
        if not tickets:
            return {}
        try:
            run(["scancel", *(str(t.job_id) for t in tickets)], self._cluster.query_timeout_s)
        except CommandFailed as error:
            refused = {t.key: slurm_commands.about(str(t.job_id), error.stderr) for t in tickets}
            if NO_ANSWER.search(error.stderr) or not any(refused.values()):
                raise SchedulerUnavailable(str(error)) from error
            return {key: words or "accepted" for key, words in refused.items()}
        return {ticket.key: f"scancel {ticket.job_id}: accepted" for ticket in tickets}

    def _end(self, ticket: Ticket) -> None:
        """Cancel a job that is thought lost: by its name too, for its id may be another's by now.

        Raises SchedulerUnavailable without an answer.
        """
        job_id = str(ticket.job_id)
        try:
            run(["scancel", "--name", ticket.name, job_id], self._cluster.query_timeout_s)
        except CommandFailed as error:
            if not slurm_commands.about(job_id, error.stderr):
                raise SchedulerUnavailable(str(error)) from error

    def avoid(self, tickets: Sequence[Ticket], nodes: Sequence[str]) -> None:
        job_ids = [str(ticket.job_id) for ticket in tickets]
        slurm_commands.exclude_nodes(job_ids, nodes, self._cluster.query_timeout_s)

    # Asking

    def _ask(self, command: list[str]) -> str:
        try:
            return run(command, self._cluster.query_timeout_s)
        except CommandFailed as error:
            raise SchedulerUnavailable(str(error)) from error


def _asked(machine: LocalMachine | SlurmCluster) -> SlurmCluster:
    if not isinstance(machine, SlurmCluster):
        raise SubmissionRefused("a job for the local machine cannot join a session on SLURM")
    return machine


def _sacct() -> list[str]:
    since = (now() - _WINDOW).strftime("%Y-%m-%dT%H:%M:%S")
    return ["sacct", "-X", "-D", "-n", "-P", "-S", since]


def _of_its_own(
    ticket: Ticket, sighting: Sighting, rows: Mapping[tuple[str, str], Row]
) -> Sighting:
    """What is said of the job that runs the attempt, which may be another than is known.

    Of two copies one has the claim, and the other one's end says nothing.
    """
    if not states.is_terminal(sighting.state):
        return sighting
    holder = read_claim(ticket.directory)
    if holder is None or holder == ticket.job_id:
        return ended_by_us(ticket, with_own_account(ticket, sighting))
    if (holder, ticket.name) not in rows:
        return Sighting("RUNNING", f"run by job {holder}", job_id=holder)
    its = rows[holder, ticket.name].sighting._replace(job_id=holder)
    return with_own_account(ticket._replace(job_id=holder), its)


def _first(answer: str, ticket: Ticket) -> str | None:
    """Id of the ticket's job among those listed; of an array that of the whole, not of a task."""
    found = next(iter(of_script(answer, ticket.script)), None)
    return found.partition("_")[0] if found and _is_array(ticket) else found


def _is_array(ticket: Ticket) -> bool:
    return (ticket.directory / TASKS).exists()


def _claimed_by(ticket: Ticket) -> str | None:
    """The id of the job that has claimed the attempt, or any task of the array."""
    if not _is_array(ticket):
        return read_claim(ticket.directory)
    tasks = json.loads((ticket.directory / TASKS).read_text())
    claims = (read_claim(ticket.directory.parent / key) for key in tasks.values())
    return next((claim.partition("_")[0] for claim in claims if claim), None)
