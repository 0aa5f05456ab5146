"""A stand-in for Megatron-LM's pretrain_gpt.py: its arguments, its files, its lines, no GPU.

It accepts Megatron's real arguments, keeps its folder layout and the order of its writes, prints
its lines and refuses what Megatron refuses, as read in Megatron-LM of August 2026 and seen in runs.
The "model" is one number that follows a noisy gradient: its loss falls when the rate decays.

For tests, from the environment: STAND_IN_SLEEP_MS per iteration; STAND_IN_NAN_AT an iteration;
STAND_IN_DIE_IN_SAVE an iteration whose first save ends in SIGKILL; STAND_IN_SLOW_SAVE_S.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import sys
import time
from datetime import datetime
from pathlib import Path

TRACKER = "latest_checkpointed_iteration.txt"
RANK, WORLD = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
stopped = []


def parser():
    """Megatron's arguments, as far as autoexp's models and presets go, and some beyond."""
    made = argparse.ArgumentParser(allow_abbrev=False)
    group = made.add_argument_group("all")
    group.add_argument("--num-layers", type=int, default=None)
    group.add_argument("--hidden-size", type=int, default=None)
    group.add_argument("--ffn-hidden-size", type=int, default=None)
    group.add_argument("--num-attention-heads", type=int, default=None)
    group.add_argument("--kv-channels", type=int, default=None)
    group.add_argument("--num-query-groups", type=int, default=None)
    group.add_argument("--max-position-embeddings", type=int, default=None)
    group.add_argument("--seq-length", type=int, default=None)
    group.add_argument("--rotary-base", type=int, default=None)
    group.add_argument("--micro-batch-size", type=int, default=None)
    group.add_argument("--global-batch-size", type=int, default=None)
    group.add_argument("--train-iters", type=int, default=None)
    group.add_argument("--train-samples", type=int, default=None)
    group.add_argument("--lr-decay-iters", type=int, default=None)
    group.add_argument("--lr-decay-samples", type=int, default=None)
    group.add_argument("--lr-wsd-decay-iters", type=int, default=None)
    group.add_argument("--lr-wsd-decay-samples", type=int, default=None)
    group.add_argument("--save-interval", type=int, default=None)
    group.add_argument("--save-retain-interval", type=int, default=None)
    group.add_argument("--exit-interval", type=int, default=None)
    group.add_argument("--exit-duration-in-mins", type=int, default=None)
    group.add_argument("--eval-interval", type=int, default=None)
    group.add_argument("--vocab-size", type=int, default=None)
    group.add_argument("--ckpt-step", type=int, default=None)
    group.add_argument("--num-experts", type=int, default=None)
    group.add_argument("--moe-router-topk", type=int, default=None)
    group.add_argument("--recompute-num-layers", type=int, default=None)
    group.add_argument("--log-interval", type=int, default=100)
    group.add_argument("--eval-iters", type=int, default=100)
    group.add_argument("--lr-warmup-iters", type=int, default=0)
    group.add_argument("--lr-warmup-samples", type=int, default=0)
    group.add_argument("--seed", type=int, default=1234)
    group.add_argument("--num-workers", type=int, default=2)
    group.add_argument("--distributed-timeout-minutes", type=int, default=10)
    group.add_argument("--tensor-model-parallel-size", type=int, default=1)
    group.add_argument("--pipeline-model-parallel-size", type=int, default=1)
    group.add_argument("--context-parallel-size", type=int, default=1)
    group.add_argument("--expert-model-parallel-size", type=int, default=1)
    group.add_argument("--rampup-batch-size", nargs=3, type=int, default=None)
    group.add_argument("--lr", type=float, default=None)
    group.add_argument("--min-lr", type=float, default=0.0)
    group.add_argument("--lr-warmup-fraction", type=float, default=None)
    group.add_argument("--lr-warmup-init", type=float, default=0.0)
    group.add_argument("--weight-decay", type=float, default=0.01)
    group.add_argument("--adam-beta1", type=float, default=0.9)
    group.add_argument("--adam-beta2", type=float, default=0.999)
    group.add_argument("--adam-eps", type=float, default=1e-8)
    group.add_argument("--clip-grad", type=float, default=1.0)
    group.add_argument("--init-method-std", type=float, default=0.02)
    group.add_argument("--attention-dropout", type=float, default=0.1)
    group.add_argument("--hidden-dropout", type=float, default=0.1)
    group.add_argument("--norm-epsilon", type=float, default=1e-5)
    group.add_argument("--rotary-percent", type=float, default=1.0)
    group.add_argument("--group-query-attention", action="store_true")
    group.add_argument("--swiglu", action="store_true")
    group.add_argument("--disable-bias-linear", action="store_true")
    group.add_argument("--sequence-parallel", action="store_true")
    group.add_argument("--untie-embeddings-and-output-weights", action="store_true")
    group.add_argument("--use-distributed-optimizer", action="store_true")
    group.add_argument("--bf16", action="store_true")
    group.add_argument("--fp16", action="store_true")
    group.add_argument("--overlap-grad-reduce", action="store_true")
    group.add_argument("--overlap-param-gather", action="store_true")
    group.add_argument("--log-throughput", action="store_true")
    group.add_argument("--mock-data", action="store_true")
    group.add_argument("--async-save", action="store_true")
    group.add_argument("--exit-signal-handler", action="store_true")
    group.add_argument("--exit-on-missing-checkpoint", action="store_true")
    group.add_argument("--finetune", action="store_true")
    group.add_argument("--no-load-optim", action="store_true")
    group.add_argument("--no-load-rng", action="store_true")
    group.add_argument("--override-opt_param-scheduler", action="store_true")
    group.add_argument("--use-checkpoint-opt_param-scheduler", action="store_true")
    group.add_argument("--recompute-activations", action="store_true")
    group.add_argument("--manual-gc", action="store_true")
    group.add_argument("--qk-layernorm", action="store_true")
    group.add_argument("--no-save-optim", action="store_true")
    group.add_argument("--use-mcore-models", action="store_true")
    group.add_argument("--log-params-norm", action="store_true")
    group.add_argument("--use-flash-attn", action="store_true")
    group.add_argument(
        "--lr-decay-style",
        default="linear",
        choices=["constant", "linear", "cosine", "inverse-square-root", "WSD"],
    )
    group.add_argument(
        "--lr-wsd-decay-style",
        default="exponential",
        choices=["exponential", "linear", "cosine", "minus_sqrt"],
    )
    group.add_argument(
        "--ckpt-format",
        default="torch_dist",
        choices=["torch", "torch_dist", "zarr", "torch_dcp", "fsdp_dtensor"],
    )
    group.add_argument("--normalization", default="LayerNorm", choices=["LayerNorm", "RMSNorm"])
    group.add_argument(
        "--position-embedding-type",
        default="learned_absolute",
        choices=["learned_absolute", "rope", "mrope", "yarn", "relative", "none"],
    )
    group.add_argument(
        "--transformer-impl",
        default="transformer_engine",
        choices=["local", "transformer_engine", "inference_optimized"],
    )
    group.add_argument("--exit-signal", default="SIGTERM")
    group.add_argument("--data-path", nargs="*", default=None)
    group.add_argument("--split", default=None)
    group.add_argument("--tokenizer-type", default=None)
    group.add_argument("--tokenizer-model", default=None)
    group.add_argument("--tensorboard-dir", default=None)
    group.add_argument("--wandb-project", default="")
    group.add_argument("--wandb-exp-name", default="")
    group.add_argument("--save", default=None)
    group.add_argument("--load", default=None)
    return made


def validate(args):
    """What Megatron's validate_args asserts, with no more words than it has."""
    for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"):
        assert getattr(args, name) is not None, f"{name} argument is None"
    assert args.micro_batch_size is not None and args.micro_batch_size > 0
    assert not (args.override_opt_param_scheduler and args.use_checkpoint_opt_param_scheduler)
    replica = args.tensor_model_parallel_size * args.pipeline_model_parallel_size
    assert WORLD % replica == 0, f"world size ({WORLD}) is not divisible by {replica}"
    data_parallel = WORLD // replica
    args.global_batch_size = args.global_batch_size or args.micro_batch_size * data_parallel
    step = args.micro_batch_size * data_parallel
    assert args.global_batch_size % step == 0, (
        f"global batch size ({args.global_batch_size}) is not divisible by micro batch size "
        f"({args.micro_batch_size}) times data parallel size ({data_parallel})"
    )
    if args.train_iters:
        assert args.train_samples is None, "expected iteration-based training"
        assert args.lr_decay_samples is None, "expected iteration-based learning rate decay"
        assert args.lr_warmup_samples == 0, "expected iteration-based learning rate warmup"
        assert args.rampup_batch_size is None, "expected no batch-size rampup"
    else:
        assert args.train_samples, "either train-iters or train-samples should be provided"
        assert args.lr_decay_iters is None, "expected sample-based learning rate decay"
        assert args.lr_warmup_iters == 0, "expected sample-based learning rate warmup"
    assert args.seq_length <= args.max_position_embeddings
    assert args.data_path or args.mock_data, "no data"
    assert args.save is None or args.save_interval is not None
    if args.save:
        assert args.save_interval > 0
    assert args.lr is not None
    assert args.min_lr <= args.lr
    signal.Signals[args.exit_signal]


