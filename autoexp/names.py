"""Names of sessions, of attempts and arrays, and how long they may be.

The identity of an attempt is its key, `<session>-<job>-a<number>-<tail>`, which is known before the
submission and names the attempt's directory, its job in SLURM, the run that owns an output
directory, and the processes of its trainer. The tail is random and the session's own, since an id
may be used again, here or under another sessions root. It stands last, so that a list of jobs is
searched and sorted by session and job. Sessions that an older autoexp has made have no tail.

The identity of a job in SLURM is its id and its name, for ids are handed out again after a
controller's loss: whoever asks about, changes or cancels a job goes by both.
"""

import re
import secrets
from collections.abc import Iterable

from autoexp.errors import BadInput

LONGEST_ID = 80
"""Longest session id in characters."""
LONGEST_JOB = 160
"""Longest job name in characters; files append their suffixes to it."""
LONGEST_KEY = 200
"""Longest attempt key in characters: it is the SLURM job's name, which squeue is queried for."""

ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"
"""Characters that are not mistaken for one another."""
_TAIL = 5

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_ID - 1}}}")
_LAST_ATTEMPT = 9999


def random_letters(count: int) -> str:
    """Random characters that are valid in any name."""
    return "".join(secrets.choice(ALPHABET) for _ in range(count))


def new_tail() -> str:
    """A random suffix for all keys of a new session, unique to it."""
    return random_letters(_TAIL)


def attempt_key(session: str, job: str, number: int, tail: str) -> str:
    """The key of an attempt, known before it is submitted."""
    return _with_tail(f"{session}-{job}-a{number}", tail)


def array_name(session: str, kind: str, number: int, tail: str) -> str:
    """The name of an array of attempts, which is its directory's too."""
    return _with_tail(f"{session}-{kind}-array{number}", tail)


def _with_tail(name: str, tail: str) -> str:
    return f"{name}-{tail}" if tail else name


def check_id(session: str) -> None:
    """Raise BadInput for an invalid session id."""
    if not _ID.fullmatch(session):
        raise BadInput(
            f"{session!r} cannot be a session's id: letters, digits, `.`, `_` and `-`, starting "
            f"with a letter or digit, {LONGEST_ID} at most; it becomes a part of job names"
        )


def check_job(name: str) -> str:
    """Return the name of a job; raises BadInput for one that is too long."""
    if len(name) > LONGEST_JOB:
        raise BadInput(
            f"{name}: a job's name of {len(name)} characters, and {LONGEST_JOB} are the most; "
            "shorten `project.name`, or the name of its cooldown or stage"
        )
    return name


def check_keys(session: str, jobs: Iterable[str], tail: str = ALPHABET[:_TAIL]) -> None:
    """Raise BadInput for jobs whose attempts could not be queried in SLURM by name.

    Without a `tail` it is for a session that is not yet created, and will get one.
    """
    longest = max(jobs, key=len, default="")
    room = LONGEST_KEY - len(attempt_key(session, "", _LAST_ATTEMPT, tail))
    if len(longest) > room:
        raise BadInput(
            f"{longest}: a job's name of {len(longest)} characters, and {room} are the most in the "
            f"session {session}, since the two together name its SLURM jobs; shorten "
            "`project.name`, the name of its cooldown or stage, or the id (--session ID)"
        )
