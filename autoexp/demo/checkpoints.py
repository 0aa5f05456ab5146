"""The demo trainer's checkpoints: Megatron's folders and tracker, with NumPy's files inside."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from autoexp.demo.model import Learner

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


def save_checkpoint(run: Learner, args: Namespace) -> None:
    """Write a folder under another name, rename it once it is on disk, then move the tracker."""
    say(f"[{now()}] saving checkpoint at iteration {run.iteration:7d} to {args.save} in npz format")
    partial, folder = args.save / PARTIAL, args.save / f"iter_{run.iteration:07d}"
    if args.write_in_place:  # as most trainers do it
        partial = folder
    elif partial.exists():  # of a save that was killed
        shutil.rmtree(partial)
    partial.mkdir(parents=True, exist_ok=args.write_in_place)
    write_checkpoint(run, args, partial)
    if folder.exists() and folder != partial:  # torn, or killed before the tracker moved
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
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some filesystems cannot sync a folder, and order the names in it in their own way.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS) or not path.is_dir():
            raise
    finally:
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
    folder = _newest(args.load)
    if folder is None:
        tracker = args.load / TRACKER
        if args.exit_on_missing_checkpoint:
            raise SystemExit(f"no checkpoint to start from: {tracker} does not exist")
        say(f"WARNING: could not find the metadata file {tracker}, will start from random")
        if args.pretrained_checkpoint:
            load_weights(run, args)
        return
    metadata = _metadata(folder)
    say(f" loading checkpoint from {args.load} at iteration {metadata['iteration']}")
    _refuse_sizes(metadata["args"], args)
    _refuse_course(metadata["args"], args)
    _read_model(run, folder)
    with np.load(folder / "optimizer.npz") as shard:
        run.optimizer.first[:], run.optimizer.second[:] = shard["first"], shard["second"]
    run.batches.bit_generator.state = json.loads((folder / "rng.json").read_text())
    run.iteration, run.consumed_samples = metadata["iteration"], metadata["consumed_samples"]
    say(f"  successfully loaded checkpoint from {args.load} at iteration {run.iteration}")


def load_weights(run: Learner, args: Namespace) -> None:
    """Begin with another training's weights, at iteration 0, as Megatron does for fine-tuning.

    What is named is a checkpoint's folder, or as with Megatron the one that checkpoints are in.
    """
    path: Path = args.pretrained_checkpoint
    folder = path if (path / "metadata.json").exists() else _newest(path)
    if folder is None:
        raise SystemExit(f"--pretrained-checkpoint {path}: there is no checkpoint")
    _refuse_sizes(_metadata(folder)["args"], args)
    _read_model(run, folder)
    say(f" loaded pretrained weights from {folder}, at iteration 0")


def _newest(directory: Path) -> Path | None:
    """The folder that the tracker names; None where there is no tracker."""
    tracker = directory / TRACKER
    if not tracker.exists():
        return None
    named = tracker.read_text().strip()
    if not named.isdecimal():
        raise SystemExit(f"{tracker} holds {named!r}, which is not an iteration. Write one into it")
    return directory / f"iter_{int(named):07d}"


def _metadata(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint, after a check of its files' sizes."""
    try:
        metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text())
        sizes = json.loads((folder / ".metadata").read_text())
        for name, size in sizes.items():
            if (found := (folder / name).stat().st_size) != size:
                raise ValueError(f"{name} has {found} bytes instead of {size}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"could not load the checkpoint {folder}: {error}") from error
    return metadata


def _read_model(run: Learner, folder: Path) -> None:
    with np.load(folder / "model.npz") as shard:
        for name, array in run.model.weights.items():
            array[...] = shard[name]


def _refuse_sizes(saved: dict[str, Any], args: Namespace) -> None:
    """Exit 1 when the checkpoint is of another model, whose arrays have other shapes."""
    _refuse_others(saved, args, ("seq_length", "embedding_size", "hidden_size"))


def _refuse_others(saved: dict[str, Any], args: Namespace, names: tuple[str, ...]) -> None:
    for name in names:
        if saved[name] != getattr(args, name):
            flag = "--" + name.replace("_", "-")
            raise SystemExit(f"{flag} is {getattr(args, name)}, the checkpoint's {saved[name]}")


def _refuse_course(saved: dict[str, Any], args: Namespace) -> None:
    """Exit 1 for another language, which the seed gives, or a schedule that changed unasked."""
    _refuse_others(saved, args, ("seed",))
    for name, words in {} if args.override_opt_param_scheduler else _SCHEDULE.items():
        wsd_only = name.startswith("lr_wsd") and args.lr_decay_style == "constant"
        if not wsd_only and saved[name] != getattr(args, name):
            both = f"class input value {getattr(args, name)} and checkpoint value {saved[name]}"
            raise SystemExit(f"OptimizerParamScheduler: {both} for {words} do not match")


def say(line: str) -> None:
    print(line, flush=True)  # a pipe is block-buffered, and a killed job would lose its last lines


def now() -> str:
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"
