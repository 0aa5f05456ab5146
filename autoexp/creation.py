"""Creating a session directory: whole, or not at all."""

import os
import secrets
import shutil
from pathlib import Path

from autoexp import durable
from autoexp.compose import Composed
from autoexp.errors import BadInput
from autoexp.jobs import JobRecord, Kind, now
from autoexp.plan import Plan, make_plan
from autoexp.session import Session, SessionMeta


def create(
    composed: Composed,
    root: Path,
    *,
    session_id: str | None = None,
    provenance: dict[str, dict[str, str]] | None = None,
) -> Path:
    """Create a session directory, whole or not at all, and return its path.

    Raises BadInput when the id is taken or the plan is impossible; nothing is left behind then.
    """
    name = session_id or new_id(composed.experiment.project.name)
    path = root / name
    output = composed.experiment.project.output_root
    # An output root of the user's own is shared by sessions: each writes below its own name.
    output_root = path / "output" if output is None else Path(output).absolute() / name
    plan = make_plan(composed.experiment, output_root)
    if path.exists():
        raise BadInput(f"{name}: this session exists; `autoexp resume {name}` takes it up again")
    root.mkdir(parents=True, exist_ok=True)
    draft = root / f".new-{name}-{os.getpid()}"
    try:
        _fill(draft, name, composed, plan, provenance or {})
        draft.rename(path)
    except BaseException as error:
        shutil.rmtree(draft, ignore_errors=True)
        if isinstance(error, OSError) and path.exists():
            raise BadInput(f"{name}: this session exists already") from error
        raise
    durable.sync_directory(root)
    return path


def new_id(project: str) -> str:
    """A short, readable id: project, month and day, four random characters."""
    alphabet = "abcdefghjkmnpqrstuvwxyz23456789"
    tail = "".join(secrets.choice(alphabet) for _ in range(4))
    return f"{project}-{now().astimezone():%m%d}-{tail}"


def _fill(
    draft: Path, name: str, composed: Composed, plan: Plan, provenance: dict[str, dict[str, str]]
) -> None:
    for folder in ("config", "jobs", "actions", "attempts", "inbox", "metrics"):
        (draft / folder).mkdir(parents=True)
    (draft / "config" / "resolved.yaml").write_text(composed.resolved)
    (draft / "config" / "unresolved.yaml").write_text(composed.unresolved)
    overrides = "".join(f"{line}\n" for line in composed.overrides)
    (draft / "config" / "overrides.txt").write_text(overrides)
    meta = SessionMeta(
        session=name,
        created=now(),
        config=composed.config,
        overrides=composed.overrides,
        experiment=composed.experiment,
        versions=provenance.get("versions", {}),
        git=provenance.get("git", {}),
    )
    session = Session(draft, meta)
    for spec in plan.jobs:
        session.save_job(JobRecord(spec=spec, launched=spec.kind is Kind.TRAIN))
    session.save_meta()
