"""Bringing jobs into a session from another process: submit, adopt, and the queue of actions."""

import argparse
import getpass
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from autoexp import durable, inbox
from autoexp.compose import Composed
from autoexp.creation import create, output_root
from autoexp.describing import describe
from autoexp.errors import AutoexpError, BadInput
from autoexp.experiment import Experiment
from autoexp.explaining import in_words
from autoexp.jobs import Attempt, JobSpec, now
from autoexp.journal import Journal
from autoexp.launching import refuse_other_scheduler
from autoexp.machines import SlurmCluster
from autoexp.plan import NO_JOBS, Plan, make_plan
from autoexp.provenance import provenance
from autoexp.rules.possible import refuse_impossible
from autoexp.rules.records import ActionRecord
from autoexp.schedulers.slurm_commands import CommandFailed, at, run
from autoexp.session import Session, sessions_root
from autoexp.study import plan_study
from flows import planning
from flows.finding import compose_words, live_holder, session_path
from flows.terminal import say, say_json

_ADOPTED = ".autoexp-session"
"""Names the session that adopted the job which writes its checkpoints here."""


def submit(options: argparse.Namespace) -> int:
    """Add an experiment's jobs to a session, which is made if there is none of that id."""
    composed = planning.wanted(options)
    name = options.session or planning.id_for(composed)
    path = sessions_root() / name
    session = Session.load(path) if (path / "session.json").exists() else None
    if session is None:
        plan = planning.plan_of(composed, name)
    else:
        refuse_other_scheduler(session.id, session.experiment, composed.experiment)
        plan = plan_study(composed, output_root(session.experiment, path))
        for spec in plan.jobs:
            session.refuse_clash(spec)  # at once, instead of by the monitor later
    if not planning.agree(composed, plan, yes=options.yes):
        say("nothing was submitted")
        return 2
    if session is not None:
        return _put(session, plan, None, f"autoexp submit by {getpass.getuser()}")
    create(composed, plan, sessions_root(), session_id=name, provenance=provenance())
    say(f"session {name} in {path}\nnobody watches it yet: autoexp resume {name}")
    return 0


def adopt(options: argparse.Namespace) -> int:
    """Take a job that was started by hand into a session, with checkpoints, cooldowns and all.

    The session is made if there is none of that id.
    """
    composed = compose_words([*options.experiment, f"backend={options.backend}"])
    experiment = composed.experiment
    if composed.points:
        raise BadInput("adopt takes one job, and this is a sweep")
    if not isinstance(experiment.slurm, SlurmCluster):
        raise BadInput("adopt takes SLURM jobs: add slurm=NAME of your cluster")
    refuse_impossible(experiment)
    described = _described_by_slurm(options.job_id, experiment.slurm)
    save_dir = Path(options.save_dir).absolute()
    with _adopted_by(save_dir, session_path(options.session)):
        session = _session_to_join(composed, options.session)
        return _put_adopted(session, experiment, save_dir, described, options)


@contextmanager
def _adopted_by(save_dir: Path, session: Path) -> Iterator[None]:
    """Mark the folder as the session's own: two that adopt one job would both submit it again.

    Raises BadInput where another session has it, and is not over.
    """
    mark = save_dir / _ADOPTED
    save_dir.mkdir(parents=True, exist_ok=True)
    mine = str(session.resolve())
    fresh = False
    with suppress(FileExistsError):
        with mark.open("x") as file:
            file.write(mine)
        fresh = True
    holder = os.fsdecode(durable.read(mark, 65536)).strip()
    if holder != mine:
        if _goes_on(Path(holder)):
            raise BadInput(
                f"{save_dir} is written by a job of session {holder}, which goes on: end it with "
                f"`autoexp cancel`, or remove {mark} if nothing of it writes there"
            )
        mark.write_text(mine)
    try:
        yield
    except BaseException:
        if fresh:
            mark.unlink()
        raise


def _goes_on(session: Path) -> bool:
    """Whether a session exists and is not over, as far as can be seen."""
    if not (session / "session.json").exists():
        return False
    try:
        return not inbox.is_empty(session) or not Session.load(session).is_over
    except AutoexpError:
        return True


def _put_adopted(
    session: Session,
    experiment: Experiment,
    save_dir: Path,
    described: dict[str, str],
    options: argparse.Namespace,
) -> int:
    cluster = experiment.slurm
    plan = make_plan(experiment, output_root(session.experiment, session.path), save_dir)
    for spec in plan.jobs:
        session.refuse_clash(spec)  # at once, instead of by the monitor later
    attempt = Attempt(
        number=1,
        key=session.meta.key(plan.trunk.name, 1),
        name=described["JobName"],
        log=options.log or described["StdOut"],
        job_id=options.job_id,
        state="PENDING",
        intended_at=now(),
        submitted_at=now(),
        gpus=cluster.gpus,
        first_iteration=0,
    )
    return _put(session, plan, attempt, f"autoexp adopt by {getpass.getuser()}")


