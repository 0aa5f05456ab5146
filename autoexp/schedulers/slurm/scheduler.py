"""Attempts on a SLURM cluster: one squeue for all, sacct only for those that left the queue.

Facts about commands and their words: docs/slurm.md. An outage is never a state: whatever fails or
hangs raises SchedulerUnavailable and gives no information about any job.
"""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from autoexp import payload, states
from autoexp.errors import (
    SchedulerError,
    SchedulerUnavailable,
    SubmissionRefused,
    SubmitLimitReached,
)
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.resources.machines import LocalMachine, SlurmCluster
from autoexp.schedulers import launch
from autoexp.schedulers.base import (
    NOT_OURS,
    AttemptRef,
    JobStatus,
    PayloadSpec,
    SubmitOptions,
    claimed_by,
    is_array,
    read_claim,
)
from autoexp.schedulers.exit_files import from_exit_file, merge_exit_file
from autoexp.schedulers.slurm import commands
from autoexp.schedulers.slurm.commands import NO_ANSWER, SlurmCommandFailed, run
from autoexp.schedulers.slurm.missing import MissingJobs, ended_by_us
from autoexp.schedulers.slurm.parsing import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    Row,
    of_script,
    read_longest,
    read_sacct,
    read_scripts,
    read_squeue,
)
from autoexp.schedulers.slurm.script import REFUSAL, as_time, body, executor_for

# After "Socket timed out" the first healthy squeue did not show an accepted job yet, in 6 of 6
# tries; 60 ms later it did. Several seconds are required, to be sure.
_HEALTHY_S = 5.0
# The end of a job reaches sacct up to three seconds after squeue, and more on a busy site.
_ACCOUNTING_LAG_S = 10.0
_NO_ACCOUNTING = "accounting storage is disabled"
# sacct's window starts at midnight unless told otherwise.
_WINDOW = timedelta(days=30)
_SQUEUE = ("squeue", "--me", "-h", "-r", "-t", "all")
# Accounting knows more about these ends: a kill for memory inside a step, and who cancelled a job.
_MORE_IN_ACCOUNTING = ("FAILED", "CANCELLED")
# With a name, it may report that without the id of the job that has ended.
_NO_SUCH = re.compile("No active jobs match|Invalid job id", re.IGNORECASE)
# Seconds for which accounting may say RUNNING of a job that squeue calls COMPLETED.
_DENIED_S = 60.0
_UNKNOWN_NODE = "Invalid node name"

_log = logging.getLogger(__name__)


def _make_logs(options: SubmitOptions) -> None:
    """Make the logs with our modes: SLURM would use the umask, but appends to existing files."""
    tasks = options.tasks or (None,)
    for task in tasks:
        log = options.log if task is None else options.log.replace("%a", str(task))
        with suppress(OSError):  # it makes it itself, then
            os.close(payload.open_own(Path(log), os.O_WRONLY | os.O_APPEND))


