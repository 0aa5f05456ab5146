"""Exports loss curves as TensorBoard event files."""

from collections.abc import Iterable
from pathlib import Path

from autoexp.errors import BadInput
from autoexp.reports.curves import read_curve
from autoexp.session.session import Session


def write_events(sessions: Iterable[Session], directory: Path) -> list[Path]:
    """Write one folder per job below `directory`, anew each time. Returns the folders.

    Raises BadInput without tensorboardX.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise BadInput(
            "event files need tensorboardX, which is not installed: "
            "pip install 'autoexp[tensorboard]'"
        ) from error
    written = []
    for session in sessions:
        for name, job in session.jobs.items():
            curve = read_curve(session.path, name)
            if not curve.iterations and not job.scores:
                continue
            folder = directory / session.id / name
            _remove_old(folder)
            with SummaryWriter(str(folder)) as writer:
                points = zip(curve.iterations, curve.losses, curve.learning_rates, strict=True)
                for iteration, loss, rate in points:
                    writer.add_scalar("loss", loss, iteration)
                    writer.add_scalar("learning_rate", rate, iteration)
                trained = session.jobs.get(job.spec.parent or "")
                at = trained.iteration if trained else None
                for score, value in job.scores.items():
                    writer.add_scalar(f"score/{score}", value, at or 0)
            written.append(folder)
    return written


def _remove_old(folder: Path) -> None:
    """Remove event files of an earlier export: TensorBoard would draw both."""
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()
