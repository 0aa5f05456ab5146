"""Attempts on a SLURM cluster: one squeue for all of them, sacct only for those that left it.

Facts about commands and their words: docs/slurm.md. An outage is never a state: whatever fails or
hangs raises SchedulerUnavailable and says nothing about any job.
"""

import json
import math
import re
import time
from collections.abc import Sequence
from datetime import timedelta

from autoexp import states
from autoexp.errors import SchedulerUnavailable, SubmissionRefused
from autoexp.jobs import Attempt, JobSpec, now
from autoexp.machines import LocalMachine, SlurmCluster
from autoexp.payload import TASKS
from autoexp.schedulers import slurm_commands
from autoexp.schedulers.base import Orders, Request, Sighting, Ticket, read_claim
from autoexp.schedulers.exit_files import from_exit_file, with_own_account
from autoexp.schedulers.slurm_answers import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    Row,
    read_limit,
    read_sacct,
    read_squeue,
)
from autoexp.schedulers.slurm_batch import body, executor_for, launched
from autoexp.schedulers.slurm_commands import NO_ANSWER, CommandFailed, run

# After "Socket timed out" the first healthy squeue did not show an accepted job yet, in 6 of 6
# tries; 60 ms later it did. Several seconds are asked for, to be sure.
_HEALTHY_S = 5.0
# The end of a job reaches sacct up to three seconds after squeue, and more on a busy site.
_ACCOUNTING_LAG_S = 10.0
_NO_ACCOUNTING = "accounting storage is disabled"
# sacct's window starts at midnight unless told otherwise.
_WINDOW = timedelta(days=30)
# Between this host and the controller's; munge refuses more than five minutes.
_CLOCKS_DIFFER = timedelta(seconds=60)


