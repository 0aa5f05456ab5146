"""The commands about rules: try them on a log, explain what they did."""

import argparse
from pathlib import Path

from autoexp.errors import BadInput
from autoexp.flows.engine.compose import compose_words
from autoexp.monitor.replay import Rehearsal
from autoexp.reports.explain import explain as sentences
from autoexp.reports.terminal import say
from autoexp.rules.describe import describe, describe_action
from autoexp.rules.events import LogMatched
from autoexp.session.find import session_path
from autoexp.session.session import Session
from autoexp.states import Kind


def rules_test(options: argparse.Namespace) -> int:
    """Run a preset over a log; 1 when nothing would have fired, as grep answers."""
    composed = compose_words([f"monitoring={options.preset}", *options.experiment])
    rehearsal = Rehearsal(composed.experiment, Path(options.log), Kind(options.kind))
    fired = 0
    for event, actions in rehearsal.run():
        fired += 1
        where = f"byte {event.offset}: " if isinstance(event, LogMatched) else ""
        say(f"{where}{describe(event)}")
        if isinstance(event, LogMatched) and event.values:
            say("    " + ", ".join(f"{name}={value}" for name, value in event.values.items()))
        for action in actions:
            conditions = [next(iter(type(condition).model_fields)) for condition in action.when]
            when = f"  when {', '.join(conditions)}" if conditions else ""
            say(f"    -> {describe_action(action.action)}{when}")
    for name, count in rehearsal.counts.items():
        if count > 1:
            say(f"{name}: {count} lines")
    if rehearsal.warning is not None:
        say(rehearsal.warning)
    reached = "no iteration" if rehearsal.reached is None else f"iteration {rehearsal.reached}"
    say(f"{fired} events, up to {reached}; silent: {', '.join(rehearsal.silent) or 'no rule'}")
    return 0 if fired else 1


def explain(options: argparse.Namespace) -> int:
    """Explain why a job is in its current state."""
    session = Session.load(session_path(options.session))
    job = session.jobs.get(options.job)
    if job is None:
        raise BadInput(f"{options.job}: no such job; {session.id} has: {', '.join(session.jobs)}")
    for sentence in sentences(session, job):
        say(sentence)
    return 0
