"""`autoexp retry`, `budget` and `queue`: requests to a session's monitor."""

import getpass
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.rules.actions import LaunchedCooldown
    from autoexp.session.action_records import ActionRecord
    from autoexp.session.session import Session


def retry(
    name: options.AnySession = None,
    jobs: Annotated[
        list[str] | None, options.argument("JOB", "All that failed by default.", options.job_names)
    ] = None,
) -> int:
    """Run failed jobs again, from their last checkpoints; by name also a finished evaluation.

    \b
    Examples:
      autoexp retry demo-1a2b
      autoexp retry demo-1a2b demo-cd1000
    """
    from autoexp.operations.retry import check_retryable, left_out
    from autoexp.reports.terminal import say
    from autoexp.session.find import own_session_path, whose_turn
    from autoexp.session.inbox import RetryRequest, enqueue
    from autoexp.session.session import Session
    from autoexp.states import Verdict

    session = Session.load(own_session_path(name))
    for job in jobs or []:
        check_retryable(session, job)
    failed = jobs or [n for n, j in session.jobs.items() if j.verdict is Verdict.FAILED]
    if not failed:
        say(f"{session.id}: no job has failed")
        return 0
    others = {} if jobs else left_out(session)
    failed = [job for job in failed if job not in others]
    if not failed:
        raise BadInput("; ".join(others.values()))
    for reason in others.values():
        say(reason, error=True)
    by = f"autoexp retry by {getpass.getuser()}"
    enqueue(session.path, RetryRequest(jobs=tuple(jobs or []), by=by))
    say(f"{', '.join(failed)}: to be run again ({whose_turn(session)})")
    return 0


Restart = Annotated[
    bool,
    typer.Option(
        "--restart",
        help="Have it save and end as before its time limit, and go on in a new attempt.",
    ),
]


def save(
    name: options.Session,
    job: options.AnyJob = None,
    restart: Restart = False,
) -> int:
    """Have a running job save a checkpoint now.

    \b
    Examples:
      autoexp save demo-1a2b
      autoexp save demo-1a2b demo-cd1000
    """
    return _ask_for_save(name, job, restart, None)


def branch(
    name: options.Session,
    job: options.AnyJob = None,
    now: Annotated[
        bool, typer.Option("--now", help="From a checkpoint that is saved for it now.")
    ] = False,
    decay: Annotated[
        list[str] | None,
        options.option(
            "--decay", metavar="KEY=VALUE", text="Of its decay: fraction=0.1, shape=linear, …"
        ),
    ] = None,
    label: Annotated[
        str, options.option("--name", metavar="NAME", text="Part of its job's name; `now`.")
    ] = "now",
    restart: Restart = False,
) -> int:
    """Cool down now: a running training saves, and a cooldown starts from that checkpoint.

    \b
    Example:
      autoexp branch demo-1a2b --now --decay fraction=0.1
    """
    from autoexp.operations.on_request.branch import cooldown_of

    if not now:
        raise BadInput(
            "`--now` saves a checkpoint for it; from one that exists: "
            f"`autoexp run --from {name}:JOB@ITERATION 'cooldowns=[{{decay: {{fraction: 0.1}}}}]'`"
        )
    return _ask_for_save(name, job, restart, cooldown_of(decay or [], label))


def _ask_for_save(
    name: str, job: str | None, restart: bool, cooldown: "LaunchedCooldown | None"
) -> int:
    from autoexp.operations.on_request.branch import enqueue_save
    from autoexp.reports.terminal import say

    say(
        enqueue_save(name, job, cooldown, restart=restart, command="branch" if cooldown else "save")
    )
    return 0


def hours(word: str) -> float:
    """GPU hours; `none` is no limit."""
    found = math.inf if word == "none" else float(word)
    if not found > 0 or (math.isinf(found) and word != "none"):
        raise ValueError(f"{word} GPU hours: above 0")
    return found


