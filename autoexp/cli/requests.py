"""`autoexp retry` and `budget`: what is asked of a session's monitor."""

import argparse
import getpass
import time
from pathlib import Path

from autoexp.errors import BadInput
from autoexp.jobs.budget import total
from autoexp.jobs.gpu_hours import spent
from autoexp.operations.retry import check_retryable
from autoexp.reports.explain import in_words
from autoexp.reports.terminal import say, say_json
from autoexp.rules.describe import describe
from autoexp.session.action_records import ActionRecord
from autoexp.session.find import live_holder, session_path
from autoexp.session.inbox import ActionRequest, BudgetRequest, RetryRequest, enqueue
from autoexp.session.journal import Journal
from autoexp.session.session import Session
from autoexp.states import Verdict


def retry(options: argparse.Namespace) -> int:
    """Run failed jobs again."""
    session = Session.load(session_path(options.session))
    for name in options.jobs:
        check_retryable(session, name)
    failed = options.jobs or [n for n, j in session.jobs.items() if j.verdict is Verdict.FAILED]
    if not failed:
        say(f"{session.id}: no job has failed")
        return 0
    by = f"autoexp retry by {getpass.getuser()}"
    enqueue(session.path, RetryRequest(jobs=tuple(options.jobs), by=by))
    say(f"{', '.join(failed)}: to be run again ({_whom(session)})")
    return 0


def budget(options: argparse.Namespace) -> int:
    """Show planned and spent GPU hours; change where the session stops."""
    session = Session.load(session_path(options.session))
    if "stop_above" in options:
        by = f"autoexp budget by {getpass.getuser()}"
        request = BudgetRequest(stop_above=options.stop_above, by=by)
        enqueue(session.path, request)
        say(f"{session.id}: asked to change it ({_whom(session)})")
        return 0
    most = session.experiment.budget.stop_above
    say(f"planned  {total(job.spec for job in session.jobs.values())}")
    say(f"spent    {spent(session.jobs.values()):.2f} GPU hours")
    say(f"stops    {'never' if most is None else f'above {most:g} GPU hours'}")
    return 0


def _whom(session: Session) -> str:
    if live_holder(session) is not None:
        return f"asked the monitor of {session.id}"
    return f"no monitor is running: autoexp resume {session.id}"


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
    request = ActionRequest(key=action.key, verb=options.verb, by=by)
    enqueue(session.path, request)
    asked = "asked the monitor" if live_holder(session) else "no monitor is running: autoexp resume"
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
