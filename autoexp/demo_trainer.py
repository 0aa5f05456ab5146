"""A real, tiny pretraining run: Megatron's arguments, log lines and checkpoints in seconds.

    python -m autoexp.demo_trainer --save DIR --load DIR --train-iters 2000 --save-interval 200

It trains a character model on a synthetic language of known entropy (`autoexp.demo_language`), so
that a cooldown really gains something. Needs NumPy only, no GPU, one core; also runs by its path.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

# Before NumPy is imported: more threads would cost time at these sizes, and the same last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
if not __package__:  # run by its path: its own folder is on sys.path, and not the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from autoexp import demo_language as language
from autoexp.demo_language import Characters, Learner

TRACKER = "latest_checkpointed_iteration.txt"
PARTIAL = ".partial-save"  # no "iter" and no number in it: nobody takes it for a checkpoint

# A run is resumed with other values only when told so; named as in Megatron's message.
_SCHEDULE = {
    "lr": "learning rate",
    "min_lr": "minimum learning rate",
    "lr_warmup_iters": "warmup iterations",
    "lr_decay_iters": "total number of iterations",
    "lr_decay_style": "learning rate decay style",
    "lr_wsd_decay_iters": "WSD decay iterations",
    "lr_wsd_decay_style": "WSD decay style",
    "weight_decay": "weight decay",
}


def schedule(args: Namespace) -> language.Schedule:
    """The learning rate that the arguments ask for."""
    fields = dataclasses.fields(language.Schedule)
    return language.Schedule(**{field.name: getattr(args, field.name) for field in fields})


def train(run: Learner, text: Characters, args: Namespace, stop: list[int]) -> None:
    """Train to the end, or to the end of the iteration in which a signal lands in `stop`."""
    losses: list[float] = []
    begun = time.perf_counter()
    while run.iteration < args.train_iters:
        if run.iteration + 1 == args.fail_at_iteration:
            raise RuntimeError(f"--fail-at-iteration {args.fail_at_iteration}: failing as asked")
        if run.iteration + 1 == args.nan_at_iteration:
            run.model.weights["output_bias"][:] = math.nan
        loss, grad_norm = run.step(text, args.global_batch_size, schedule(args).rate(run.iteration))
        time.sleep(args.sleep_per_iteration_ms / 1000)
        losses.append(loss)
        if run.iteration % args.log_interval == 0:
            milliseconds = (time.perf_counter() - begun) * 1000 / len(losses)
            say(iteration_line(run, args, losses, grad_norm, milliseconds))
            losses, begun = [], time.perf_counter()

        stopping = bool(stop)
        due = args.save_interval and run.iteration % args.save_interval == 0
        if due or stopping or run.iteration == args.train_iters:
            paused = time.perf_counter()
            save_checkpoint(run, args)
            begun += time.perf_counter() - paused
        if stopping:
            # Megatron says SIGTERM whichever signal it was.
            say(f"[exiting program after receiving SIGTERM.] datetime: {now()} ")
            return


def iteration_line(
    run: Learner, args: Namespace, losses: list[float], grad_norm: float, milliseconds: float
) -> str:
    """Megatron's line: the mean loss since the last one, the learning rate of the next step."""
    parts = [
        f" [{now()}] iteration {run.iteration:8d}/{args.train_iters:8d}",
        f"consumed samples: {run.consumed_samples:12d}",
        f"elapsed time per iteration (ms): {milliseconds:.1f}",
        f"learning rate: {schedule(args).rate(run.iteration):.6E}",
        f"global batch size: {args.global_batch_size:5d}",
    ]
    mean = sum(losses) / len(losses)
    if mean >= 0:  # so a NaN is left out, as Megatron leaves it out
        parts.append(f"lm loss: {mean:.6E}")
    # Megatron counts a NaN here only when it skipped the step, which this trainer never does.
    parts += [f"grad norm: {grad_norm:.3f}", f"number of skipped iterations: {0:3d}"]
    return " | ".join([*parts, f"number of nan iterations: {0:3d} |"])