def _session_to_join(composed: Composed, name: str) -> Session:
    path = session_path(name)
    if not (path / "session.json").exists():
        # Without jobs of its own: the adopted one is asked for as of any other session.
        create(composed, NO_JOBS, path.parent, session_id=path.name, provenance=provenance())
    session = Session.load(path)
    refuse_other_scheduler(session.id, session.experiment, composed.experiment)
    return session


def _described_by_slurm(job_id: str, cluster: SlurmCluster) -> dict[str, str]:
    """What `scontrol show job` says; raises BadInput when SLURM does not know the job."""
    if not re.fullmatch(r"[0-9]+(_[0-9]+)?", job_id):
        raise BadInput(f"{job_id}: no SLURM job id, such as 123, or 123_4 for a task of an array")
    try:
        command = at(cluster.at, ["scontrol", "show", "job", job_id])
        answer = run(command, cluster.query_timeout_s)
    except CommandFailed as error:
        raise BadInput(f"job {job_id}: {error.stderr}; `squeue --me` lists yours") from error
    if "ArrayTaskId=" in answer and "_" not in job_id:
        raise BadInput(f"job {job_id} is an array: adopt its tasks, one by one, as {job_id}_0")
    # Each of these ends its line, so that names may hold spaces.
    found = {key: re.search(rf"\b{key}=(.*)$", answer, re.M) for key in ("JobName", "StdOut")}
    described = {key: match[1] for key, match in found.items() if match}
    if "JobName" not in described:
        raise BadInput(f"job {job_id}: scontrol gives no name for it; it said: {answer[:200]!r}")
    return {"StdOut": "/dev/null", **described}


def _put(session: Session, plan: Plan, attempt: Attempt | None, by: str) -> int:
    jobs: tuple[JobSpec, ...] = plan.jobs
    inbox.put(session.path, inbox.SubmitRequest(jobs=jobs, attempt=attempt, by=by))
    names = ", ".join(spec.name for spec in jobs)
    holder = live_holder(session)
    if holder is not None:
        say(f"{session.id}: asked the monitor (pid {holder.pid} on {holder.host}) for {names}")
    else:
        say(f"{session.id}: asked for {names}; nobody watches: autoexp resume {session.id}")
    return 0


def queue(options: argparse.Namespace) -> int:
    """List or show actions, retry a failed one, drop one that is not done."""
    session = Session.load(session_path(options.session))
    if options.verb == "list":
        if options.follow:
            return _follow_actions(session.path)
        return _list_actions(session, as_json=options.json)
    if options.key is None:
        raise BadInput(f"which action? `autoexp queue {session.id}` lists their keys")
    action = session.actions.get(options.key)
    if action is None:
        known = "\n  ".join(session.actions) or "none"
        raise BadInput(f"{options.key}: no such action; {session.id} has:\n  {known}")
    if options.verb == "show":
        say_json(action.model_dump(mode="json"))
        return 0
    by = f"autoexp queue {options.verb} by {getpass.getuser()}"
    request = inbox.ActionRequest(key=action.key, verb=options.verb, by=by)
    inbox.put(session.path, request)
    asked = "asked the monitor" if live_holder(session) else "nobody watches: autoexp resume"
    say(f"{action.key}: {options.verb} ({asked} {session.id})")
    return 0


def _list_actions(session: Session, *, as_json: bool) -> int:
    actions: list[ActionRecord] = list(session.actions.values())
    if as_json:
        say_json([action.model_dump(mode="json") for action in actions])
        return 0
    for action in actions:
        _print_action(session, action)
    if not actions:
        say(f"{session.id}: no actions yet")
    return 0


def _print_action(session: Session, action: ActionRecord) -> None:
    reason = f"  {action.reason}" if action.reason else ""
    say(f"{action.status:<8} {action.attempts} tries  {action.key}{reason}")
    say(f"         {in_words(session, action)}, because {describe(action.event)}")


def _follow_actions(path: Path) -> int:
    """Print each action as it is asked for, and again whenever it has moved, to the end."""
    shown: dict[str, tuple[str, str | None]] = {}
    journal = Journal(path / "events.jsonl")
    while True:
        session = Session.load(path, journal)
        for key, action in session.actions.items():
            stands = (action.status, action.reason)
            if shown.get(key) != stands:
                _print_action(session, action)
            shown[key] = stands
        if session.is_over:
            return 0
        time.sleep(1.0)
