"""Tests rules on an existing log, without a session or a cluster."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from autoexp.config.experiment import Experiment
from autoexp.errors import BadInput
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.logs.tail import LookBudget
from autoexp.model import now
from autoexp.monitor.decide import RuleBook, decide
from autoexp.monitor.job_watch import JobWatch
from autoexp.planning.plan import make_plan
from autoexp.rules.events import Event
from autoexp.session.action_records import ActionRecord
from autoexp.states import Kind


class Fired(NamedTuple):
    """An event and the actions that rules would have started."""

    event: Event
    actions: list[ActionRecord]


class Rehearsal:
    """Reads a log as if a job of an experiment were writing it."""

    def __init__(self, experiment: Experiment, log: Path, kind: Kind) -> None:
        """Raises BadInput for a missing log, or when the experiment has no job of this kind."""
        if not log.is_file():
            raise BadInput(f"{log}: no such file")
        plan = make_plan(experiment, Path("/rehearsal"))
        specs = [spec for spec in plan.jobs if spec.kind is kind]
        if not specs:
            raise BadInput(f"the experiment has no {kind}: add `{kind}s`, or leave --kind out")
        self._attempt = Attempt(
            number=1, key="rehearsal", name="rehearsal", log=str(log), intended_at=now()
        )
        self._job = JobRecord(spec=specs[0], attempts=[self._attempt], launched=True)
        self._book = RuleBook(experiment.monitoring, plan.jobs)

    def run(self) -> Iterator[Fired]:
        """The events and actions, in the order of the log."""
        watched = self._book.watched(self._job.spec)
        history: set[str] = set()
        watch, final, reads_on = JobWatch(), False, True
        while reads_on:
            budget = LookBudget.of_one_log()
            for event in watch.read_log(self._job, self._attempt, watched, budget, final=final):
                actions = decide(event, self._book.of(event), history)
                history |= {action.key for action in actions}
                yield Fired(event, actions)
            reads_on = not (watch.at_end and final)
            # Only at its end is it read as an ended job's log, of which much would be left out.
            final = watch.at_end

    @property
    def counts(self) -> dict[str, int]:
        """Number of matching lines by rule."""
        return self._attempt.matches

    @property
    def silent(self) -> list[str]:
        """The rules about log lines and metrics that did not fire."""
        watched = self._book.watched(self._job.spec)
        return [
            name
            for rules in (watched.log_rules, watched.metric_rules, watched.validation_rules)
            for name in rules
            if name not in self.counts
        ]

    @property
    def warning(self) -> str | None:
        """Parts of the log that could not be read."""
        return self._job.warning

    @property
    def reached(self) -> int | None:
        """The last iteration in the log."""
        return self._job.iteration
