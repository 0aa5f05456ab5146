"""Small experiments, sessions, jobs and attempts, made of a few words."""

from pathlib import Path
from typing import Any

from autoexp.backends.demo import DemoBackend
from autoexp.config.compose import Composed
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.model import now
from autoexp.planning.study import plan_study
from autoexp.resources.machines import LocalMachine
from autoexp.session import create as creation
from autoexp.session import find
from autoexp.session.meta import new_id, output_root
from autoexp.session.session import Session
from autoexp.states import Kind, Verdict

# A trunk of 300 iterations with checkpoints at 100, 200 and 300, and two cooldowns of 50.
TINY = (
    "project.name=tiny",
    "backend.args.train_iters=300",
    "backend.args.save_interval=100",
    "monitoring.save_progress_every_s=0",
    "cooldowns=[{at: [100, 200], decay: {iterations: 50}}]",
)


def create(composed: Composed, root: Path, *, session_id: str | None = None, **others: Any) -> Path:
    """A new session of what is composed, planned as `autoexp run` does."""
    decided = find.claimed(others["flow_run_id"], root) if "flow_run_id" in others else None
    name = decided or session_id or new_id(composed.experiment.project.name)
    plan = plan_study(composed, output_root(composed.experiment, root / name))
    return creation.create(composed, plan, root, session_id=name, **others)


def create_launched(composed: Composed, root: Path, *, session_id: str) -> Path:
    """A new session whose training has finished, and whose cooldowns are all to be submitted."""
    path = create(composed, root, session_id=session_id)
    session = Session.load(path)
    for job in session.jobs.values():
        if job.spec.branch is None:
            session.change_job(job, verdict=Verdict.FINISHED)
        else:
            session.change_job(job, launched=True)
    return path


def spec_of(*command: str, directory: Path = Path("/out"), **changes: Any) -> JobSpec:
    """A job of the demo backend on this machine that writes in `directory`."""
    fields: dict[str, Any] = {
        "name": "j",
        "kind": Kind.TRAIN,
        "backend": DemoBackend(),
        "machine": LocalMachine(),
        "command": command,
        "output_dir": str(directory),
        "save_dir": str(directory / "checkpoints"),
    }
    return JobSpec(**fields | changes)


def attempt_of(key: str = "s1-j-a1", log: str = "/log", **changes: Any) -> Attempt:
    """The first attempt of a job."""
    fields: dict[str, Any] = {"number": 1, "key": key, "name": key, "log": log}
    return Attempt(**fields | {"intended_at": now()} | changes)