def save_checkpoint(run: Learner, args: Namespace) -> None:
    """Write a folder under another name, rename it once it is on disk, then move the tracker."""
    say(f"[{now()}] saving checkpoint at iteration {run.iteration:7d} to {args.save} in npz format")
    partial, folder = args.save / PARTIAL, args.save / f"iter_{run.iteration:07d}"
    if partial.exists():  # of a save that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    write_checkpoint(run, args, partial)
    if folder.exists():  # torn, or complete but killed before the tracker moved
        shutil.rmtree(folder)
    partial.rename(folder)
    sync(args.save)

    tracker = args.save / f"{PARTIAL}.tracker"
    tracker.write_text(str(run.iteration))
    sync(tracker)
    tracker.replace(args.save / TRACKER)
    sync(args.save)
    delete_older_checkpoints(run, args)
    done = f"  successfully saved checkpoint from iteration {run.iteration:7d} to {args.save}"
    say(f"{done} [ t 1/1, p 1/1 ]")


def write_checkpoint(run: Learner, args: Namespace, folder: Path) -> None:
    """Shards, their sizes, and last `metadata.json`, as Megatron's torch_dist format has it."""
    np.savez(folder / "model.npz", **run.model.weights)  # type: ignore[arg-type]
    np.savez(folder / "optimizer.npz", first=run.optimizer.first, second=run.optimizer.second)
    (folder / "rng.json").write_text(json.dumps(run.batches.bit_generator.state))
    time.sleep(args.slow_save_s)
    sizes = {shard.name: shard.stat().st_size for shard in folder.iterdir()}
    (folder / ".metadata").write_text(json.dumps(sizes))
    state = {"iteration": run.iteration, "consumed_samples": run.consumed_samples}
    metadata = {**state, "args": vars(args)}
    (folder / "metadata.json").write_text(json.dumps(metadata, indent=1, default=str))
    for path in (*folder.iterdir(), folder):
        sync(path)


def sync(path: Path) -> None:
    """Return when a file or folder is on disk, not merely in the node's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def delete_older_checkpoints(run: Learner, args: Namespace) -> None:
    """Keep the newest and every --save-retain-interval's; like Megatron, leave symlinks alone."""
    for folder in args.save.glob("iter_" + "[0-9]" * 7) if args.save_retain_interval else ():
        iteration = int(folder.name.removeprefix("iter_"))
        kept = iteration >= run.iteration or iteration % args.save_retain_interval == 0
        if not kept and not folder.is_symlink():
            shutil.rmtree(folder)


