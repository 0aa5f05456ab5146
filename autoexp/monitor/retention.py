"""Decides at a look which checkpoints are measured and deleted; each as an action, once."""

from autoexp.monitor.decide import action_key
from autoexp.monitor.recorder import Recorder
from autoexp.retention.decision import Standing, over_budget, standings, used_bytes
from autoexp.retention.policy import Retention
from autoexp.retention.uses import Situation
from autoexp.rules.actions import Delete, Measure
from autoexp.rules.events import CheckpointComplete, DiskBudgetPassed
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.checkpoint_uses import situation_of
from autoexp.session.session import Session

MEASURE, DELETE = "retention-measure", "retention-delete"
"""The rules that `retention` implies."""
KEPT = "kept: "
"""How the reason of a deletion begins that was not done, because something came to need it."""
_AT_ONCE = 20


class RetentionWatch:
    """Asks for deletions when something has happened since the last time; else costs nothing."""

    def __init__(self, session: Session, recorder: Recorder) -> None:
        self._session = session
        self._recorder = recorder
        self._seen: tuple[int, ...] = ()

    def look(self) -> None:
        """Write the actions that are called for."""
        retention = self._session.experiment.retention
        if retention is None or (now := self._stamp()) == self._seen:
            return
        situation = situation_of(self._session, retention)
        found = standings(situation)
        asked = sum(self._measure(event) for event in situation.checkpoints)
        if not retention.dry_run:
            asked += self._delete(found)
        self._watch_budget(situation, found, retention)
        # What it has asked for itself is no news; what is left comes with the next look.
        self._seen = self._stamp() if asked < _AT_ONCE else now

    def _stamp(self) -> tuple[int, ...]:
        session = self._session
        return len(session.journal), len(session.actions), session.actions.open_count

    def _measure(self, event: CheckpointComplete) -> int:
        job = self._session.jobs.get(event.job)
        if job is None or event.iteration in job.sizes:
            return 0
        return self._ask(MEASURE, event)

    def _delete(self, found: list[Standing]) -> int:
        going = [standing.checkpoint for standing in found if standing.goes]
        return sum(self._ask(DELETE, event) for event in going[:_AT_ONCE])

    def _ask(self, rule: str, event: CheckpointComplete) -> int:
        """Write an action, or one that was given up for a time again; returns 1 if it did."""
        key = action_key(rule, event.key, 0)
        known = self._session.actions.get(key)
        if known is None:
            action = Delete() if rule == DELETE else Measure()
            self._recorder.add(ActionRecord(key=key, rule=rule, event=event, action=action))
            return 1
        if known.status is ActionStatus.FAILED and (known.reason or "").startswith(KEPT):
            self._session.change_action(known, status=ActionStatus.PENDING, reason=None)
            return 1
        return 0

    def _watch_budget(
        self, situation: Situation, found: list[Standing], retention: Retention
    ) -> None:
        message = over_budget(situation, found)
        if message is None or retention.budget is None:
            return
        used = used_bytes(situation.jobs)
        event = DiskBudgetPassed(bytes=used, budget=retention.budget, message=message)
        if not self._session.journal.has(event.key):
            self._recorder.warn(message)
            self._recorder.record_and_decide([event])
