"""Creating a session directory: whole, or not at all."""

import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from autoexp import names
from autoexp.backends.protocol import FoundCheckpoint
from autoexp.config.compose import Composed
from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput, SessionError
from autoexp.jobs.record import JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.planning.plan import Plan
from autoexp.planning.study import plan_study
from autoexp.resources.machines import LocalMachine
from autoexp.session import find, remove
from autoexp.session.meta import SessionMeta, new_id, output_root
from autoexp.session.provenance import Provenance, of_experiment
from autoexp.session.session import Session
from autoexp.storage import atomic, claims, locks, permissions
from autoexp.storage.places import sessions_root


def create(
    composed: Composed,
    plan: Plan,
    root: Path,
    *,
    session_id: str,
    provenance: Provenance | None = None,
    flow_run_id: str | None = None,
) -> Path:
    """Create a session directory, whole or not at all, and return its path.

    ``plan` was made of `composed` for the `output_root` of this id, and confirmed: its jobs
    are submitted as they are there.

    A flow run creates one session, however often it is run: an existing one is returned.

    Raises BadInput when the id is taken or a name too long; nothing is left behind then.
    """
    if flow_run_id and (made := find.session_of(flow_run_id, root)) is not None:
        return made
    name = session_id
    names.check_id(name)
    names.check_keys(name, (spec.name for spec in plan.jobs))
    _refuse_odd_root(root, composed.experiment)
    path = root / name
    outputs = output_root(composed.experiment, path)
    assert all(Path(spec.output_dir).is_relative_to(outputs) for spec in plan.jobs), "planned so"
    if path.exists():
        raise BadInput(f"{name}: this session exists; `autoexp resume {name}`` resumes it")
    refuse_used(outputs)
    _make_root(root)
    for left in claims.dead_drafts(root):
        with suppress(BadInput):  # whoever may write in the root can give any name
            names.check_id(id_of_left := claims.session_of(left))
            _free_outputs(outputs.with_name(id_of_left), left)
        remove.discard(left)
    remove.remove_leftovers(root)
    if flow_run_id:
        _claim(flow_run_id, path)
    draft = claims.draft_of(path)
    remove.discard(draft)
    try:
        mode = permissions.OF_SESSION[composed.experiment.project.share]
        atomic.make_own_directory(draft, mode | remove.MARK)
        _fill(draft, path, composed, plan.jobs, provenance, flow_run_id)
        draft.rename(path)
    except BaseException as error:
        _free_outputs(outputs, draft)
        remove.discard(draft)
        if isinstance(error, OSError):
            raise _not_made(path, error) from error
        raise
    atomic.sync_directory(root)
    remove.unmark(path)
    return path


def _claim(flow_run_id: str, path: Path) -> None:
    """Claim the name before the session exists: after a kill it is created under this name."""
    try:
        is_ours = find.claim(flow_run_id, path.parent, path.name)
    except OSError as error:
        raise _not_made(path, error) from error
    if not is_ours:
        raise BadInput(f"{flow_run_id}: another process is creating the session of this flow run")


def _not_made(path: Path, error: OSError) -> BadInput:
    if path.exists():
        return BadInput(f"{path.name}: this session exists already")
    error.filename = error.filename or str(path)
    return BadInput(f"{path.name}: nothing was created: {atomic.in_words(error)}")


def _make_root(root: Path) -> None:
    try:
        atomic.make_directory(root, by_umask=True)
        atomic.probe(root)
        locks.probe(root)
    except OSError as error:
        raise BadInput(
            f"{root}: sessions cannot be made here ({error.strerror}); "
            "free space there, or set AUTOEXP_SESSIONS to a directory that you can write"
        ) from error


def _refuse_odd_root(root: Path, experiment: Experiment) -> None:
    """Refuse paths that cannot be written into JSON, or that submitit would change."""
    if not str(root).isprintable():
        raise BadInput(f"{str(root)!r}: the sessions root has characters that cannot be written")
    if "\\" in str(root):
        raise BadInput(
            f"{root}: SLURM reads a backslash in a log's path as an instruction; "
            "set AUTOEXP_SESSIONS to another"
        )
    if isinstance(experiment.slurm, LocalMachine) and re.search("%[jtAa]", str(root)):
        raise BadInput(
            f"{root}: submitit's local executor would replace the `%` in this path; "
            "set AUTOEXP_SESSIONS to another"
        )


def refuse_used(outputs: Path) -> None:
    """Raise BadInput for outputs that another session uses, or that an earlier one left."""
    if (holder := claims.holder(outputs)) is not None:
        raise _taken(outputs, holder)
    if outputs.is_dir() and not claims.is_unused(outputs):
        raise BadInput(
            f"{outputs}: an earlier session of this id wrote here, and its checkpoints would be "
            "taken for those of the new one; take another id (--session ID), or move them away"
        )


def _taken(outputs: Path, holder: claims.Claim) -> BadInput:
    if holder.is_hidden:
        return BadInput(f"{outputs} is where {holder.title} writes: take another id (--session ID)")
    name = Path(holder.session).name
    return BadInput(
        f"{outputs} is where session {name} writes ({holder.session}): take another id "
        f"(--session ID) or `project.output_root`; `autoexp sessions remove {name}` frees it"
    )


