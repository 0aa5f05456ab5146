"""Small sessions of the demo that run in seconds."""

from collections.abc import Callable
from pathlib import Path

from autoexp.errors import AutoexpError
from autoexp.operations.cancel import cancel_directly
from autoexp.session.session import Session
from tests.flows.commands import autoexp

SMALL = (
    "backend.args.train_iters=300",
    "backend.args.save_interval=50",
    "backend.args.sleep_per_iteration_ms=4",
    "backend.args.lr_warmup_iters=20",
    "backend.args.hidden_size=32",
    "backend.args.global_batch_size=64",
    "monitoring.file_tick_s=0.25",
    "slurm.scheduler_tick_s=0.25",
)
LEARNS = ("backend.args.hidden_size=256", "backend.args.global_batch_size=256")
"""The demo's own model and batch, whose cooldowns end below the trunk; SMALL's do not."""
BRANCHES = "cooldowns=[{at: [100, 200], decay: {iterations: 50}}]"

Make = Callable[..., Path]


def end(path: Path) -> None:
    """End a session's jobs, whoever watches them and whatever the test has made of it."""
    try:
        cancel_directly(path, (), "the tests")
    except AutoexpError:  # above all a monitor that is alive: it has to be asked
        autoexp("cancel", path.name, root=path.parent)


def hold_back(path: Path, name: str = "demo") -> Path:
    """Have a job's trainer begin, and go no further, until the file that is returned is there."""
    gate = path / f"{name}-may-go"
    wait = f'until [ -e {gate} ]; do sleep 0.1; done; exec "$@"'
    edit_job(path, name, lambda command: ["/bin/sh", "-c", wait, "sh", *command])
    return gate


def edit_job(path: Path, name: str, edit: Callable[[list[str]], list[str]]) -> None:
    """Change a planned job's command before the session runs."""
    with Session.hold(path) as (session, _):
        job = session.jobs[name]
        command = tuple(edit(list(job.spec.command)))
        job.spec = job.spec.model_copy(update={"command": command})
        session.save_job(job)
