"""Claims on jobs that were started by hand: two sessions that adopt one would both resubmit it.

A session claims the job itself, by cluster, id and name, in a directory of the user's own, and the
folder of its checkpoints. Both may be another session's once this one is gone, or its record of
the job is over. One adoption at a time looks, claims and enqueues, and removes claims on jobs that
are over.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

from autoexp.errors import AutoexpError, BadInput
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.names import LONGEST_KEY
from autoexp.session.create import claim_of, retake_outputs
from autoexp.session.find import session_exists
from autoexp.session.inbox import is_empty, waiting_submissions
from autoexp.session.session import Session
from autoexp.storage import atomic, claims, locks, permissions
from autoexp.storage.claims import Claim

_PATIENCE_S = 60.0
_KEPT_S = 30 * 86400.0
"""A session that is not where it was made may have been moved away, and may come back."""


class HandStarted(NamedTuple):
    """A job of the scheduler that no session submitted."""

    cluster: str
    job_id: str
    name: str
    save_dir: Path

    @property
    def mark(self) -> Path:
        """The directory that a session claims for it."""
        identity = json.dumps([self.cluster, self.job_id, self.name])
        return _directory() / f"{self.job_id}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"

    def is_attempted(self, attempt: Attempt) -> bool:
        """True if a session knows the job as this attempt."""
        return (attempt.job_id, attempt.name) == (self.job_id, self.name)


class _Open(NamedTuple):
    """A job that a session runs, or has been requested to run."""

    spec: JobSpec
    attempts: list[Attempt]


@contextmanager
def exclusively(patience_s: float = _PATIENCE_S) -> Iterator[None]:
    """Exclude other adoptions of this user meanwhile; raises BadInput where that fails."""
    directory = _directory()
    with ExitStack() as stack:
        try:
            atomic.make_directory(directory)
            stack.enter_context(locks.exclusively(directory / "lock", patience_s))
        except locks.Busy:
            raise BadInput(
                f"another `autoexp adopt` has held {directory / 'lock'} for {patience_s:.0f} s: "
                "nothing was done; wait for its end, then run the same command again"
            ) from None
        except OSError as error:
            raise BadInput(
                f"{error.filename or directory}: adopted jobs are noted here, and that fails "
                f"({error.strerror}); set XDG_STATE_HOME to a directory that you can write"
            ) from error
        yield


def is_used() -> bool:
    """True if this user has ever adopted a job, as far as can be seen."""
    try:
        return _directory().is_dir()
    except (BadInput, OSError):
        return False


def refuse_taken(job: HandStarted, session: Path, name: str) -> None:
    """Raise BadInput where a session has the job, or writes where it saves.

    It passes where `session` has it, or will have it, as its job `name`.
    """
    mine = claim_of(Session.load(session)) if session_exists(session) else None

    def is_other(claim: Claim) -> bool:
        return mine is None or claim.identity != mine.identity

    holder = claims.standing(job.mark, lambda it: is_other(it) and _has(it, job))
    if holder is not None:
        raise _adopted(job, holder)
    holder = claims.holder(job.save_dir, lambda it: is_other(it) and _writes(it, job.save_dir))
    if holder is not None:
        raise _written(job, holder)
    for around in filter(is_session, job.save_dir.parents):
        if around.resolve() != session.resolve() and _goes_on(around, job.save_dir):
            raise _written(job, Claim(str(around), ""))
    if mine is not None:
        _refuse_twice(job, session, name)
    _make_writable(job.save_dir)


def _refuse_twice(job: HandStarted, session: Path, name: str) -> None:
    for known in _open_jobs(session):
        same = any(map(job.is_attempted, known.attempts))
        if known.spec.name != name and (same or Path(known.spec.save_dir) == job.save_dir):
            what = f"job {job.job_id}" if same else f"a job that writes {job.save_dir}"
            raise BadInput(
                f"{session.name} has {what} already, as {known.spec.name}: two would both submit "
                "it again"
            )


def claim(job: HandStarted, session: Session) -> None:
    """Record that a session has the job; raises BadInput where another one has it.

    Inside of `exclusively()` and after `refuse_taken` that is one on a machine whose locks do not
    reach this one.
    """
    mine = claim_of(session)
    if (holder := claims.take(job.mark, mine, lambda it: _has(it, job))) is not None:
        raise _adopted(job, holder)
    if (other := _take_folder(job.save_dir, mine)) is not None:
        raise _written(job, other)


def prune(leaving: Claim | None = None) -> None:
    """Remove claims on jobs that no session has, and those of the session that is leaving.

    To be called inside of `exclusively()`.
    """
    known: dict[str, set[str | None] | None] = {}

    def is_over(job_id: str, is_old: bool, last: Claim | None) -> bool:
        if last is None or (leaving is not None and last.identity == leaving.identity):
            return True
        if not last.is_live():
            return is_old
        if last.session not in known:
            known[last.session] = _open_job_ids(Path(last.session))
        found = known[last.session]
        return found is not None and job_id not in found

    with suppress(OSError):
        for mark in filter(Path.is_dir, list(_directory().iterdir())):
            is_old = time.time() - mark.stat().st_mtime > _KEPT_S
            claims.clear(mark, partial(is_over, mark.name.rpartition("-")[0], is_old))


def _open_job_ids(session: Path) -> set[str | None] | None:
    """Ids of the jobs that a session is not done with; None where that cannot be seen."""
    try:
        found = _open_jobs(session)
    except (AutoexpError, OSError):
        return None
    return {attempt.job_id for known in found for attempt in known.attempts}


def forget(session: Session) -> None:
    """Remove the claims on jobs of a session that is about to be removed, as far as possible."""
    if is_used():
        with suppress(BadInput), exclusively():
            prune(claim_of(session))


def retake(session: Session) -> None:
    """Renew a session's claims on directories outside it, unless it is over: a mark may be lost.

    Raises BadInput where another session has them by now, as after this one was moved away, and for
    a copy of a session.
    """
    session.meta.refuse_elsewhere(session.path)
    if session.is_over and is_empty(session.path):
        return
    retake_outputs(session)
    for job in session.jobs.values():
        if not is_adopted(job) or (job.is_over and not job.open_attempts):
            continue
        save_dir = Path(job.spec.save_dir)
        if (holder := _take_folder(save_dir, claim_of(session))) is not None:
            raise BadInput(
                f"{session.id}: {save_dir}, where its job {job.spec.name} saves, is written by "
                f"{holder.title} by now: end that one, then `autoexp resume {session.id}`"
            )


def other_user(session: Session, job: JobRecord) -> Claim | None:
    """Another session that uses the folder of a job that is over, or is writing around it."""
    save_dir, mine = Path(job.spec.save_dir), claim_of(session)
    holder = claims.standing(save_dir)
    if holder is not None and holder.identity != mine.identity:
        return holder
    return claims.holder(
        save_dir, lambda it: it.identity != mine.identity and _writes(it, save_dir)
    )


def take_again(session: Session, job: JobRecord) -> Claim | None:
    """Claim the folder of a job that was over and is to run again; returns another's claim.

    To be called inside of `exclusively()`: until the record says that the job goes on, whoever
    adopts one may have its folder.
    """
    if (holder := other_user(session, job)) is not None:
        return holder
    if not is_adopted(job):
        return None  # the claim on the session's outputs covers it
    return _take_folder(Path(job.spec.save_dir), claim_of(session), Claim.is_live)


def is_adopted(job: JobRecord) -> bool:
    """True if the job's first attempt has a name that autoexp did not give."""
    first = job.attempts[0] if job.attempts else None
    return first is not None and first.array_index is None and first.name != first.key


