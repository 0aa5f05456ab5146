"""Evaluates a checkpoint of the demo's trainer: the loss on text that it was not trained on.

python -m autoexp.demo.evaluate .../iter_0001000 [--scores scores.json]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from autoexp.demo import model as language

_WINDOWS = 4096
# The batches of the training come from the third stream of the seed; this is another one.
_STREAM = 7


def held_out_loss(checkpoint: Path) -> float:
    """Nats per character on random windows of the checkpoint's language."""
    args = json.loads((checkpoint / "metadata.json").read_text())["args"]
    sizes = language.Sizes(args["seq_length"], args["embedding_size"], args["hidden_size"])
    model = language.CharacterModel(sizes, args["seed"])
    with np.load(checkpoint / "model.npz") as shard:
        for name, array in model.weights.items():
            array[...] = shard[name]
    text = language.draw_language(args["seed"]).text
    dice = np.random.default_rng([args["seed"], _STREAM])
    lines = dice.integers(0, len(text), (_WINDOWS, 1))
    starts = dice.integers(0, text.shape[1] - sizes.context, (_WINDOWS, 1))
    return float(model.loss_and_gradient(text[lines, starts + np.arange(sizes.context + 1)]))


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m autoexp.demo.evaluate")
    options.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    options.add_argument("--scores", type=Path, help="JSON file for the score")
    given = options.parse_args(arguments)
    loss = held_out_loss(given.checkpoint)
    print(f"{given.checkpoint.name}: loss {loss:.4f} nats per character", flush=True)
    if given.scores:
        given.scores.write_text(json.dumps({"held_out_loss": loss}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