def load_checkpoint(run: Learner, args: Namespace) -> None:
    """Continue from the checkpoint that the tracker names; one that cannot be read is exit 1."""
    tracker = args.load / TRACKER
    if not tracker.exists():
        if args.exit_on_missing_checkpoint:
            raise SystemExit(f"no checkpoint to start from: {tracker} does not exist")
        say(f"WARNING: could not find the metadata file {tracker}, will start from random")
        return
    named = tracker.read_text().strip()
    if not named.isdecimal():
        raise SystemExit(f"{tracker} holds {named!r}, which is no iteration. Write one into it")
    folder = args.load / f"iter_{int(named):07d}"
    say(f" loading checkpoint from {args.load} at iteration {int(named)}")
    try:
        metadata = json.loads((folder / "metadata.json").read_text())
        sizes = json.loads((folder / ".metadata").read_text())
        for name, size in sizes.items():
            if (found := (folder / name).stat().st_size) != size:
                raise ValueError(f"{name} has {found} bytes instead of {size}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"could not load the checkpoint {folder}: {error}") from error
    refuse_changes(metadata["args"], args)

    with np.load(folder / "model.npz") as shard:
        for name, array in run.model.weights.items():
            array[...] = shard[name]
    with np.load(folder / "optimizer.npz") as shard:
        run.optimizer.first[:], run.optimizer.second[:] = shard["first"], shard["second"]
    run.batches.bit_generator.state = json.loads((folder / "rng.json").read_text())
    run.iteration, run.consumed_samples = metadata["iteration"], metadata["consumed_samples"]
    say(f"  successfully loaded checkpoint from {args.load} at iteration {run.iteration}")


def refuse_changes(saved: dict[str, Any], args: Namespace) -> None:
    """Exit 1 when the checkpoint was trained with another model, language or schedule."""
    # The language comes from the seed, the arrays' shapes from the sizes.
    for name in ("seed", "seq_length", "embedding_size", "hidden_size"):
        if saved[name] != getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise SystemExit(f"{flag} is {getattr(args, name)}, the checkpoint's {saved[name]}")
    for name, words in {} if args.override_opt_param_scheduler else _SCHEDULE.items():
        wsd_only = name.startswith("lr_wsd") and args.lr_decay_style == "constant"
        if not wsd_only and saved[name] != getattr(args, name):
            both = f"class input value {getattr(args, name)} and checkpoint value {saved[name]}"
            raise SystemExit(f"OptimizerParamScheduler: {both} for {words} do not match")


def say(line: str) -> None:
    print(line, flush=True)  # a pipe is block-buffered, and a killed job would lose its last lines


def now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """The arguments under Megatron's names; bad ones, alone or together, are exit 2."""
    parser = ArgumentParser(
        usage="python -m autoexp.demo_trainer --save DIR [options]",
        description=(__doc__ or "").split("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--save", type=Path, metavar="DIR", required=True, help="where checkpoints are written")
    add("--load", type=Path, metavar="DIR", help="continue from here if it has a tracker file")
    add("--save-interval", type=_count, help="save every N iterations; in any case at the end")
    add("--save-retain-interval", type=_count, help="delete older checkpoints but multiples of N")
    add("--exit-on-missing-checkpoint", action="store_true", help="exit 1 if --load has no tracker")
    add("--override-opt_param-scheduler", action="store_true", help="resume with a new schedule")
    add("--log-interval", type=_count, default=10, help="iterations per log line (%(default)s)")
    add("--train-iters", type=_count, default=2000, help="iterations in all (%(default)s)")
    add("--lr", type=_amount, default=1e-2, help="peak learning rate (%(default)s)")
    add("--min-lr", type=_amount, default=0.0, help="rate at the end of a decay (%(default)s)")
    add("--lr-warmup-iters", type=int, default=0, help="linear warmup from 0 (%(default)s)")
    add("--lr-decay-style", choices=("constant", "WSD"), default="constant", help="(%(default)s)")
    add("--lr-decay-iters", type=_count, help="where the decay ends (--train-iters)")
    add("--lr-wsd-decay-iters", type=_count, help="length of a WSD decay")
    shapes = tuple(language.DECAY_SHAPES)
    add("--lr-wsd-decay-style", choices=shapes, default="minus_sqrt", help="(%(default)s)")
    add("--global-batch-size", type=_count, default=256, help="windows an iteration (%(default)s)")
    add("--hidden-size", type=_count, default=256, help="(%(default)s)")
    add("--embedding-size", type=_count, default=24, help="(%(default)s)")
    add("--seq-length", type=_count, default=12, help="characters the model sees (%(default)s)")
    add("--weight-decay", type=_amount, default=0.01, help="biases excepted (%(default)s)")
    add("--seed", type=int, default=1, help="of language, weights and batches (%(default)s)")
    add = parser.add_argument_group("to see what a supervisor does about it").add_argument
    add("--fail-at-iteration", type=_count, help="raise instead of iteration N, exit 1")
    add("--nan-at-iteration", type=_count, help="diverge: loss and weights are NaN from N on")
    add("--sleep-per-iteration-ms", type=_amount, default=0.0, help="train slower")
    add("--slow-save-s", type=_amount, default=0.0, help="sleep in a save, before the renaming")
    args = parser.parse_args(argv)
    args.lr_decay_iters = args.lr_decay_iters or args.train_iters
    if message := refusal(args):
        parser.error(message)
    return args


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _amount(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value


def refusal(args: Namespace) -> str | None:
    """Why these arguments cannot be trained with, or None."""
    if args.lr_warmup_iters >= args.train_iters:
        return f"--lr-warmup-iters has to be below the run's {args.train_iters} iterations"
    if not language.ORDER <= args.seq_length < language.LINE_LENGTH:
        return f"--seq-length has to be {language.ORDER} to {language.LINE_LENGTH - 1}"
    if min(args.seed, args.lr_warmup_iters) < 0:
        return "--seed and --lr-warmup-iters cannot be negative"
    return schedule(args).refusal()


def main(argv: list[str] | None = None, stop: list[int] | None = None) -> int:
    args = parse_arguments(argv)
    spoken = language.draw_language(args.seed)
    say(f" entropy floor of the synthetic language: {spoken.entropy_floor:.6E} nats per character")
    sizes = language.Sizes(args.seq_length, args.embedding_size, args.hidden_size)
    run = Learner(sizes, args.seed, args.weight_decay)
    if args.load:
        load_checkpoint(run, args)
    if run.iteration >= args.train_iters:
        say(f" nothing to train: iteration {run.iteration} of {args.train_iters} is reached")
        return 0
    train(run, spoken.text, args, [] if stop is None else stop)
    return 0


if __name__ == "__main__":
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _frame: received.append(number))
    sys.exit(main(stop=received))
