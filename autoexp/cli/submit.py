"""`autoexp submit` and `adopt`: add jobs to a session from another process."""

import getpass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from autoexp.cli import options
from autoexp.cli import plan as planning
from autoexp.errors import BadInput
from autoexp.storage.places import sessions_root

if TYPE_CHECKING:
    from autoexp.config.compose import Composed
    from autoexp.jobs.record import Attempt
    from autoexp.operations.adopt import HandStarted
    from autoexp.planning.plan import Plan
    from autoexp.session.session import Session


def submit(
    session: Annotated[
        str,
        options.option(
            "--session", metavar="ID", text="Which session.", completion=options.session_ids
        ),
    ],
    experiment: options.Experiment = None,
    points: options.Subset = None,
    yes: options.Yes = False,
) -> int:
    """Register a job in a session, and return at once.

    The session is created if it does not exist.

    \b
    Example:
      autoexp submit demo project.name=other --session demo-1a2b
    """
    return register(planning.wanted(experiment or [], points), session, yes=yes)


def register(composed: "Composed", name: str, *, yes: bool) -> int:
    """Add an experiment's jobs to a session, which is created if it does not exist."""
    from autoexp.operations.launch import refuse_other_scheduler
    from autoexp.planning.study import plan_study
    from autoexp.reports.terminal import say
    from autoexp.session.create import create, plan_of
    from autoexp.session.find import no_monitor, session_exists
    from autoexp.session.meta import output_root
    from autoexp.session.provenance import provenance
    from autoexp.session.session import Session

    path = sessions_root() / name
    session = Session.load(path) if session_exists(path) else None
    if session is None:
        plan = plan_of(composed, name)
    else:
        refuse_other_scheduler(session.id, session.experiment, composed.experiment)
        plan = plan_study(composed, output_root(session.experiment, path))
        for spec in plan.jobs:
            session.refuse_clash(spec)  # at once, instead of by the monitor later
    planning.ask_slurm(plan)
    if not planning.agree(composed, plan, yes=yes):
        say("nothing was submitted")
        return 2
    if session is not None:
        return _put(session, plan, None, f"autoexp submit by {getpass.getuser()}")
    planning.announce_image(composed)
    create(composed, plan, sessions_root(), session_id=name, provenance=provenance())
    say(f"session {name} in {path}\n{no_monitor(name)}")
    return 0


def adopt(
    name: options.Session,
    job_id: Annotated[str, options.option("--job-id", metavar="ID", text="Its SLURM job id.")],
    save_dir: Annotated[
        str, options.option("--save-dir", metavar="DIR", text="Where its checkpoints land.")
    ],
    experiment: options.Experiment = None,
    backend: Annotated[
        str | None,
        options.option(
            "--backend", metavar="NAME", text="Which trainer it runs; the configuration's own."
        ),
    ] = None,
    log: Annotated[
        str | None,
        options.option("--log", metavar="FILE", text="Its log; SLURM's StdOut by default."),
    ] = None,
) -> int:
    """Take a job that was started by hand into a session.

    Its checkpoints count, and cooldowns branch from it. A missing session is created.

    \b
    Examples:
      autoexp adopt mine slurm=lumi --job-id 12345 --backend megatron \\
        --save-dir /scratch/run/checkpoints
      autoexp adopt mine my-project slurm=lumi --job-id 12345 --save-dir /scratch/run
    """
    from autoexp.flows.engine.compose import compose_words
    from autoexp.operations import adopt as adoption
    from autoexp.operations.launch import refuse_other_scheduler
    from autoexp.planning.plan import make_plan
    from autoexp.planning.rule_checks import validate_rules
    from autoexp.resources.machines import SlurmCluster
    from autoexp.schedulers.slurm.queue import cluster_name, describe
    from autoexp.session.find import own_session_path, session_exists
    from autoexp.session.meta import output_root
    from autoexp.session.session import Session

    words = experiment or []
    if backend is None and not any(
        "=" not in word or word.startswith("backend=") for word in words
    ):
        raise BadInput("adopt: which trainer does it run? Name your configuration, or --backend")
    composed = compose_words([*words, *([f"backend={backend}"] if backend else [])])
    wanted = composed.experiment
    if composed.points:
        raise BadInput("adopt takes one job, and this is a sweep")
    if not isinstance(wanted.slurm, SlurmCluster):
        raise BadInput("adopt takes SLURM jobs: add slurm=NAME of your cluster")
    validate_rules(wanted)
    described = describe(job_id, wanted.slurm)
    adoption.refuse_unfit(job_id, described)
    checkpoints, path = Path(save_dir).absolute(), own_session_path(name)
    cluster = cluster_name(wanted.slurm)
    job = adoption.HandStarted(cluster, job_id, described["JobName"], checkpoints)
    with adoption.exclusively():
        adoption.prune()
        session = Session.load(path) if session_exists(path) else None
        owner = wanted if session is None else session.experiment
        plan = make_plan(wanted, output_root(owner, path), checkpoints)
        if session is not None:
            refuse_other_scheduler(session.id, owner, wanted)
            for spec in plan.jobs:
                session.refuse_clash(spec)  # at once, instead of by the monitor later
        adoption.refuse_taken(job, path, plan.trunk.name)
        if session is None:
            session = _session_for(composed, path)
        adoption.claim(job, session)
        attempt = _attempt(session, plan, job, log or described["StdOut"])
        return _put(session, plan, attempt, f"autoexp adopt by {getpass.getuser()}")


def _session_for(composed: "Composed", path: Path) -> "Session":
    """Create a session without jobs; the adopted job is added by a request, as to any session."""
    from autoexp.planning.plan import NO_JOBS
    from autoexp.session.create import create
    from autoexp.session.provenance import provenance
    from autoexp.session.session import Session

    planning.announce_image(composed)
    create(composed, NO_JOBS, path.parent, session_id=path.name, provenance=provenance())
    return Session.load(path)


def _attempt(session: "Session", plan: "Plan", job: "HandStarted", log: str) -> "Attempt":
    """The job that runs already, as the first attempt of the one that is planned."""
    from autoexp.jobs.record import Attempt
    from autoexp.model import now

    return Attempt(
        number=1,
        key=session.meta.key(plan.trunk.name, 1),
        name=job.name,
        log=log,
        job_id=job.job_id,
        state="PENDING",
        intended_at=now(),
        submitted_at=now(),
        gpus=plan.trunk.machine.gpus,
        first_iteration=0,
    )


def _put(session: "Session", plan: "Plan", attempt: "Attempt | None", by: str) -> int:
    from autoexp.reports.terminal import say
    from autoexp.session.find import whose_turn
    from autoexp.session.inbox import SubmitRequest, enqueue

    enqueue(session.path, SubmitRequest(jobs=plan.jobs, attempt=attempt, by=by))
    names = ", ".join(spec.name for spec in plan.jobs)
    say(f"{session.id}: {names} to be added ({whose_turn(session)})")
    return 0