def _take_folder(save_dir: Path, mine: Claim, is_live: claims.IsLive | None = None) -> Claim | None:
    """Claim a folder of checkpoints; an earlier claim counts while its session writes."""
    try:
        return claims.take(save_dir, mine, is_live or partial(_writes, save_dir=save_dir))
    except OSError as error:
        raise _unwritable(save_dir, error) from error


def _make_writable(save_dir: Path) -> None:
    """Make the folder of checkpoints where there is none; raises BadInput where that fails."""
    try:
        atomic.make_directory(save_dir, by_umask=True)
        atomic.probe(save_dir, 0)
    except OSError as error:
        raise _unwritable(save_dir, error) from error


def _unwritable(save_dir: Path, error: OSError) -> BadInput:
    return BadInput(
        f"{save_dir}: checkpoints could not be saved there ({error.strerror}); see to it that you "
        "can write in the folder in which the job saves"
    )


def _adopted(job: HandStarted, holder: Claim) -> BadInput:
    return BadInput(
        f"job {job.job_id} is adopted by {holder.title}, which goes on: end it there with "
        "`autoexp cancel`, or remove that session (`autoexp sessions remove`)"
    )


def _written(job: HandStarted, holder: Claim) -> BadInput:
    return BadInput(
        f"{job.save_dir} is written by a job of {holder.title}, which goes on: end it there with "
        "`autoexp cancel`, or give the folder in which this job saves"
    )


