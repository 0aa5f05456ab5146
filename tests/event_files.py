"""TensorBoard's event files, read back."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event


def events(folder: Path) -> list[Event]:
    """The events of the only file in a folder, in their order."""
    (file,) = folder.glob("events.out.tfevents.*")
    raw, place, found = file.read_bytes(), 0, []
    while place < len(raw):
        (length,) = struct.unpack_from("<Q", raw, place)
        found.append(Event.FromString(raw[place + 12 : place + 12 + length]))
        place += 12 + length + 4
    return found
