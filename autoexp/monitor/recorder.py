"""The only writer of a monitor's events: actions, then the journal, then records.

A kill between two of them loses nothing: what was not written is seen again, under the same keys.
Everything here runs on the session's thread.
"""

import errno
from collections.abc import Callable, Iterable
from typing import Concatenate, ParamSpec, TypeVar

from autoexp.errors import SessionHeld
from autoexp.jobs.record import JobRecord
from autoexp.monitor.decide import RuleBook, branches, decide
from autoexp.rules.events import Event
from autoexp.session.action_records import ActionRecord
from autoexp.session.session import Session

# Of one name alone: no retry will write it, and no other file is affected.
_OF_THE_NAME = frozenset({errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ})

P = ParamSpec("P")
T = TypeVar("T")


class Recorder:
    """Decides about events and writes them before any record refers to them."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.book = RuleBook(session.experiment.monitoring, [])
        self.unwritten: list[Event] = []
        """Seen and not yet on disk: kept when a write fails, as on a full disk."""
        self._known_jobs: set[str] = set()
        # On disk, but the rules could not be applied to them.
        self._undecided: list[Event] = []
        # On disk and not yet handed over.
        self._events: list[Event] = []
        self._actions: list[ActionRecord] = []
        self._warnings: list[str] = []
        self._warned: set[str] = set()

    def apply(
        self, change: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Change records by `change(session, ...)`, once what was seen before is on disk."""
        with self.session.writing():
            self.write_down()
            return change(self.session, *args, **kwargs)

    def record_and_decide(self, events: Iterable[Event]) -> None:
        """Record events raised by an action, and let rules react to them."""
        self.unwritten += events
        self.write_down()

    def write_down(self) -> None:
        """Write pending events: first the actions that they call for, then the events.

        Raises OSError when the disk is full or away; what was seen is kept. What fails for a reason
        of its own is a warning, holds up nothing that was seen beside it, and is tried again at the
        next look.
        """
        if not self.unwritten and not self._undecided:
            return
        failed = [
            event for event in (*self._undecided, *self.unwritten) if not self._apply_rules(event)
        ]
        self.unwritten = self._append(self.unwritten)
        self._undecided = failed

    @property
    def is_behind(self) -> bool:
        """True if something that was seen is not on disk, or not decided about."""
        return bool(self.unwritten or self._undecided)

    def _append(self, events: list[Event]) -> list[Event]:
        """Append events to the journal; returns those that cannot be written for now."""
        try:
            self._write(events)
        except (OSError, SessionHeld):
            raise
        except Exception:
            # One of them is at fault: the others are written.
            what = "cannot be recorded"
            return [
                e for e in events if not self.contain(f"{e.key}: {what}", e.job, self._write, [e])
            ]
        return []

    def _write(self, events: list[Event]) -> None:
        self._events += self.session.record(events)

    def _apply_rules(self, event: Event) -> bool:
        """Apply the rules to an event; True if that worked."""
        what = f"{event.key}: its rules cannot be applied"
        return self.contain(what, event.job, self.decide, event)

    def decide(self, event: Event) -> None:
        """Write the actions that an event calls for."""
        known = self.session.actions
        asked = branches(event, known.saves_of(event.job), known)
        for action in (*decide(event, self.book.of(event), known), *asked):
            self.add(action)

    def add(self, action: ActionRecord) -> None:
        """Write an action that was decided."""
        self.session.save_action(action)
        self._actions.append(action)

    def learn_new_jobs(self) -> None:
        """Read the rules of new jobs; their checkpoint may have been complete earlier."""
        new = self.session.jobs.keys() - self._known_jobs
        if not new:
            return
        specs = [job.spec for job in self.session.jobs.values()]
        self.book = RuleBook(self.session.experiment.monitoring, specs)
        for event in self.session.checkpoints():
            if self.book.starts_any(event, new) and not self._apply_rules(event):
                self._undecided.append(event)
        self._known_jobs |= new

    def contain(
        self, what: str, job: str, call: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> bool:
        """Run `call`; True if it returned. An exception becomes a warning of the job.

        A disk that cannot be written at all (OSError) and a lost lease are raised.
        """
        try:
            call(*args, **kwargs)
        except OSError as error:
            if error.errno not in _OF_THE_NAME:
                raise
            self.warn(f"{what} ({error})", self.session.jobs.get(job))
            return False
        except SessionHeld:
            raise
        except Exception as error:
            self.warn(f"{what} ({type(error).__name__}: {error})", self.session.jobs.get(job))
            return False
        return True

    def warn(self, text: str, job: JobRecord | None = None) -> None:
        """Log a warning once, and show it with the job that it is about."""
        if job is not None:
            job.warning = text
        if text not in self._warned:
            self._warned.add(text)
            self._warnings.append(text)

    def take(self) -> tuple[list[Event], list[ActionRecord], list[str]]:
        """Events, actions and warnings since the last call."""
        taken = (self._events, self._actions, self._warnings)
        self._events, self._actions, self._warnings = [], [], []
        return taken
