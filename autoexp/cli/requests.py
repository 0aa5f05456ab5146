"""`autoexp retry` and `budget`: what is asked of a session's monitor."""

import argparse
import getpass

from autoexp.cli.find import live_holder, session_path
from autoexp.jobs.budget import total
from autoexp.jobs.gpu_hours import spent
from autoexp.operations.retry import refuse
from autoexp.reports.terminal import say
from autoexp.session.inbox import BudgetRequest, RetryRequest, put
from autoexp.session.session import Session
from autoexp.states import Verdict


def retry(options: argparse.Namespace) -> int:
    """Run failed jobs again."""
    session = Session.load(session_path(options.session))
    for name in options.jobs:
        refuse(session, name)
    failed = options.jobs or [n for n, j in session.jobs.items() if j.verdict is Verdict.FAILED]
    if not failed:
        say(f"{session.id}: no job has failed")
        return 0
    by = f"autoexp retry by {getpass.getuser()}"
    put(session.path, RetryRequest(jobs=tuple(options.jobs), by=by))
    say(f"{', '.join(failed)}: to be run again ({_whom(session)})")
    return 0


def budget(options: argparse.Namespace) -> int:
    """Show planned and spent GPU hours; change where the session stops."""
    session = Session.load(session_path(options.session))
    if "stop_above" in options:
        by = f"autoexp budget by {getpass.getuser()}"
        request = BudgetRequest(stop_above=options.stop_above, by=by)
        put(session.path, request)
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
    return f"nobody watches: autoexp resume {session.id}"
