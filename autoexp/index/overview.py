"""A session's records as rows, for commands that show much of it: what has not changed is kept."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from autoexp.errors import BadInput
from autoexp.index.files import FOLDER, FileIndex, json_files, stamp_of
from autoexp.jobs.summary import JobRow, Place, in_order
from autoexp.session import find
from autoexp.storage.processes import without_collections

if TYPE_CHECKING:
    from autoexp.session.meta import SessionMeta

_MANY = 50
"""Jobs or actions from which on their rows are kept on disk."""


class SessionRow(BaseModel):
    """What commands show of `session.json`."""

    session: str
    created: datetime
    jobs: list[str]
    flow_run_ids: list[str]
    stop_above: float | None

    @classmethod
    def of(cls, meta: "SessionMeta") -> "SessionRow":
        """The row of a session."""
        return cls(
            session=meta.session,
            created=meta.created,
            jobs=meta.jobs,
            flow_run_ids=meta.flow_run_ids,
            stop_above=meta.experiment.budget.stop_above,
        )


class ActionRow(BaseModel):
    """What commands look for among many actions."""

    status: Literal["pending", "running", "done", "failed"]
    job: str
    """The job of its event."""
    starts: str | None
    """The job that it starts."""


class Overview:
    """The rows of a session, as of the last `read`; reading needs no lease and takes none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.session: SessionRow
        self.jobs: dict[str, JobRow] = {}
        """In the order in which commands show them."""
        index = path / FOLDER
        self._jobs = FileIndex(index / "jobs.json", JobRow, _read_job, worth=_MANY)
        self._actions = FileIndex(index / "actions.json", ActionRow, _read_action, worth=_MANY)
        self._session: FileIndex[SessionRow] | None = None

    def read(self) -> "Overview":
        """Take in what has changed; raises SessionNotFound or SessionDamaged, as `Session.load`."""
        with without_collections():
            return self._read()

    def _read(self) -> "Overview":
        find.must_exist(self.path)
        files = json_files(self.path / "jobs")
        file = self.path / "session.json"
        if self._session is None:
            # One file is read faster than its index, but not its models imported.
            worth = 1 if len(files) >= _MANY else 2
            kept_in = self.path / FOLDER / file.name
            self._session = FileIndex(kept_in, SessionRow, _read_session, worth=worth)
        (self.session,) = self._session.rows(
            {file.name: (str(file), stamp_of(file.stat()))}
        ).values()
        rows = {row.name: row for row in self._jobs.rows(files).values()}
        find.refuse_missing(self.path, self.session.jobs, rows)
        places = {name: Place(name, row.parent, row.starts_at) for name, row in rows.items()}
        self.jobs = {name: rows[name] for name in in_order(places, self.session.jobs)}
        return self

    @property
    def first_job(self) -> str:
        """The job that is meant where none is named; raises BadInput without any."""
        if not self.jobs:
            raise BadInput(f"{self.session.session}: has no jobs yet")
        return next(iter(self.jobs))

    def actions(self) -> dict[str, ActionRow]:
        """The actions by key, as they are now."""
        return self._actions.rows(json_files(self.path / "actions"))

    @property
    def is_over(self) -> bool:
        """True if every job has its final verdict, and no attempt and no action is left."""
        if any(row.verdict is None or row.in_queue for row in self.jobs.values()):
            return False
        return all(row.status in ("done", "failed") for row in self.actions().values())


def job_names(session: Path) -> list[str]:
    """Names of a session's jobs, by their files."""
    return sorted(file.stem for file in (session / "jobs").glob("*.json"))


def job_file(session: Path, name: str) -> Path:
    """The record of one job; raises BadInput for an unknown name."""
    known = job_names(session)
    if name not in known:
        raise find.no_such_job(session.name, [name], known)
    return session / "jobs" / f"{name}.json"


# Taken from a record, whose models are imported only where one has changed


def _read_session(path: Path) -> SessionRow:
    from autoexp.session.meta import SessionMeta
    from autoexp.storage import migrations

    return SessionRow.of(migrations.read(path, SessionMeta))


def _read_job(path: Path) -> JobRow:
    from autoexp.jobs.record import JobRecord
    from autoexp.jobs.summary import row_of
    from autoexp.storage import migrations

    return row_of(migrations.read(path, JobRecord))


def _read_action(path: Path) -> ActionRow:
    from autoexp.rules.actions import Start
    from autoexp.session.action_records import ActionRecord
    from autoexp.storage import migrations

    record = migrations.read(path, ActionRecord)
    starts = record.action.job if isinstance(record.action, Start) else None
    return ActionRow(status=record.status.value, job=record.event.job, starts=starts)
