"""Requests from other processes, one file each, written atomically: enqueued and read here.

Other processes never write into a running session; `autoexp.operations.requests` processes them.
"""

import os
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from autoexp.errors import BadInput
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import FrozenModel, first_problem
from autoexp.rules.actions import LaunchedCooldown
from autoexp.session.session import Session
from autoexp.storage import atomic, permissions

_TRIES = 10
"""Looks for which later requests, and the end of the session, wait for a failing request."""


_LEFT = 1000
"""Number of tries that marks a request as given up."""


By = Annotated[str, Field(description="who made the request, and how")]


class CancelRequest(FrozenModel):
    """Cancel jobs; all jobs of the session when none is named."""

    kind: Literal["cancel"] = "cancel"
    jobs: tuple[str, ...] = ()
    by: By


class SubmitRequest(FrozenModel):
    """Add jobs to the session; the first may run already, under its own job id."""

    kind: Literal["submit"] = "submit"
    jobs: tuple[JobSpec, ...] = Field(min_length=1)
    attempt: Attempt | None = None
    by: By


class ActionRequest(FrozenModel):
    """Retry a failed action, or drop a pending one."""

    kind: Literal["action"] = "action"
    key: str
    verb: Literal["retry", "drop"]
    by: By


class RetryRequest(FrozenModel):
    """Retry failed jobs; all failed jobs of the session when none is named."""

    kind: Literal["retry"] = "retry"
    jobs: tuple[str, ...] = ()
    by: By


class BudgetRequest(FrozenModel):
    """Change the budget: GPU hours above which no new job is submitted."""

    kind: Literal["budget"] = "budget"
    stop_above: float | None = Field(gt=0)
    by: By


class SaveRequest(FrozenModel):
    """Have a running job save at once, and perhaps branch from that checkpoint."""

    kind: Literal["save"] = "save"
    job: str
    request: str = Field(pattern="^[0-9a-f]{8,32}$")
    """Random: processed twice, as after a kill, it is known by this."""
    restart: bool = False
    cooldown: LaunchedCooldown | None = None
    by: By


Request = Annotated[
    CancelRequest | SubmitRequest | ActionRequest | RetryRequest | BudgetRequest | SaveRequest,
    Field(discriminator="kind"),
]


_adapter: TypeAdapter[Request] = TypeAdapter(Request)


def enqueue(session: Path, request: Request) -> Path:
    """Enqueue a request for the session's monitor; safe from any number of processes."""
    # Names sort by time, so that requests of one process are processed in their order.
    name = f"{time.time_ns():020}-{request.kind}-{uuid.uuid4().hex}.json"
    path = session / "inbox" / name
    permissions.refuse_strangers(session)
    try:
        atomic.write(path, request.model_dump_json())
    except PermissionError as error:
        whose = permissions.user((session / "session.json").stat().st_uid)
        raise BadInput(f"{session.name}: is {whose}'s alone to send requests to") from error
    return path


def has_requests(session: Path) -> bool:
    """True if a request waits. Raises OSError where the inbox cannot be read."""
    with suppress(FileNotFoundError):
        # Asked at every look: without a path object for each entry.
        return any(name.endswith(".json") for name in os.listdir(f"{session}/inbox"))  # noqa: PTH208
    return False


def is_empty(session: Path) -> bool:
    """True if no request waits, as far as can be seen."""
    with suppress(OSError):
        return not has_requests(session)
    return True


def _waiting(session: Path) -> list[Path]:
    """Unprocessed requests in their order; called at every look, so it is cheap."""
    with suppress(FileNotFoundError):
        return sorted(path for path in (session / "inbox").iterdir() if path.suffix == ".json")
    return []


def waiting_jobs(session: Path) -> list[str]:
    """Names of jobs in unprocessed requests, which the session does not have yet."""
    return [spec.name for request in waiting_submissions(session) for spec in request.jobs]


def waiting_submissions(session: Path) -> list[SubmitRequest]:
    """Unprocessed requests to add jobs, as far as they can be read."""
    return [each for each in waiting_requests(session) if isinstance(each, SubmitRequest)]


def waiting_requests(session: Path) -> list[Request]:
    """Unprocessed requests in their order, as far as they can be read."""
    found = []
    for path in _waiting(session):
        with suppress(BadInput, FileNotFoundError):  # the monitor says what is wrong with it
            found.append(_read(path))
    return found


def is_done(session: Session) -> bool:
    """True if no request waits that may still be processed. For the monitor.

    A request that can be neither read nor moved does not keep a session that is over from ending.
    """
    try:
        waiting = _waiting(session.path)
    except OSError:
        return True
    return all(session.requests_left.get(path.name, 0) >= _TRIES for path in waiting)


def left_behind(session: Session) -> list[Path]:
    """Requests that could not be processed, or not removed. For the monitor."""
    with suppress(OSError):
        return [path for path in _waiting(session.path) if path.name in session.requests_left]
    return []


def _in_words(path: Path) -> str:
    """Make a file name printable, for JSON: on disk it may be any bytes."""
    return path.name.encode(errors="backslashreplace").decode()


def _read(path: Path) -> Request:
    """Read a request of the session's owner, or of root.

    Anything else is refused without waiting; nothing of another user's file is read.
    """
    try:
        with atomic.open_to_read(path, follow=False) as file:
            # Of the open file, not of the name: by now that may be another file's.
            _refuse_others(path, os.fstat(file.fileno()).st_uid)
            raw = atomic.read_opened(file, path)
    except OSError as error:
        if atomic.is_passing(error):
            raise
        if isinstance(error, atomic.WrongFile):
            _refuse_others(path, path.lstat().st_uid)
        raise BadInput(f"{_in_words(path)} cannot be read: {error.strerror}") from error
    try:
        return _adapter.validate_json(raw)
    except ValidationError as error:
        raise BadInput(first_problem(error, skip=1)) from error  # the tag of the union


def _refuse_others(path: Path, owner: int) -> None:
    """Raise BadInput for a request of another user."""
    own = (path.parents[1] / "session.json").lstat().st_uid  # as a file server maps us
    if owner not in (0, os.geteuid(), own):
        raise BadInput(
            f"{_in_words(path)}: left by another user ({permissions.user(owner)}): only "
            f"{permissions.user(own)} may send requests to this session"
        )
