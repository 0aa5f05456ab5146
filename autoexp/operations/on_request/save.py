"""A checkpoint now, and a cooldown from it: asked for by a person, told to the trainer once.

The request is an action, which is written before and after. A monitor that is killed while it tells
the trainer tells it again: a trainer that saves twice has one more checkpoint.
"""

from typing import NamedTuple

from autoexp import states
from autoexp.errors import BadInput, SessionError
from autoexp.jobs.record import JobRecord
from autoexp.monitor.decide import action_key
from autoexp.rules.actions import Save
from autoexp.rules.events import SaveAsked
from autoexp.schedulers.base import AttemptRef, Scheduler
from autoexp.session.action_records import ActionRecord
from autoexp.session.inbox import SaveRequest
from autoexp.session.session import Session
from autoexp.states import Kind

RULE = "save"
_SAVE, _WARN = "HUP", "USR1"
"""Signals to the payload: it has the trainer save, or warns it as before its time limit."""


class Telling(NamedTuple):
    """Tell the trainer of a running attempt to save."""

    ref: AttemptRef
    job: str
    restart: bool

    @property
    def title(self) -> str:
        return f"save {self.job}"

    def run(self, scheduler: Scheduler) -> str:
        return scheduler.tell(self.ref, _WARN if self.restart else _SAVE)


def refuse(job: JobRecord, request: SaveRequest) -> None:
    """Raise BadInput, with what to do, for a job that cannot be told to save now."""
    name, attempt = job.spec.name, job.attempt
    if not job.spec.kind.trains:
        raise BadInput(f"{name}: trains nothing, so there is nothing to save")
    if request.cooldown is not None and job.spec.kind is not Kind.TRAIN:
        raise BadInput(
            f"{name}: a cooldown branches from a training, and this is a {job.spec.kind}"
        )
    if job.is_ending:
        raise BadInput(f"{name}: is over, or ends right now")
    if attempt is None or attempt.state != "RUNNING":
        state = states.WAITING if attempt is None else attempt.state
        raise BadInput(f"{name}: does not run ({state}), so it cannot save")
    if attempt.name != attempt.key:
        raise BadInput(f"{name}: was started by hand: signal it yourself, as it wants it")
    if not attempt.first_logged:
        raise BadInput(
            f"{name}: has logged no iteration yet in this attempt; try again once it has"
        )
    if not request.restart and job.spec.trainer.save_now is None:
        raise BadInput(
            f"{name}: {job.spec.backend.kind} has no way to save and go on; with `--restart` it "
            "saves and ends as before its time limit, and goes on in a new attempt"
        )


def ask(session: Session, request: SaveRequest) -> str:
    """Write the request as an action; repeatable. Raises BadInput as `refuse`."""
    job = session.job(request.job)
    number = job.attempt.number if job.attempt else 0
    asked = SaveAsked(
        job=request.job,
        attempt=number,
        request=request.request,
        saved=max(job.checkpoints, default=0),
        by=request.by,
    )
    note = f"{request.by}: asks {request.job} for a checkpoint"
    key = action_key(RULE, asked.key, 0)
    if key not in session.actions:
        refuse(job, request)
        action = Save(restart=request.restart, cooldown=request.cooldown)
        session.save_action(ActionRecord(key=key, rule=RULE, event=asked, action=action))
    session.record([asked])
    return note


def telling(session: Session, key: str) -> Telling:
    """The effect of an action; raises SessionError where its attempt has ended meanwhile."""
    action = session.actions[key]
    assert isinstance(action.event, SaveAsked) and isinstance(action.action, Save)
    job = session.jobs[action.event.job]
    attempt = job.attempt
    if attempt is None or attempt.number != action.event.attempt or attempt.state != "RUNNING":
        raise SessionError(f"{job.spec.name}: attempt {action.event.attempt} has ended")
    return Telling(session.ref(attempt), job.spec.name, action.action.restart)
