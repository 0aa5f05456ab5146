"""A large session as it lies on disk: trainings and their cooldowns, actions, a long journal.

The records are real ones, made once and written again under other names: ten thousand of them are
on disk within seconds.
"""

from pathlib import Path

from autoexp.backends.protocol import Branch
from autoexp.jobs.record import JobRecord
from autoexp.model import now
from autoexp.monitor.decide import action_key
from autoexp.rules.actions import Start
from autoexp.rules.events import CheckpointComplete, StateChanged
from autoexp.session.action_records import ActionRecord, ActionStatus
from autoexp.session.journal import Entry, encode
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict
from bench.world import sessions

FAMILY = 20
"""A training and its cooldowns."""
_ENDED = {"state": "COMPLETED", "verdict": Verdict.FINISHED, "exit_code": 0}


def large(root: Path, jobs: int, events: int) -> Path:
    """A session of so many jobs and events; one training in ten still runs."""
    path = sessions.build(root, 1, "monitoring=production", lines=1, saves=1)
    session = Session.load(path)
    (trunk,) = session.jobs.values()
    texts = _Texts(session, trunk)
    names: list[str] = []
    with sessions.unsynced():
        for number in range(jobs):
            family, place = divmod(number, FAMILY)
            name = f"f{family:05d}" + (f"-cd{place}" if place else "")
            is_running = place == 0 and family % 10 == 0
            (path / "jobs" / f"{name}.json").write_text(
                texts.record(name, f"f{family:05d}", place, is_running=is_running)
            )
            if place:
                key, text = texts.action(name, f"f{family:05d}", place)
                (path / "actions" / f"{key}.json").write_text(text)
            names.append(name)
        (path / "jobs" / f"{trunk.spec.name}.json").unlink()
        session.meta.jobs = names
        session.save_meta()
        (path / "events.jsonl").write_bytes(b"".join(texts.events(names, events)))
    sessions.age(path)
    return path


class _Texts:
    """The files of one job, by the words in which those of others differ."""

    def __init__(self, session: Session, trunk: JobRecord) -> None:
        (path := session.path / "actions").mkdir(exist_ok=True)
        self._first, self._actions = trunk.spec.name, path
        attempt = trunk.attempts[0].model_copy(
            update={**_ENDED, "ended_at": trunk.attempts[0].started_at}
        )
        over = {"attempts": [attempt], "verdict": Verdict.FINISHED, "reason": "reached its target"}
        branch = Branch(iteration=7777777, decay_iterations=100, shape="linear", min_lr=0.0)
        changes = {"kind": Kind.COOLDOWN, "parent": "PARENT", "branch": branch, "name": "NAME"}
        cooldown = trunk.spec.model_copy(update=changes)
        self._running = trunk.model_dump_json(indent=1)
        self._trunk = trunk.model_copy(update=over).model_dump_json(indent=1)
        of_cooldown = trunk.model_copy(update={**over, "spec": cooldown})
        self._cooldown = of_cooldown.model_dump_json(indent=1)
        self._record = ActionRecord(
            key="KEY",
            rule="start-NAME",
            event=_saved("PARENT", 7777777),
            action=Start(job="NAME"),
            status=ActionStatus.DONE,
        ).model_dump_json(indent=1)

    def record(self, name: str, parent: str, place: int, *, is_running: bool) -> str:
        """The record of a job."""
        if place == 0:
            return (self._running if is_running else self._trunk).replace(self._first, name)
        named = self._cooldown.replace("NAME", name).replace("PARENT", parent)
        return named.replace("7777777", str(place * 100)).replace(self._first, name)

    def action(self, name: str, parent: str, place: int) -> tuple[str, str]:
        """The action that started a cooldown, and its key."""
        key = action_key(f"start-{name}", _saved(parent, place * 100).key, 0)
        text = self._record.replace("KEY", key).replace("NAME", name).replace("PARENT", parent)
        return key, text.replace("7777777", str(place * 100))

    def events(self, names: list[str], count: int) -> "list[bytes]":
        """Lines of the journal: a checkpoint in four, changes of state for the rest."""
        at = now()
        trunks = names[::FAMILY]
        lines = []
        for number in range(count):
            event: CheckpointComplete | StateChanged
            if number % 4 == 0:
                saved = number // 4
                event = _saved(trunks[saved % len(trunks)], 100 * (saved // len(trunks) + 1))
            else:
                job = names[number % len(names)]
                event = StateChanged(
                    job=job, attempt=1, position=number, old="PENDING", new="RUNNING"
                )
            lines.append(encode(Entry(at, event)))
        return lines


def _saved(job: str, iteration: int) -> CheckpointComplete:
    path = f"/scratch/output/{job}/checkpoints/{sessions.folder_name(iteration)}"
    return CheckpointComplete(job=job, iteration=iteration, path=path)