def _claim_outputs(experiment: Experiment, path: Path, mine: claims.Claim) -> claims.Claim | None:
    """Claim the outputs for a session, before any write; returns another holder, if any."""
    outputs = output_root(experiment, path)
    if outputs.is_relative_to(path):
        return None
    try:
        return claims.take(outputs, mine)
    except OSError as error:
        raise BadInput(
            f"{outputs}: jobs could not write there ({error.strerror}); set "
            "`project.output_root` to a directory that you can write"
        ) from error


def _free_outputs(outputs: Path, draft: Path) -> None:
    """Remove an unused directory that a session claimed which was not made in the end."""

    def is_over(last: claims.Claim | None) -> bool:
        if last is None:
            return True
        was_made = find.session_exists(Path(last.session))
        return last.draft == str(draft.absolute()) and not was_made

    claims.clear(outputs, is_over)


def claim_of(session: Session) -> claims.Claim:
    """The claim of an existing session on directories."""
    return claims.Claim(session.meta.path, session.meta.nonce)


def retake_outputs(session: Session) -> None:
    """Renew a session's claim on its outputs: the mark may be lost.

    Raises BadInput where another session has them by now, as after this one was moved away.
    """
    holder = _claim_outputs(session.experiment, session.path, claim_of(session))
    if holder is not None:
        outputs = output_root(session.experiment, session.path)
        raise BadInput(
            f"{session.id}: {outputs} is where {holder.title} writes by now: end that one and "
            f"remove it, then `autoexp resume {session.id}`"
        )


def _fill(
    draft: Path,
    path: Path,
    composed: Composed,
    specs: Sequence[JobSpec],
    provenance: Provenance | None,
    flow_run_id: str | None,
) -> None:
    nonce = secrets.token_hex(4)
    for folder in ("config", "jobs", "actions", "attempts", "inbox", "metrics"):
        atomic.make_directory(draft / folder)
    mine = claims.Claim(str(path.absolute()), nonce, str(draft.absolute()))
    if (holder := _claim_outputs(composed.experiment, path, mine)) is not None:
        raise _taken(output_root(composed.experiment, path), holder)
    atomic.write(draft / "config" / "resolved.yaml", composed.resolved)
    atomic.write(draft / "config" / "unresolved.yaml", composed.unresolved)
    overrides = "".join(f"{line}\n" for line in composed.overrides)
    atomic.write(draft / "config" / "overrides.txt", overrides)
    meta = SessionMeta(
        session=path.name,
        nonce=nonce,
        key_tail=names.new_tail(),
        path=str(path.absolute()),
        created=now(),
        config=composed.config,
        overrides=composed.overrides,
        site=composed.origins.chosen("slurm") if composed.origins else "",
        experiment=composed.experiment,
        jobs=[spec.name for spec in specs],
        versions=provenance.versions if provenance else {},
        git=provenance.git if provenance else {},
        # From the start, so that the same flow run finds its session when it is retried.
        flow_run_ids=[flow_run_id] if flow_run_id else [],
    )
    if provenance is not None:
        _write_provenance(draft / "provenance", provenance, composed.experiment)
    session = Session(draft, meta)
    for spec in specs:
        session.save_job(JobRecord(spec=spec, launched=not spec.waits))
        if spec.branch is not None and spec.parent is None:
            _pin_start(spec, composed.experiment, draft, path)
    session.save_meta()
    atomic.write(draft / find.MARK, "")


def _write_provenance(folder: Path, provenance: Provenance, experiment: Experiment) -> None:
    atomic.make_directory(folder)
    for name, text in {**provenance.files, **of_experiment(experiment)}.items():
        atomic.write(folder / name, text)


def _pin_start(spec: JobSpec, experiment: Experiment, draft: Path, path: Path) -> None:
    """Pin a cooldown's start before the session exists: its origin may be deleted later."""
    start, save_dir = experiment.start, Path(spec.save_dir)
    assert start is not None
    if save_dir.is_relative_to(path):
        save_dir = draft / save_dir.relative_to(path)
    try:
        spec.trainer.seed(FoundCheckpoint(start.iteration, Path(start.path)), save_dir)
    except SessionError as error:
        if not Path(start.path).exists():
            raise BadInput(f"{start.path}: the checkpoint to start from does not exist") from error
        raise BadInput(str(error)) from error


def new_id_of(composed: Composed) -> str:
    """Make an id for the session of a branch."""
    experiment = composed.experiment
    assert experiment.start is not None
    return new_id(f"{experiment.project.name}-cd{experiment.start.iteration}")


def plan_of(composed: Composed, session: str | None = None) -> Plan:
    """The plan of a session that is not yet created; without an id, of one that will get one.

    Raises BadInput for an impossible plan, and for names that are too long.
    """
    named = session or id_for(composed)
    names.check_id(named)
    path = sessions_root() / (session or "SESSION")
    outputs = output_root(composed.experiment, path)
    if session is not None and not path.exists():
        refuse_used(outputs)
    found = plan_study(composed, outputs)
    names.check_keys(named, (job.name for job in found.jobs))
    return found


def id_for(composed: Composed) -> str:
    """Make an id for a session of the experiment."""
    return new_id(composed.experiment.project.name)
