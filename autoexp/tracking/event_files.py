"""TensorBoard: one event file a job, appended to, in which what was rolled back vanishes."""

import io
from pathlib import Path
from typing import Any

from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

from autoexp.storage import atomic
from autoexp.tracking.curve import Point, Rewind
from autoexp.tracking.tracker import Batch, Kept, TrackedJob, TrackerAway

_VERSION = "brain.Event:2"
"""From this one on TensorBoard drops what a START at an iteration supersedes."""


class _Records(RecordWriter):  # type: ignore[misc]
    """Records in memory: the library's own writer begins a new file each time."""

    def __init__(self) -> None:
        self._writer = io.BytesIO()

    def content(self) -> bytes:
        return self._writer.getvalue()


class EventFiles:
    """Writes `DIRECTORY/SESSION/JOB/events.out.tfevents.…`."""

    name = "tensorboard"
    rest_s = 0.0

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def send(self, job: TrackedJob, batch: Batch) -> Kept:
        """Append a batch behind what is known to be in the file; raises TrackerAway.

        What a killed process has written beyond that is cut off first.
        """
        folder = self._directory / job.owner.session / job.name
        begun = str(batch.kept.get("file") or f"events.out.tfevents.{batch.at_ms // 1000}.autoexp")
        size = int(batch.kept.get("bytes", 0))
        raw = _records(job, batch, is_new=size == 0)
        path = folder / begun
        try:
            atomic.make_directory(folder, by_umask=True)
            if size and (not path.exists() or path.stat().st_size < size):
                raise TrackerAway(f"{path}: what was written there is gone")
            if path.exists():
                atomic.cut(path, size)
            atomic.append(path, raw, by_umask=True)
        except OSError as error:
            raise TrackerAway(atomic.in_words(error)) from error
        return {"file": begun, "bytes": size + len(raw)}

    def close(self) -> None:
        """Nothing is open between batches."""


def _records(job: TrackedJob, batch: Batch, *, is_new: bool) -> bytes:
    records, at = _Records(), batch.at_ms / 1000

    def add(**event: Any) -> None:
        records.write(event_pb2.Event(wall_time=at, **event).SerializeToString())

    if is_new:
        add(file_version=_VERSION)
    for step in batch.steps:
        match step:
            case Rewind(_, to):
                start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                add(session_log=start, step=to)
            case Point(iteration, metrics):
                for name, value in metrics.items():
                    add(summary=scalar(name, value), step=iteration)
    for name, value in job.scores.items():
        add(summary=scalar(f"score/{name}", value), step=batch.last)
    return records.content()
