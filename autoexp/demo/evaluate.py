"""Evaluates a checkpoint of the demo's trainer: the loss on text that it was not trained on.

python -m autoexp.demo.evaluate .../iter_0001000 [--scores scores.json]
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from autoexp.demo import model as language


def held_out_loss(checkpoint: Path, mix: str | None = None) -> float:
    """Nats per character on random windows of the checkpoint's language, or of a kind of text."""
    args = json.loads((checkpoint / "metadata.json").read_text())["args"]
    sizes = language.Sizes(args["seq_length"], args["embedding_size"], args["hidden_size"])
    model = language.CharacterModel(sizes, args["seed"])
    with np.load(checkpoint / "model.npz") as shard:
        for name, array in model.weights.items():
            array[...] = shard[name]
    text = language.draw_mix(args["seed"], mix).text
    return language.HeldOut(text, args["seed"], sizes.context).loss(model)


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(prog="python -m autoexp.demo.evaluate")
    options.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    options.add_argument("--mix", help="kinds of text, as web:3,code:1 (web)")
    options.add_argument("--scores", type=Path, help="JSON file for the score")
    given = options.parse_args(arguments)
    loss = held_out_loss(given.checkpoint, given.mix)
    print(f"{given.checkpoint.name}: loss {loss:.4f} nats per character", flush=True)
    if given.scores:
        given.scores.write_text(json.dumps({"held_out_loss": loss}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