class SlurmScheduler:
    """Submits, finds, queries and cancels attempts through SLURM's commands."""

    def __init__(self, cluster: SlurmCluster) -> None:
        self._cluster = cluster
        self._gone = MissingJobs(cluster.lost_after_s)
        self._ended_at_s: dict[str, float] = {}
        self._has_accounting = True
        self._answered_at: float | None = None
        self._longest_array: int | None = None
        self._longest_min: dict[str | None, float] = {}
        self._uncapped: dict[str, tuple[str | None, float]] = {}
        self._renamed: dict[tuple[str, str, str], bool] = {}
        self._nodes: dict[str, str | None] = {}
        self._states: dict[str, str] = {}
        self._said: set[str] = set()

    def payload_spec(self, spec: JobSpec, attempt: Attempt) -> PayloadSpec:
        return launch.payload_spec(_asked(spec.machine), spec, attempt.key)

    def submit(self, ref: AttemptRef, options: SubmitOptions, lock: int) -> str:
        cluster = _asked(options.machine)
        if cluster.at != self._cluster.at:
            raise SubmissionRefused(
                f"it is for cluster {cluster.at or 'of this machine'}, the session's jobs are "
                f"looked up on {self._cluster.at or 'this machine'}; see `slurm.clusters`"
            )
        limit = self._capped(options.time_limit_min, cluster.partition, ref.name)
        avoided = self._by_name(options.avoided)
        options = options._replace(time_limit_min=limit, avoided=avoided)
        _make_logs(options)
        while True:
            executor = executor_for(cluster, ref.directory / ref.script, options, lock)
            try:
                job = executor._submit_command(body(cluster, ref.directory))
            except (SubmissionRefused, SubmitLimitReached) as error:
                if options.avoided and _UNKNOWN_NODE in str(error):
                    options = options._replace(avoided=self._fewer(options.avoided))
                    continue
                # Words that are not SLURM's own, as of a site's wrapper, may come after a
                # submission.
                found = None if REFUSAL.search(str(error)) else self.find(ref, in_flight=False)
                if found is None:
                    raise
                return found
            if executor.sent_to not in (None, cluster.at):
                self._take_back(str(job.job_id), ref.name, executor.sent_to)
            return str(job.job_id)

    def _take_back(self, job_id: str, name: str, cluster: str | None) -> None:
        """Refuse a job that went to a cluster other than the one that is queried."""
        with suppress(SchedulerUnavailable, SlurmCommandFailed):
            command = commands.at(cluster, ["scancel", "--name", name, job_id])
            run(command, self._cluster.query_timeout_s)
        raise SubmissionRefused(
            f"sbatch sent it as job {job_id} to cluster {cluster}, where it was cancelled: "
            f"set `slurm.clusters={cluster}`, so that it is looked up there"
        )

    # Limits, which are queried and never waited for

    def _capped(self, wanted: float | None, partition: str | None, name: str) -> float | None:
        """The time limit, but at most what the partition allows: a longer one pends for ever."""
        if wanted is None:
            return None
        longest = self._longest(partition)
        if longest is None:
            self._uncapped[name] = (partition, wanted)
            return wanted
        if longest < wanted:
            where = f"partition {partition}" if partition else "the default partition"
            self._warn_once(f"{where} allows {longest:g} min: jobs get that, not {wanted:g} min")
        return min(wanted, longest)

    def _longest(self, partition: str | None) -> float | None:
        """Longest minutes that a partition, or the best of several, allows; None: unknown."""
        if partition not in self._longest_min:
            which = ["-p", partition] if partition else []
            try:
                answer = self._ask(["sinfo", "-h", "-o", "%P %l", *which])
            except SchedulerUnavailable as error:
                self._warn_once(
                    f"no time limit is known of partition {partition or '(default)'}: {error}"
                )
                return None
            self._longest_min[partition] = read_longest(answer, default=partition is None)
        return self._longest_min[partition]

    def _shorten(self, ref: AttemptRef, status: JobStatus) -> None:
        """Lower the limit of a job that was submitted uncapped, and would wait for ever."""
        if status.reason != "PartitionTimeLimit" or ref.name not in self._uncapped:
            return
        partition, wanted = self._uncapped[ref.name]
        longest = self._longest(partition)
        if longest is not None and longest < wanted:
            update = [f"JobId={ref.job_id}", f"TimeLimit={as_time(longest)}"]
            with suppress(SchedulerUnavailable):
                self._ask(["scontrol", "update", *update])

    def longest_array(self) -> int:
        """SLURM's MaxArraySize, 1001 unless the site has set it (slurm.conf(5)).

        1 where it is unknown: jobs are submitted one by one then.
        """
        if self._longest_array is None:
            try:
                answer = self._ask(["scontrol", "show", "config"])
            except SchedulerUnavailable as error:
                self._warn_once(
                    f"the longest array is not known, jobs are submitted one by one: {error}"
                )
                return 1
            found = re.search(r"MaxArraySize\s*=\s*(\d+)", answer)
            self._longest_array = int(found[1]) - 1 if found else 1000
        return self._longest_array

    def _fewer(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """The nodes that SLURM knows, by its own names: fewer than before."""
        try:
            known = set(self._ask(["sinfo", "-h", "-a", "-N", "-o", "%N"]).split())
        except SchedulerUnavailable:
            return ()
        for node in nodes:
            # A log may have the long name, as `lrdn0001.leonardo.local`; SLURM has the short one.
            names = [name for name in (node, node.partition(".")[0]) if name in known]
            self._nodes[node] = names[0] if names else None
            if not names:
                self._warn_once(f"SLURM does not know a node {node}: it is not excluded")
        fewer = self._by_name(nodes)
        return () if fewer == tuple(nodes) else fewer  # then it is one of the user's own

    def _by_name(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Nodes by SLURM's names, without those that it does not know."""
        named = (self._nodes.get(node, node) for node in nodes)
        return tuple(sorted({name for name in named if name is not None}))

    def _warn_once(self, words: str) -> None:
        """Log a warning once."""
        if words not in self._said:
            self._said.add(words)
            _log.warning("%s", words)

    def find(self, ref: AttemptRef, *, in_flight: bool) -> str | None:
        """Look an attempt up by its script, until SLURM has answered healthily for several seconds.

        Its directory has the job's original name, which may have been changed since.
        """
        healthy_since: float | None = None
        command = [*_SQUEUE, "-o", "%i|%o"]
        while True:
            found = _first(self._ask(command), ref)
            if found is not None:
                return found
            if in_flight:
                return None
            healthy_since = healthy_since or time.monotonic()
            if time.monotonic() - healthy_since >= _HEALTHY_S:
                break
            time.sleep(0.5)
        return claimed_by(ref) or self._find_in_accounting(ref)

    def _find_in_accounting(self, ref: AttemptRef) -> str | None:
        try:
            answer = self._ask([*_sacct(), "-o", "JobID,SubmitLine", "--name", ref.name])
        except SchedulerUnavailable:
            # Without accounting the queue and the claim must suffice: a job that started has left
            # its claim, and one that has not is in the queue.
            return None
        return _first(answer, ref)

    def query(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus]:
        """Query all: one squeue, one sacct for those it does not cover, then the exit files."""
        try:
            listed = self._listed()
        except SchedulerUnavailable:
            self._answered_at = None
            raise
        now_s = time.monotonic()
        healthy_s = 0.0 if self._answered_at is None else now_s - self._answered_at
        self._answered_at = now_s
        own = self._own(refs, listed)
        found = {key: row.status for key, row in own.items()}
        gone = [ref for ref in refs if ref.key not in found]
        ended = [t for t in refs if t.key in found and _is_unsure(t, found[t.key])]
        accounts = self._accounted([*gone, *ended])
        self._complete(found, ended, accounts)
        missed = self._gone.sight(gone, accounts, healthy_s, self._states, self._end)
        for key, status in missed.items():
            if not states.is_terminal(status.state):
                self._warn_once(f"{key}: {status.reason}")
        found |= missed
        rows = {(row.job_id, row.name): row for row in listed}
        told = {t.key: _of_its_own(t, found[t.key], rows) for t in refs if t.key in found}
        self._states |= {key: status.state for key, status in told.items()}
        for ref in refs if self._uncapped else ():
            if ref.key in told:
                self._shorten(ref, told[ref.key])
        return told

    def _listed(self) -> list[Row]:
        return read_squeue(self._ask([*_SQUEUE, "-O", SQUEUE_FORMAT]))

    def _own(self, refs: Sequence[AttemptRef], listed: Sequence[Row]) -> dict[str, Row]:
        """The rows of the attempts among those that squeue listed, by key."""
        return self._ours(refs, listed, self._submitted)

    def _ours(
        self, refs: Sequence[AttemptRef], listed: Sequence[Row], submitted: Callable[[str], str]
    ) -> dict[str, Row]:
        """The rows of the attempts among those listed, by key; `submitted` maps an id to a script.

        Identity is id and name: after a controller's loss ids are reused. A job that was
        renamed is known by its script.
        """
        by_id = {row.job_id: row for row in listed}
        pairs = [(t, by_id[str(t.job_id)]) for t in refs if str(t.job_id) in by_id]
        unsure = [
            (ref, row)
            for ref, row in pairs
            if row.name != ref.name and (ref.key, *row[:2]) not in self._renamed
        ]
        if unsure:
            scripts = read_scripts(submitted(",".join(row.job_id for _, row in unsure)))
            for ref, row in unsure:
                if row.job_id in scripts:
                    own = f"/{_script(ref)}" in scripts[row.job_id]
                    self._renamed[ref.key, row.job_id, row.name] = own
        return {
            ref.key: row
            for ref, row in pairs
            if row.name == ref.name or self._renamed.get((ref.key, *row[:2]))
        }

    def _submitted(self, job_ids: str) -> str:
        return self._ask([*_SQUEUE, "-o", "%i|%o", "-j", job_ids])

    def _submitted_once(self, job_ids: str) -> str:
        try:
            return self._ask([*_sacct(), "-o", "JobID,SubmitLine", "-j", job_ids])
        except SchedulerUnavailable:  # it knows the line since 21.08
            return ""

    def _accounted(self, refs: Sequence[AttemptRef]) -> dict[str, JobStatus] | None:
        """Accounting's report by key, which lags by seconds; None: it does not answer."""
        if not refs:
            return {}
        try:
            job_ids = ",".join(str(ref.job_id) for ref in refs)
            rows = read_sacct(self._ask([*_sacct(), "-o", SACCT_FORMAT, "-j", job_ids]))
        except SchedulerUnavailable as error:
            # Where there is no accounting at all, squeue's answers are the only ones.
            self._has_accounting = _NO_ACCOUNTING not in str(error)
            return None if self._has_accounting else {}
        named = {(row.job_id, row.name): row for row in rows}
        found = {t.key: named.get((str(t.job_id), t.name)) for t in refs}
        # For a job with an exit file, the owner of a row of another name does not matter.
        rest = [t for t in refs if found[t.key] is None and from_exit_file(t) is None]
        found |= self._ours(rest, rows, self._submitted_once)
        return {key: row.status for key, row in found.items() if row is not None}

    def _complete(
        self,
        found: dict[str, JobStatus],
        ended: Sequence[AttemptRef],
        accounts: Mapping[str, JobStatus] | None,
    ) -> None:
        """Add details from accounting: a kill inside a step for memory, who cancelled a job.

        An end that accounting denies, without an exit file, is believed after a minute.
        """
        now_s = time.monotonic()
        since = {t.key: self._ended_at_s.get(t.key, now_s) for t in ended}
        for key, at_s in since.items():
            known = (accounts or {}).get(key)
            if known is not None and states.is_terminal(known.state):
                reason = known.reason or found[key].reason
                found[key] = found[key]._replace(state=known.state, reason=reason)
            elif accounts is not None and self._has_accounting:
                lag_s = _ACCOUNTING_LAG_S
                if found[key].state not in _MORE_IN_ACCOUNTING:
                    lag_s = 0.0 if known is None else _DENIED_S
                if now_s - at_s < lag_s:
                    del found[key]  # nothing is said of the job yet
        self._ended_at_s = since

    # Cancelling

    def cancel(self, refs: Sequence[AttemptRef]) -> dict[str, str]:
        """Cancel all with one scancel; it exits 0 for unknown ids too: its messages are returned.

        An id may be another job's by now, so squeue is asked right now whose they are; what
        it does not list is cancelled by its name too. Raises SchedulerUnavailable for words that
        do not concern a job: they are no answer.
        """
        listed = self._listed()
        own, ids = self._own(refs, listed), {row.job_id for row in listed}
        known = [t for t in refs if t.key in own]
        others = [t for t in refs if t.key not in own and str(t.job_id) in ids]
        answers = {t.key: f"job {t.job_id} {NOT_OURS}" for t in others}
        if known:
            answers |= self._scancel(known)
        for ref in refs:
            if ref.key not in answers:
                answers |= self._scancel([ref], "--name", ref.name)
        return answers

    def _scancel(self, refs: Sequence[AttemptRef], *only: str) -> dict[str, str]:
        try:
            self._run(["scancel", *only, *(str(t.job_id) for t in refs)])
        except SlurmCommandFailed as error:
            refused = {t.key: commands.about(str(t.job_id), error.stderr) for t in refs}
            if only and _NO_SUCH.search(error.stderr):  # it names no job then
                refused = {key: words or error.stderr for key, words in refused.items()}
            if NO_ANSWER.search(error.stderr) or not any(refused.values()):
                raise SchedulerUnavailable(str(error)) from error
            return {key: words or "accepted" for key, words in refused.items()}
        return {ref.key: f"scancel {ref.job_id}: accepted" for ref in refs}

    def _end(self, ref: AttemptRef) -> None:
        """Cancel a job that is presumed lost: by name too, since its id may be another's by now.

        Raises SchedulerUnavailable without an answer.
        """
        job_id = str(ref.job_id)
        try:
            self._run(["scancel", "--name", ref.name, job_id])
        except SlurmCommandFailed as error:
            if not commands.about(job_id, error.stderr):
                raise SchedulerUnavailable(str(error)) from error

    def tell(self, ref: AttemptRef, name: str) -> str:
        """Signal the batch script alone: the payload tells the trainer in its own way."""
        if ref.key not in self._own([ref], self._listed()):
            raise SchedulerError(f"job {ref.job_id} is not in the queue, or another's by now")
        return commands.signal_batch(self._run, str(ref.job_id), name)

    def avoid(self, refs: Sequence[AttemptRef], nodes: Sequence[str]) -> None:
        """Update all with one command; a job that has started meanwhile is no failure.

        An id that is another job's by now is left alone. Without nodes, what the user excluded
        by an option is what is left.
        """
        own = self._own(refs, self._listed())
        ids = [str(ref.job_id) for ref in refs if ref.key in own]
        which = f"JobId={','.join(ids)}"
        is_cleared = not nodes and bool(ids)
        nodes = self._by_name(nodes) if ids else ()
        given = self._cluster.options.get("exclude")  # which this would replace
        while nodes or is_cleared:
            try:
                listed = ",".join([*([str(given)] if given else []), *nodes])
                self._run(["scontrol", "update", which, f"ExcNodeList={listed}"])
                return
            except SlurmCommandFailed as error:
                if _UNKNOWN_NODE in error.stderr:
                    nodes = self._fewer(nodes)
                elif "no longer pending" in error.stderr or "Invalid job" in error.stderr:
                    return
                else:
                    raise SchedulerUnavailable(str(error)) from error

    # Asking

    def _run(self, command: Sequence[str]) -> str:
        asked = commands.at(self._cluster.at, command)
        return run(asked, self._cluster.query_timeout_s)

    def _ask(self, command: Sequence[str]) -> str:
        try:
            return self._run(command)
        except SlurmCommandFailed as error:
            raise SchedulerUnavailable(str(error)) from error


def _asked(machine: LocalMachine | SlurmCluster) -> SlurmCluster:
    if not isinstance(machine, SlurmCluster):
        raise SubmissionRefused("a job for the local machine cannot join a session on SLURM")
    return machine


def _is_unsure(ref: AttemptRef, status: JobStatus) -> bool:
    """True if accounting is queried about a job that squeue lists: a good end has an exit file."""
    if status.state == "COMPLETED":
        return from_exit_file(ref) is None
    return status.state in _MORE_IN_ACCOUNTING


def _sacct() -> list[str]:
    since = (now() - _WINDOW).strftime("%Y-%m-%dT%H:%M:%S")
    return ["sacct", "-X", "-D", "-n", "-P", "-S", since]


def _of_its_own(
    ref: AttemptRef, status: JobStatus, rows: Mapping[tuple[str, str], Row]
) -> JobStatus:
    """The row of the job that runs the attempt, which may not be the recorded one.

    Of two copies one has the claim, and the other one's end does not count.
    """
    if not states.is_terminal(status.state):
        return status
    holder = read_claim(ref.directory)
    if holder is None or holder == ref.job_id:
        return ended_by_us(ref, merge_exit_file(ref, status))
    if (holder, ref.name) not in rows:
        return JobStatus("RUNNING", f"run by job {holder}", job_id=holder)
    its = rows[holder, ref.name].status._replace(job_id=holder)
    return merge_exit_file(ref._replace(job_id=holder), its)


def _first(answer: str, ref: AttemptRef) -> str | None:
    """Id of the attempt's job among those listed; for an array the id of the whole."""
    found = next(iter(of_script(answer, _script(ref))), None)
    return found.partition("_")[0] if found and is_array(ref) else found


def _script(ref: AttemptRef) -> str:
    """The end of the batch script's path, which is unique to the job."""
    return f"{ref.name}/{ref.script}"
