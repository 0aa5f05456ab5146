"""`session.json`: what a session is about."""

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from autoexp import names
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.model import now
from autoexp.session.find import session_exists
from autoexp.storage import migrations


class SessionMeta(BaseModel):
    """`session.json`: what the session is about."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = migrations.VERSION
    session: str
    nonce: str
    """Random: an id may be reused, here or under another sessions root."""
    key_tail: str = ""
    """Random, and the end of its attempts' keys; empty where an older autoexp has made it."""
    path: str
    """The directory where it was created."""
    created: datetime
    config: str
    overrides: tuple[str, ...] = ()
    site: str = ""
    """The file of `configs/slurm/` that says where its jobs run; empty where that is not known."""
    experiment: Experiment
    jobs: list[str] = Field(default_factory=list)
    """Names of the jobs, so that a lost file is noticed."""
    flow_run_ids: list[str] = Field(default_factory=list)
    versions: dict[str, str] = Field(default_factory=dict)
    git: dict[str, str] = Field(default_factory=dict)

    @property
    def script(self) -> str:
        """File name of its batch scripts, by which its jobs are told from others in SLURM."""
        return f"batch-{self.nonce}.sh"

    def key(self, job: str, number: int) -> str:
        """The key of an attempt at a job."""
        return names.attempt_key(self.session, job, number, self.key_tail)

    def array_name(self, kind: str, number: int) -> str:
        """The name of an array of attempts."""
        return names.array_name(self.session, kind, number, self.key_tail)

    def refuse_elsewhere(self, path: Path) -> None:
        """Raise BadInput where `path` is a copy of the session, or where it was moved to.

        A copy would submit its jobs a second time, and jobs write where the session was made.
        """
        if Path(self.path).exists() and path.samefile(self.path):
            return
        if session_exists(Path(self.path)):
            advice = "this is a copy: go on with that one, and delete this"
        else:
            advice = f"move it back there, or have a link there: ln -s {path} {self.path}"
        raise BadInput(
            f"{path}: the session was made as {self.path}, where its jobs write; {advice}"
        )


def output_root(experiment: Experiment, session: Path) -> Path:
    """Directory of a session's outputs; an output root set by the user is shared by sessions."""
    own = experiment.project.output_root
    return session / "output" if own is None else Path(own).absolute() / session.name


def new_id(project: str) -> str:
    """A short, readable id: project, month and day, four random characters."""
    end = f"-{now().astimezone():%m%d}-{names.random_letters(4)}"
    return project[: names.LONGEST_ID - len(end)] + end