class Scheduler:
    """The learning rate by consumed samples, as OptimizerParamScheduler counts it."""

    COMPARED = ("lr", "min_lr", "warmup", "decay", "style", "wsd", "wsd_style")

    def __init__(self, args):
        size = args.global_batch_size
        if args.train_iters:
            self.decay = (args.lr_decay_iters or args.train_iters) * size
            self.warmup = args.lr_warmup_iters * size
            self.wsd = args.lr_wsd_decay_iters and args.lr_wsd_decay_iters * size
        else:
            self.decay = args.lr_decay_samples or args.train_samples
            self.warmup, self.wsd = args.lr_warmup_samples, args.lr_wsd_decay_samples
        self.lr, self.min_lr = args.lr, args.min_lr
        self.style, self.wsd_style = args.lr_decay_style, args.lr_wsd_decay_style
        assert self.decay > 0
        assert self.warmup < self.decay
        if self.style == "WSD":
            assert self.wsd is not None

    def rate(self, samples):
        if self.warmup and samples <= self.warmup:
            return self.lr * samples / self.warmup
        if self.style == "constant":
            return self.lr
        if samples > self.decay:
            return self.min_lr
        if self.style == "WSD":
            start = self.decay - self.wsd
            if samples <= start:
                return self.lr
            x = (samples - start) / self.wsd
            down = {
                "linear": 1 - x,
                "cosine": 0.5 * (1 + math.cos(math.pi * x)),
                "exponential": 2 * 0.5**x - 1,
                "minus_sqrt": 1 - math.sqrt(x),
            }[self.wsd_style]
        else:
            x = (samples - self.warmup) / (self.decay - self.warmup)
            down = 0.5 * (1 + math.cos(math.pi * x)) if self.style == "cosine" else 1 - x
        return self.min_lr + (self.lr - self.min_lr) * down

    def state(self):
        return {name: getattr(self, name) for name in self.COMPARED}

    def load(self, saved, override):
        words = {
            "lr": "learning rate",
            "min_lr": "minimum learning rate",
            "warmup": "warmup iterations",
            "decay": "total number of iterations",
            "style": "learning rate decay style",
        }
        for name in words:
            mine, theirs = getattr(self, name), saved[name]
            assert override or mine == theirs, (
                f"OptimizerParamScheduler: class input value {mine} and checkpointvalue {theirs} "
                f"for {words[name]} do not match"
            )


