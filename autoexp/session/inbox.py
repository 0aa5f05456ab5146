"""Requests from other processes, one file each, written atomically: enqueued and read here.

Other processes never write into a running session; `autoexp.operations.requests` carries them out.
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
from autoexp.model import Closed
from autoexp.session.session import Session
from autoexp.storage import atomic, permissions

_TRIES = 10
"""Looks for which those behind it, and the end of the session, wait for a request."""


_LEFT = 1000
"""Stands for the tries of a request that is not looked at again."""


By = Annotated[str, Field(description="who asked, and how")]


class CancelRequest(Closed):
    """Cancel jobs; all of the session's when none is named."""

    kind: Literal["cancel"] = "cancel"
    jobs: tuple[str, ...] = ()
    by: By


class SubmitRequest(Closed):
    """Take jobs into the session; the first may run already, under a job id of its own."""

    kind: Literal["submit"] = "submit"
    jobs: tuple[JobSpec, ...] = Field(min_length=1)
    attempt: Attempt | None = None
    by: By


class ActionRequest(Closed):
    """Retry a failed action, or drop one that has not been done."""

    kind: Literal["action"] = "action"
    key: str
    verb: Literal["retry", "drop"]
    by: By


class RetryRequest(Closed):
    """Run failed jobs again; all of the session's when none is named."""

    kind: Literal["retry"] = "retry"
    jobs: tuple[str, ...] = ()
    by: By


class BudgetRequest(Closed):
    """Spend more, or less: GPU hours above which nothing more is launched."""

    kind: Literal["budget"] = "budget"
    stop_above: float | None = Field(gt=0)
    by: By


Request = Annotated[
    CancelRequest | SubmitRequest | ActionRequest | RetryRequest | BudgetRequest,
    Field(discriminator="kind"),
]


_adapter: TypeAdapter[Request] = TypeAdapter(Request)


def put(session: Path, request: Request) -> Path:
    """Leave a request for the session's monitor; safe from any number of processes."""
    # Names sort by time, so that requests of one process are taken on in their order.
    name = f"{time.time_ns():020}-{request.kind}-{uuid.uuid4().hex}.json"
    path = session / "inbox" / name
    try:
        atomic.write(path, request.model_dump_json())
    except PermissionError as error:
        whose = permissions.user((session / "session.json").stat().st_uid)
        raise BadInput(f"{session.name}: is {whose}'s, who alone asks anything of it") from error
    return path


def has_requests(session: Path) -> bool:
    """Whether a request waits. Raises OSError where the inbox cannot be read."""
    return bool(_waiting(session))


def is_empty(session: Path) -> bool:
    """Whether no request waits, as far as can be seen."""
    with suppress(OSError):
        return not has_requests(session)
    return True


def _waiting(session: Path) -> list[Path]:
    """Requests that nobody has taken on, in their order; asked at every look, so it is cheap."""
    with suppress(FileNotFoundError):
        return sorted(path for path in (session / "inbox").iterdir() if path.suffix == ".json")
    return []


def waiting_jobs(session: Path) -> list[str]:
    """Names of jobs that requests bring, and that the session does not know yet."""
    return [spec.name for request in waiting_submissions(session) for spec in request.jobs]


def waiting_submissions(session: Path) -> list[SubmitRequest]:
    """Requests to take jobs in that nobody has taken on, as far as they can be read."""
    found = []
    for path in _waiting(session):
        with suppress(BadInput, FileNotFoundError):  # the monitor says what is wrong with it
            request = _read(path)
            if isinstance(request, SubmitRequest):
                found.append(request)
    return found


def is_done(session: Session) -> bool:
    """Whether no request waits that may still be carried out. For the monitor.

    What can be neither read nor moved does not keep a session that is over from ending.
    """
    try:
        waiting = _waiting(session.path)
    except OSError:
        return True
    return all(session.requests_left.get(path.name, 0) >= _TRIES for path in waiting)


def left_behind(session: Session) -> list[Path]:
    """Requests that could not be carried out, or not be taken away. For the monitor."""
    with suppress(OSError):
        return [path for path in _waiting(session.path) if path.name in session.requests_left]
    return []


def _in_words(path: Path) -> str:
    """A name as it can be written into JSON: on disk it may be any bytes."""
    return path.name.encode(errors="backslashreplace").decode()


def _read(path: Path) -> Request:
    """A request of the session's owner, or of root.

    Whatever else lies there is refused, and never waited for; of another user's nothing is read.
    """
    try:
        with atomic.open_to_read(path, follow=False) as file:
            # Of what is open, not of the name: by now that may be another file's.
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
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"][1:])
        raise BadInput(f"{where}: {problem['msg']}" if where else problem["msg"]) from error


def _refuse_others(path: Path, owner: int) -> None:
    """Raise BadInput for what another user has left."""
    own = (path.parents[1] / "session.json").lstat().st_uid  # as a file server maps us
    if owner not in (0, os.geteuid(), own):
        raise BadInput(
            f"{_in_words(path)}: left by another user ({permissions.user(owner)}): only "
            f"{permissions.user(own)} asks anything of this session"
        )
