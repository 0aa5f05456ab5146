"""`autoexp rules test` and `explain`: tests rules on a log; explains the state of a job."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoexp.cli import options

if TYPE_CHECKING:
    from autoexp.session.action_records import ActionRecord


def rules_test(
    preset: Annotated[
        str,
        options.argument("PRESET", "A file of configs/monitoring, by name.", options.rule_presets),
    ],
    log: Annotated[str, options.argument("LOGFILE", "The log to read.")],
    experiment: Annotated[
        list[str] | None,
        options.argument("CONFIG|OVERRIDE", "Such as backend=megatron.", options.configurations),
    ] = None,
    kind: Annotated[
        Literal["train", "cooldown", "baseline"], typer.Option("--kind", help="Whose log it is.")
    ] = "train",
    as_json: options.AsJson = False,
) -> int:
    """Show what a preset would have done; no session, no cluster.

    The exit code is 1 when no rule would have fired, as with grep.

    \b
    Example:
      autoexp rules test megatron_cooldown_single old-run.log backend=megatron
    """
    from autoexp.flows.engine.compose import compose_words
    from autoexp.monitor.replay import Rehearsal
    from autoexp.reports.terminal import say, say_json
    from autoexp.rules.describe import describe, describe_action
    from autoexp.rules.events import LogMatched
    from autoexp.states import Kind

    composed = compose_words([f"monitoring={preset}", *(experiment or [])])
    rehearsal = Rehearsal(composed.experiment, Path(log), Kind(kind))
    if as_json:
        found = list(rehearsal.run())
        say_json(
            {
                "events": [
                    {
                        "event": event.model_dump(mode="json"),
                        "description": describe(event),
                        "actions": [
                            {"action": describe_action(each.action), "when": _keys(each)}
                            for each in actions
                        ],
                    }
                    for event, actions in found
                ],
                "counts": dict(rehearsal.counts),
                "silent": list(rehearsal.silent),
                "reached": rehearsal.reached,
                "warning": rehearsal.warning,
            }
        )
        return 0 if found else 1
    fired = 0
    for event, actions in rehearsal.run():
        fired += 1
        where = f"byte {event.offset}: " if isinstance(event, LogMatched) else ""
        say(f"{where}{describe(event)}")
        if isinstance(event, LogMatched) and event.values:
            say("    " + ", ".join(f"{name}={value}" for name, value in event.values.items()))
        for action in actions:
            conditions = _keys(action)
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


def _keys(action: "ActionRecord") -> list[str]:
    """The keys of an action's conditions."""
    return [next(iter(type(condition).model_fields)) for condition in action.when]


def explain(
    name: options.AnySession = None,
    job: options.AnyJob = None,
    as_json: options.AsJson = False,
) -> int:
    """Explain why a job is in its current state.

    \b
    Examples:
      autoexp explain
      autoexp explain demo-1a2b demo-cd1000
    """
    from autoexp.reports import log_end
    from autoexp.reports.explain import explain_job
    from autoexp.reports.terminal import say, say_json
    from autoexp.session.find import session_path

    explained = explain_job(session_path(name), job)
    record, log = explained.job, log_end.failed_log(explained.job)
    if as_json:
        from autoexp.schemas.outputs import Explanation

        found = Explanation(
            session=explained.session,
            job=record.spec.name,
            state=record.state,
            verdict=record.verdict,
            reason=record.reason,
            sentences=explained.sentences,
            log=record.attempt.log if record.attempt else None,
            log_end=[] if log is None else log.lines(),
        )
        say_json(found.model_dump(mode="json"))
        return 0
    for sentence in explained.sentences:
        say(sentence)
    if log is not None:
        log.say()
    return 0
