"""A trainer as people write them, with habits of its own and nothing of autoexp in it.

It minimises a noisy quadratic. Checkpoints are `<out>/ckpt/NNNN/state.json`, and `latest` names the
newest one once it is whole.
"""

import argparse
import json
import random
import time
from pathlib import Path


def rate(step: int, options: argparse.Namespace) -> float:
    """Constant, or from `--decay-from` on down to nothing."""
    if options.decay_from is None or step < options.decay_from:
        return options.lr
    done = (step - options.decay_from) / (options.steps - options.decay_from)
    return options.lr * (1 - done**0.5 if options.shape == "1-sqrt" else 1 - done)


def save(folder: Path, step: int, weight: float) -> None:
    """Write a checkpoint, and name it as the newest when it is there."""
    here = folder / f"{step:04d}"
    here.mkdir(parents=True, exist_ok=True)
    (here / "state.json").write_text(json.dumps({"step": step, "weight": weight}))
    (folder / "latest").write_text(str(step))


def main() -> None:
    """Train from the newest checkpoint, if there is one, to `--steps`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--save-every", type=int, default=100)
    parser.add_argument("--save-at", default="", help="further steps, joined by commas")
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--decay-from", type=int)
    parser.add_argument("--shape", choices=("1-sqrt", "straight"), default="straight")
    options = parser.parse_args()

    folder = options.out / "ckpt"
    step, weight = 0, 10.0
    if (folder / "latest").exists():
        newest = int((folder / "latest").read_text())
        state = json.loads((folder / f"{newest:04d}" / "state.json").read_text())
        step, weight = state["step"], state["weight"]
        print(f"resumed at {step}", flush=True)
    while step < options.steps:
        step += 1
        noise = random.Random(step).gauss(0, 1)
        weight -= rate(step, options) * (weight + noise)
        time.sleep(0.01)
        if step % 10 == 0:
            loss, lr = 1 + weight**2, rate(step, options)
            print(f"[{step}/{options.steps}] loss {loss:.5f} lr {lr:.5f}", flush=True)
        also = str(step) in options.save_at.split(",")
        if step % options.save_every == 0 or also or step == options.steps:
            save(folder, step, weight)


if __name__ == "__main__":
    main()
