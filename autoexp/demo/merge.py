"""Merges checkpoints of the demo's trainer: the weighted sum of their weights, without optimizers.

python -m autoexp.demo.merge CHECKPOINT... --weights W... --output DIRECTORY [--scores FILE]
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from autoexp.demo.evaluate import held_out_loss


def merge(checkpoints: Sequence[Path], weights: Sequence[float], output: Path) -> None:
    """Write the sum, added up in double precision, with the metadata of the last checkpoint.

    It appears under its name once it is whole. Raises SystemExit for checkpoints of other shapes.
    """
    total: dict[str, np.ndarray] = {}
    for checkpoint, weight in zip(checkpoints, weights, strict=True):
        with np.load(checkpoint / "model.npz") as shard:
            for name in shard.files:
                part = shard[name].astype(np.float64) * weight
                if name in total and total[name].shape != part.shape:
                    raise SystemExit(f"{checkpoint}: {name} has another shape than in the others")
                total[name] = total[name] + part if name in total else part
    partial = output.with_name(f"{output.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    merged = {name: array.astype(np.float32) for name, array in total.items()}
    np.savez(partial / "model.npz", **merged)  # type: ignore[arg-type]
    metadata = json.loads((checkpoints[-1] / "metadata.json").read_text())
    pairs = [[str(path), weight] for path, weight in zip(checkpoints, weights, strict=True)]
    (partial / "metadata.json").write_text(json.dumps({**metadata, "merged": pairs}, indent=1))
    if not output.exists():  # else it was made before a kill, of the same inputs
        partial.rename(output)


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m autoexp.demo.merge")
    options.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    options.add_argument("--weights", nargs="+", type=float, required=True)
    options.add_argument("--output", type=Path, required=True, metavar="DIRECTORY")
    options.add_argument("--scores", type=Path, help="JSON file for the validation loss")
    given = options.parse_args(arguments)
    if len(given.weights) != len(given.checkpoints):
        options.error(f"{len(given.weights)} weights for {len(given.checkpoints)} checkpoints")
    if not math.isclose(sum(given.weights), 1, rel_tol=1e-6):
        options.error(f"the weights add up to {sum(given.weights):g}, and not to 1")
    merge(given.checkpoints, given.weights, given.output)
    loss = held_out_loss(given.output)
    print(f"merged {len(given.weights)} checkpoints: validation loss {loss:.4f}", flush=True)
    if given.scores:
        given.scores.write_text(json.dumps({"validation_loss": loss}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