class SlurmScheduler:
    """Submits, finds, looks at and cancels attempts through SLURM's commands."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self._cluster = cluster
        self._missing_s: dict[str, float] = {}
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
        executor = executor_for(cluster, ticket.directory, request, lock)
        return str(executor._submit_command(body(cluster, ticket.directory)).job_id)

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
        """Look an attempt up by its name, until SLURM has answered healthily for seconds."""
        healthy_since: float | None = None
        while True:
            rows = self._squeue(["--name", ticket.name])
            found = [row.job_id for row in rows if _is_of(row, ticket)]
            if found:
                # Of an array the id of the whole is asked for, not of a task.
                return found[0].partition("_")[0] if _is_array(ticket) else found[0]
            if in_flight:
                return None
            healthy_since = healthy_since or time.monotonic()
            if time.monotonic() - healthy_since >= _HEALTHY_S:
                break
            time.sleep(0.5)
        return _claimed_by(ticket) or self._find_in_accounting(ticket)

    def _find_in_accounting(self, ticket: Ticket) -> str | None:
        try:
            rows = self._sacct(["--name", ticket.name])
        except SchedulerUnavailable:
            # Without accounting the queue and the claim have to do: a job that started has left
            # its claim, and one that has not is in the queue.
            return None
        found = next((row.job_id for row in rows if _is_of(row, ticket)), None)
        return found.partition("_")[0] if found and _is_array(ticket) else found

    def query(self, tickets: Sequence[Ticket]) -> dict[str, Sighting]:
        """One squeue for all; one sacct for those it does not tell all of; then the exit files."""
        try:
            rows = {(row.job_id, row.name): row for row in self._squeue([])}
        except SchedulerUnavailable:
            self._answered_at = None
            raise
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
        listed, answered = self._accounted([*gone, *failed])
        self._correct_failures(found, failed, listed, answered=answered and self._has_accounting)
        found |= self._look_behind(gone, listed, healthy_s, answered=answered)
        self._missing_s = {k: v for k, v in self._missing_s.items() if k not in found}
        return {t.key: with_own_account(t, found[t.key]) for t in tickets if t.key in found}

    def _accounted(self, tickets: Sequence[Ticket]) -> tuple[dict[str, Sighting], bool]:
        """Ends that accounting knows of, by key, and whether it has answered."""
        if not tickets:
            return {}, True
        try:
            rows = self._sacct(["-j", ",".join(str(ticket.job_id) for ticket in tickets)])
        except SchedulerUnavailable as error:
            # Where there is no accounting at all, squeue's answers are all that one can have.
            self._has_accounting = _NO_ACCOUNTING not in str(error)
            return {}, not self._has_accounting
        listed = {(row.job_id, row.name): row.sighting for row in rows}
        named = {t.key: listed.get((str(t.job_id), t.name)) for t in tickets}
        # Accounting lags: for seconds it still says PENDING or RUNNING.
        return {k: s for k, s in named.items() if s and states.is_terminal(s.state)}, True

    def _correct_failures(
        self,
        found: dict[str, Sighting],
        failed: Sequence[Ticket],
        listed: dict[str, Sighting],
        *,
        answered: bool,
    ) -> None:
        """Make OUT_OF_MEMORY of a FAILED: of a kill inside a step only accounting knows."""
        now_s = time.monotonic()
        since = {t.key: self._failed_at_s.get(t.key, now_s) for t in failed}
        for key, at_s in since.items():
            if key in listed:
                found[key] = found[key]._replace(state=listed[key].state)
            elif answered and now_s - at_s < _ACCOUNTING_LAG_S:
                del found[key]  # nothing is said of the job yet
        self._failed_at_s = since

    def _look_behind(
        self,
        gone: Sequence[Ticket],
        listed: dict[str, Sighting],
        healthy_s: float,
        *,
        answered: bool,
    ) -> dict[str, Sighting]:
        """What is known of jobs that have left the queue."""
        found: dict[str, Sighting] = {}
        for ticket in gone:
            sighting = listed.get(ticket.key) or from_exit_file(ticket)
            if sighting is None and answered:
                sighting = self._lost(ticket, healthy_s)
            if sighting is not None:
                found[ticket.key] = sighting
        return found

    def _lost(self, ticket: Ticket, healthy_s: float) -> Sighting | None:
        """LOST only after minutes of healthy answers without the job."""
        missing_s = self._missing_s.get(ticket.key)
        self._missing_s[ticket.key] = 0.0 if missing_s is None else missing_s + healthy_s
        if self._missing_s[ticket.key] < self._cluster.lost_after_s:
            return None
        return Sighting("LOST", "neither squeue nor sacct knows it", ended_at=now())

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

    def avoid(self, tickets: Sequence[Ticket], nodes: Sequence[str]) -> None:
        job_ids = [str(ticket.job_id) for ticket in tickets]
        slurm_commands.exclude_nodes(job_ids, nodes, self._cluster.query_timeout_s)

    # Asking

    def _squeue(self, which: list[str]) -> list[Row]:
        command = ["squeue", "--me", "-h", "-r", "-t", "all", "-O", SQUEUE_FORMAT, *which]
        return read_squeue(self._ask(command))

    def _sacct(self, which: list[str]) -> list[Row]:
        since = (now() - _WINDOW).strftime("%Y-%m-%dT%H:%M:%S")
        command = ["sacct", "-X", "-D", "-n", "-P", "-S", since, "-o", SACCT_FORMAT, *which]
        return read_sacct(self._ask(command))

    def _ask(self, command: list[str]) -> str:
        try:
            return run(command, self._cluster.query_timeout_s)
        except CommandFailed as error:
            raise SchedulerUnavailable(str(error)) from error


def _asked(machine: LocalMachine | SlurmCluster) -> SlurmCluster:
    if not isinstance(machine, SlurmCluster):
        raise SubmissionRefused("a job for the local machine cannot join a session on SLURM")
    return machine


def _is_of(row: Row, ticket: Ticket) -> bool:
    """Whether a job of the ticket's name is the ticket's, and not an older session's."""
    earliest = ticket.intended_at - _CLOCKS_DIFFER
    return row.name == ticket.name and (row.submitted_at is None or row.submitted_at >= earliest)


def _is_array(ticket: Ticket) -> bool:
    return (ticket.directory / TASKS).exists()


def _claimed_by(ticket: Ticket) -> str | None:
    """The id of the job that has claimed the attempt, or any task of the array."""
    if not _is_array(ticket):
        return read_claim(ticket.directory)
    tasks = json.loads((ticket.directory / TASKS).read_text())
    claims = (read_claim(ticket.directory.parent / key) for key in tasks.values())
    return next((claim.partition("_")[0] for claim in claims if claim), None)
