"""Converts a checkpoint of the demo's trainer: weights in single precision, without the optimizer.

python -m autoexp.demo.convert .../iter_0001000 DIRECTORY
"""

import shutil
import sys
from pathlib import Path

import numpy as np


def convert(checkpoint: Path, directory: Path) -> None:
    """Write the model into a directory, of which the demo's evaluation reads."""
    directory.mkdir(parents=True, exist_ok=True)
    with np.load(checkpoint / "model.npz") as shard:
        weights = {name: shard[name].astype(np.float32) for name in shard.files}
    np.savez(directory / "model.npz", **weights)
    shutil.copyfile(checkpoint / "metadata.json", directory / "metadata.json")


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print("usage: python -m autoexp.demo.convert CHECKPOINT DIRECTORY", file=sys.stderr)
        return 2
    convert(Path(arguments[0]), Path(arguments[1]))
    print(f"written: {arguments[1]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