def budget(
    name: options.AnySession = None,
    stop_above: Annotated[
        float | None,
        typer.Option(
            "--stop-above",
            metavar="HOURS",
            parser=hours,
            help="GPU hours above which no new job is submitted; `none` removes the limit.",
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Show GPU hours planned and spent; change the limit.

    \b
    Examples:
      autoexp budget demo-1a2b
      autoexp budget demo-1a2b --stop-above 500
    """
    from autoexp.jobs.budget import total
    from autoexp.jobs.limits import spent
    from autoexp.reports.terminal import say, say_json
    from autoexp.session.find import session_path, whose_turn
    from autoexp.session.inbox import BudgetRequest, enqueue
    from autoexp.session.session import Session

    session = Session.load(session_path(name))
    if stop_above is not None:
        by = f"autoexp budget by {getpass.getuser()}"
        limit = None if math.isinf(stop_above) else stop_above
        enqueue(session.path, BudgetRequest(stop_above=limit, by=by))
        say(f"{session.id}: budget.stop_above to be changed ({whose_turn(session)})")
        return 0
    most = session.experiment.budget.stop_above
    if as_json:
        from autoexp.schemas.outputs import Hours

        planned = total(job.spec for job in session.jobs.values())
        found = Hours(
            session=session.id,
            planned_gpu_hours=planned.gpu_hours,
            jobs_of_unknown_length=planned.unknown,
            spent_gpu_hours=spent(session.jobs.values()),
            stop_above=most,
        )
        say_json(found.model_dump(mode="json"))
        return 0
    say(f"planned  {total(job.spec for job in session.jobs.values())}")
    say(f"spent    {spent(session.jobs.values()):.2f} GPU hours")
    say(f"stops    {'never' if most is None else f'above {most:g} GPU hours'}")
    return 0


def queue(
    name: options.AnySession = None,
    verb: Annotated[
        Literal["list", "show", "retry", "drop"], typer.Argument(help="What to do.")
    ] = "list",
    key: Annotated[str | None, options.argument("KEY", "The action, as `list` shows it.")] = None,
    as_json: options.AsJson = False,
    follow: options.Follow = False,
) -> int:
    """List or show actions, retry a failed one, drop one.

    \b
    Examples:
      autoexp queue demo-1a2b
      autoexp queue demo-1a2b retry KEY
    """
    from autoexp.reports.terminal import say, say_json
    from autoexp.session.find import session_path, whose_turn
    from autoexp.session.inbox import ActionRequest, enqueue
    from autoexp.session.session import Session

    session = Session.load(session_path(name))
    if verb == "list":
        if follow:
            return _follow_actions(session.path)
        return _list_actions(session, as_json=as_json)
    if key is None:
        raise BadInput(f"which action? `autoexp queue {session.id}` lists their keys")
    action = session.actions.get(key)
    if action is None:
        known = "\n  ".join(session.actions) or "none"
        raise BadInput(f"{key}: no such action; {session.id} has:\n  {known}")
    if verb == "show":
        say_json(action.model_dump(mode="json"))
        return 0
    by = f"autoexp queue {verb} by {getpass.getuser()}"
    enqueue(session.path, ActionRequest(key=action.key, verb=verb, by=by))
    say(f"{action.key}: {verb} ({whose_turn(session)})")
    return 0


def _list_actions(session: "Session", *, as_json: bool) -> int:
    from autoexp.reports.terminal import say, say_json

    actions: list[ActionRecord] = list(session.actions.values())
    if as_json:
        say_json([action.model_dump(mode="json") for action in actions])
        return 0
    for action in actions:
        _print_action(session, action)
    if not actions:
        say(f"{session.id}: no actions yet")
    return 0


def _print_action(session: "Session", action: "ActionRecord") -> None:
    from autoexp.reports.explain import in_words
    from autoexp.reports.terminal import say
    from autoexp.rules.describe import describe

    reason = f"  {action.reason}" if action.reason else ""
    say(f"{action.status:<8} {action.attempts} tries  {action.key}{reason}")
    say(f"         {in_words(session, action)}, because {describe(action.event)}")


def _follow_actions(path: Path) -> int:
    """Print each action when it is new or its status changes, until the session ends."""
    from autoexp.session.journal import Journal
    from autoexp.session.session import Session

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