def batch_size(args, consumed):
    if not args.rampup_batch_size:
        return args.global_batch_size
    start, increment, samples = args.rampup_batch_size
    if consumed > samples:
        return args.global_batch_size
    steps = (args.global_batch_size - start) // increment
    return min(args.global_batch_size, start + increment * int(consumed / (samples / steps)))


def count_iterations(args):
    """Sample-based training: Megatron's update_train_iters."""
    if args.train_iters:
        return args.train_iters
    iterations = consumed = 0
    if args.rampup_batch_size:
        while consumed <= args.rampup_batch_size[2] and consumed < args.train_samples:
            consumed += batch_size(args, consumed)
            iterations += 1
    return iterations + max(0, args.train_samples - consumed) // args.global_batch_size


def say(line, rank=0):
    if rank == RANK:
        print(line, flush=True)


def now():
    return f"{datetime.now():%Y-%m-%d %H:%M:%S}"


def save(run, args, scheduler):
    root = Path(args.save)
    say(f"[{now()}] saving checkpoint at iteration {run['iteration']:7d} to {root} "
        f"in {args.ckpt_format} format")  # fmt: skip
    folder = root / f"iter_{run['iteration']:07d}"
    folder.mkdir(parents=True, exist_ok=True)
    die = os.environ.get("STAND_IN_DIE_IN_SAVE") == str(run["iteration"])
    marker = root / "died-once"
    die = die and not marker.exists()
    state = {"run": run, "scheduler": scheduler.state(), "min_lr": args.min_lr, "lr": args.lr}
    if args.ckpt_format == "torch":
        (folder / "mp_rank_00").mkdir(exist_ok=True)
        (folder / "mp_rank_00" / "model_optim_rng.pt").write_text(json.dumps(state))
    else:
        (folder / "__0_0.distcp").write_text(json.dumps(state))
        if die:
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("STAND_IN_SLOW_SAVE_S", "0")))
        (folder / ".metadata").write_bytes(b"\x80\x04.")
        (folder / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    # Written in place, as Megatron does: it can be read empty.
    (root / TRACKER).write_text(str(run["iteration"]))
    parallel = f"t 1/{args.tensor_model_parallel_size}, p 1/{args.pipeline_model_parallel_size}"
    done = f"  successfully saved checkpoint from iteration {run['iteration']:7d} to {root}"
    say(f"{done} [ {parallel} ]")
    for old in root.glob("iter_*") if args.save_retain_interval else ():
        number = int(old.name[5:])
        kept = number >= run["iteration"] or number % args.save_retain_interval == 0
        if not kept and not old.is_symlink():
            shutil.rmtree(old)


def load(run, args, scheduler):
    tracker = Path(args.load) / TRACKER
    if not tracker.exists():
        if args.exit_on_missing_checkpoint:
            say(">> '--exit-on-missing-checkpoint' set ... exiting. <<")
            sys.exit(1)
        say(f"WARNING: could not find the metadata file {tracker}")
        say("    will not load any checkpoints and will start from random")
        return
    iteration = args.ckpt_step or int(tracker.read_text().strip())
    folder = Path(args.load) / f"iter_{iteration:07d}"
    if args.ckpt_format == "torch":
        try:
            state = json.loads((folder / "mp_rank_00" / "model_optim_rng.pt").read_text())
        except (OSError, ValueError) as error:
            say(f"could not load the checkpoint\n{error}")
            sys.exit(0)
    else:
        assert (folder / ".metadata").exists(), f"{folder} is not a distributed checkpoint"
        state = json.loads((folder / "__0_0.distcp").read_text())
    if (state["min_lr"], state["lr"]) != (args.min_lr, args.lr):
        raise KeyError("Could not find parameter group with key")
    if args.finetune:
        return
    scheduler.load(state["scheduler"], args.override_opt_param_scheduler)
    run.update(state["run"])
    say(f"  successfully loaded checkpoint from {args.load} [ t 1/1, p 1/1 ] "
        f"at iteration {run['iteration']}")  # fmt: skip


def train(run, args, scheduler, target):
    pause = float(os.environ.get("STAND_IN_SLEEP_MS", "1")) / 1000
    nan_at = int(os.environ.get("STAND_IN_NAN_AT", "0"))
    begun, losses, last = time.time(), [], time.time()
    while run["iteration"] < target:
        iteration = run["iteration"] = run["iteration"] + 1
        noise = random.Random(f"{args.seed}/{iteration}").gauss(0, 1)
        size = batch_size(args, run["consumed"])
        rate = scheduler.rate(run["consumed"])
        # A gradient step in a bowl, with noise that a high rate cannot average away.
        run["weight"] -= min(1.0, 100 * rate) * (run["weight"] + 2.0 * noise)
        run["consumed"] += size
        loss = math.nan if nan_at and iteration >= nan_at else 2 + run["weight"] ** 2
        losses.append(loss)
        time.sleep(pause)
        if iteration % args.log_interval == 0:
            mean = sum(losses) / len(losses)
            milliseconds = (time.time() - last) * 1000 / len(losses)
            # The learning rate is that of the next step; a NaN is not >= 0, and vanishes.
            shown = f" lm loss: {mean:.6E} |" if mean >= 0 else ""
            say(
                f" [{now()}] iteration {iteration:8d}/{target:8d} |"
                f" consumed samples: {run['consumed']:12d} |"
                f" elapsed time per iteration (ms): {milliseconds:.1f} |"
                f" learning rate: {scheduler.rate(run['consumed']):.6E} |"
                f" global batch size: {size:5d} |{shown} loss scale: 1.0 | grad norm: 0.211 |"
                " number of skipped iterations:   0 | number of nan iterations:   0 |",
                rank=WORLD - 1,
            )
            losses, last = [], time.time()
        due = iteration % args.save_interval == 0
        reason = None
        if stopped:
            reason = "[exiting program after receiving SIGTERM.]"
        elif args.exit_duration_in_mins and time.time() - begun > args.exit_duration_in_mins * 60:
            reason = f"[exiting program after {(time.time() - begun) / 60} minutes]"
        elif args.exit_interval and iteration % args.exit_interval == 0:
            reason = f"[exiting program at iteration {iteration}]"
        if due or reason or iteration == target:
            save(run, args, scheduler)
        if reason:
            say(f"{reason} datetime: {now()} ")
            sys.exit(0)


def main():
    args = parser().parse_args()
    validate(args)
    scheduler = Scheduler(args)
    if args.exit_signal_handler:
        signal.signal(signal.Signals[args.exit_signal], lambda *_: stopped.append(1))
    say("------------------------ arguments ------------------------")
    for name, value in sorted(vars(args).items()):
        say(f"  {name} {'.' * max(3, 48 - len(name))} {value}")
    run = {"iteration": 0, "consumed": 0, "weight": 3.0}
    if args.load:
        load(run, args, scheduler)
    train(run, args, scheduler, count_iterations(args))
    say(f"[after training is done] datetime: {now()} ")


if __name__ == "__main__":
    main()