def _has(claim: Claim, job: HandStarted) -> bool:
    """True if the session that claimed a job exists and still runs it."""
    if not claim.is_live():
        return False
    try:
        found = _open_jobs(Path(claim.session))
    except (AutoexpError, OSError):
        return True  # what cannot be seen goes on
    return any(job.is_attempted(attempt) for known in found for attempt in known.attempts)


def _writes(claim: Claim, save_dir: Path) -> bool:
    """True if the session that claimed a directory still writes in `save_dir`."""
    return claim.is_live() and _goes_on(Path(claim.session), save_dir)


def _goes_on(session: Path, save_dir: Path) -> bool:
    try:
        found = _open_jobs(session)
    except (AutoexpError, OSError):
        return True
    return any(_meets(known.spec, save_dir.resolve()) for known in found)


def _meets(spec: JobSpec, place: Path) -> bool:
    saves, writes = Path(spec.save_dir).resolve(), Path(spec.output_dir).resolve()
    return saves.is_relative_to(place) or place.is_relative_to(writes)


def is_session(directory: Path) -> bool:
    """True if a session exists, as far as can be seen."""
    try:
        return session_exists(directory)
    except OSError:
        return False


def _open_jobs(session: Path) -> list[_Open]:
    """Jobs that a session is not done with; a job on its way from the inbox is listed twice."""
    waiting = waiting_submissions(session)
    known = Session.load(session).jobs.values()
    found = [_Open(job.spec, job.attempts) for job in known if not job.is_over or job.open_attempts]
    for request in waiting:
        attempts = [] if request.attempt is None else [request.attempt]
        found += [_Open(spec, attempts) for spec in request.jobs[:1]]
        found += [_Open(spec, []) for spec in request.jobs[1:]]
    return found


def _directory() -> Path:
    """Directory of the claims; raises BadInput for a user without a home."""
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    if named.is_absolute():
        return named / "autoexp" / "adopted"
    try:
        return Path.home() / ".local" / "state" / "autoexp" / "adopted"
    except RuntimeError as error:
        raise BadInput(f"{error}: set HOME, or XDG_STATE_HOME, to a directory of yours") from error


def refuse_unfit(job_id: str, described: dict[str, str]) -> None:
    """Raise BadInput for a job that cannot be adopted: another user's, or a session's already."""
    name, user = described["JobName"], int(described.get("UserId", os.geteuid()))
    if len(name) > LONGEST_KEY:
        raise BadInput(
            f"job {job_id}: its name has {len(name)} characters, and SLURM is asked for "
            f"{LONGEST_KEY}; shorten it: scontrol update JobId={job_id} JobName=NAME"
        )
    if user != os.geteuid():
        raise BadInput(f"job {job_id} is {permissions.user(user)}'s, who alone can adopt it")
    if (session := _session_of(described.get("Command", ""))) is not None:
        raise BadInput(
            f"job {job_id} was submitted by session {session}, which goes on with it: "
            f"`autoexp resume {session.name}` resumes it"
        )


def _session_of(command: str) -> Path | None:
    """The session that submitted a job, from its batch command; None if no session did."""
    for found in re.finditer("/attempts/", command):
        session = Path(command[: found.start()])
        if is_session(session):
            return session
    return None
