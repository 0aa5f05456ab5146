"""How long names may be: those of files, and those by which SLURM tells its jobs apart."""

import re
from collections.abc import Iterable

from autoexp.errors import BadInput

LONGEST_ID = 80
"""Characters of a session's id."""
LONGEST_JOB = 160
"""Characters of a job's name, which names files with endings of their own."""
LONGEST_KEY = 200
"""Characters of an attempt's key: it is its SLURM job's name, and squeue is asked for so many."""

_ID = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST_ID - 1}}}")
_LAST_ATTEMPT = 9999


def attempt_key(session: str, job: str, number: int) -> str:
    """The key of an attempt, known before it is submitted."""
    return f"{session}-{job}-a{number}"


def check_id(session: str) -> None:
    """Raise BadInput for what cannot be a session's id."""
    if not _ID.fullmatch(session):
        raise BadInput(
            f"{session!r} cannot be a session's id: letters, digits, `.`, `_` and `-`, starting "
            f"with a letter or digit, {LONGEST_ID} at most; it becomes a part of job names"
        )


def check_job(name: str) -> str:
    """The name of a job; raises BadInput for one that is too long."""
    if len(name) > LONGEST_JOB:
        raise BadInput(
            f"{name}: a job's name of {len(name)} characters, and {LONGEST_JOB} are the most; "
            "shorten `project.name`, or the name of its cooldown or stage"
        )
    return name


def check_keys(session: str, jobs: Iterable[str]) -> None:
    """Raise BadInput for jobs whose attempts SLURM could not be asked for by name."""
    longest = max(jobs, key=len, default="")
    room = LONGEST_KEY - len(attempt_key(session, "", _LAST_ATTEMPT))
    if len(longest) > room:
        raise BadInput(
            f"{longest}: a job's name of {len(longest)} characters, and {room} are the most in the "
            f"session {session}, since the two together name its SLURM jobs; shorten "
            "`project.name`, the name of its cooldown or stage, or the id (--session ID)"
        )
