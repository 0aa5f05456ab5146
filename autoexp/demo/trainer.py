"""A real, tiny pretraining run: Megatron's arguments, log lines and checkpoints in seconds.

    python -m autoexp.demo.trainer --save DIR --load DIR --train-iters 2000 --save-interval 200

It trains a character model on a synthetic language of known entropy (`autoexp.demo.model`), so
that a cooldown really gains something. Needs NumPy only, no GPU, one core; also runs by its path.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import math
import os
import signal
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path

# Before NumPy is imported: more threads would cost time at these sizes, and the same last bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
if not __package__:  # run by its path: its own folder is on sys.path, and not the one above
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from autoexp.demo import model as language
from autoexp.demo.checkpoints import load_checkpoint, load_weights, now, save_checkpoint, say
from autoexp.demo.model import Characters, Learner

# Whoever holds it may have died: the node is somebody's.
_LONGEST_HOLD_S = 600.0
_HOLD_TICK_S = 0.1


def schedule(args: Namespace) -> language.Schedule:
    """The learning-rate schedule of the arguments."""
    fields = dataclasses.fields(language.Schedule)
    return language.Schedule(**{field.name: getattr(args, field.name) for field in fields})


def train(
    run: Learner,
    text: Characters,
    args: Namespace,
    stop: list[int],
    held_out: language.HeldOut | None = None,
    save: list[int] | None = None,
) -> None:
    """Train to the end, or to the end of the iteration in which a signal lands in `stop`.

    One in `save` has it save there, and go on.
    """
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

        is_last = run.iteration == args.train_iters
        if held_out and (is_last or run.iteration % args.eval_interval == 0):
            paused = time.perf_counter()
            say(validation_line(run.iteration, held_out.loss(run.model)))
            begun += time.perf_counter() - paused
        stopping = bool(stop)
        due = args.save_interval and run.iteration % args.save_interval == 0
        due = due or run.iteration in args.save_at or bool(save)
        if due or stopping or is_last:
            paused = time.perf_counter()
            if save:
                save.clear()
            save_checkpoint(run, args)
            begun += time.perf_counter() - paused
        if stopping:
            # Megatron says SIGTERM whichever signal it was.
            say(f"[exiting program after receiving SIGTERM.] datetime: {now()} ")
            return
        if args.hold:
            paused = time.perf_counter()
            wait_while_held(args.hold / str(run.iteration), lambda: bool(stop or save))
            begun += time.perf_counter() - paused


def wait_while_held(file: Path, is_signalled: Callable[[], bool]) -> None:
    """Return once the file is gone, somebody signals, or it has taken too long."""
    deadline = time.monotonic() + _LONGEST_HOLD_S
    while time.monotonic() < deadline and not is_signalled():
        try:
            # Opened, and not looked for: NFS asks its server for a file that is opened.
            with file.open("rb"):
                time.sleep(_HOLD_TICK_S)
        except OSError:
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


def validation_line(iteration: int, loss: float) -> str:
    """Megatron's line for a validation."""
    return (
        f" validation loss at iteration {iteration} | lm loss value: {loss:.6E} | "
        f"lm loss PPL: {math.exp(min(20, loss)):.6E} | "
    )


def parse_arguments(argv: list[str] | None = None) -> Namespace:
    """The arguments under Megatron's names; bad ones, alone or together, are exit 2."""
    parser = ArgumentParser(
        usage="python -m autoexp.demo.trainer --save DIR [options]",
        description=(__doc__ or "").split("\n")[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--save", type=Path, metavar="DIR", required=True, help="where checkpoints are written")
    add("--load", type=Path, metavar="DIR", help="continue from here if it has a tracker file")
    add("--save-interval", type=_count, help="save every N iterations; in any case at the end")
    add("--save-at", type=_iterations, default=(), metavar="N,…", help="save at these, too")
    add("--save-retain-interval", type=_count, help="delete older checkpoints but multiples of N")
    add("--pretrained-checkpoint", type=Path, metavar="DIR", help="weights to begin with, else")
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
    add("--lr-wsd-decay-power", type=_amount, default=2.0, help="(1 - x)^N (%(default)s)")
    add("--lr-wsd-decay-points", type=_points, metavar="X:Y,…", help="a broken line, 0:1,1:0")
    shapes = (*language.DECAY_SHAPES, "power", "points")
    add("--lr-wsd-decay-style", choices=shapes, default="minus_sqrt", help="(%(default)s)")
    add("--global-batch-size", type=_count, default=256, help="windows an iteration (%(default)s)")
    add("--hidden-size", type=_count, default=256, help="(%(default)s)")
    add("--embedding-size", type=_count, default=24, help="(%(default)s)")
    add("--seq-length", type=_count, default=12, help="characters the model sees (%(default)s)")
    add("--weight-decay", type=_amount, default=0.01, help="biases excepted (%(default)s)")
    add("--mix", type=_mix, help=f"kinds of text, as web:3,code:1: {', '.join(language.MIXES)}")
    add("--eval-interval", type=_count, help="iterations between validation losses, on web")
    add("--seed", type=int, default=1, help="of language, weights and batches (%(default)s)")
    add("--run-seed", type=int, help="of weights and batches alone (--seed)")
    add = parser.add_argument_group("faults, to test supervision").add_argument
    add("--fail-at-iteration", type=_count, help="raise instead of iteration N, exit 1")
    add("--nan-at-iteration", type=_count, help="diverge: loss and weights are NaN from N on")
    add("--ignore-checkpoint", action="store_true", help="begin at 0, whatever --load holds")
    add("--write-in-place", action="store_true", help="save over an older save's files")
    add("--sleep-per-iteration-ms", type=_amount, default=0.0, help="train slower")
    add("--slow-save-s", type=_amount, default=0.0, help="sleep in a save, before the renaming")
    add("--hold", type=Path, metavar="DIR", help="wait after iteration N while DIR/N is there")
    args = parser.parse_args(argv)
    args.lr_decay_iters = args.lr_decay_iters or args.train_iters
    if message := refusal(args):
        parser.error(message)
    return args


def _count(text: str) -> int:
    if (value := int(text)) < 1:
        raise ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _iterations(text: str) -> tuple[int, ...]:
    return tuple(map(_count, text.split(",")))


def _amount(text: str) -> float:
    if not 0 <= (value := float(text)) < math.inf:
        raise ArgumentTypeError(f"must be a number of at least 0, got {text}")
    return value


def _mix(text: str) -> str:
    try:
        language.read_mix(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from error
    return text


def _points(text: str) -> tuple[tuple[float, float], ...]:
    found = [tuple(map(float, pair.split(":"))) for pair in text.split(",")]
    if any(len(pair) != 2 for pair in found) or sorted(found) != found:
        raise ArgumentTypeError(f"{text!r} is no line, such as 0:1,0.5:0.2,1:0")
    return tuple((share, height) for share, height in found)


def refusal(args: Namespace) -> str | None:
    """Reason why the arguments are invalid, or None."""
    if args.lr_warmup_iters >= args.train_iters:
        return f"--lr-warmup-iters has to be below the run's {args.train_iters} iterations"
    if not language.ORDER <= args.seq_length < language.LINE_LENGTH:
        return f"--seq-length has to be {language.ORDER} to {language.LINE_LENGTH - 1}"
    if min(args.seed, args.run_seed or 0, args.lr_warmup_iters) < 0:
        return "--seed, --run-seed and --lr-warmup-iters cannot be negative"
    return schedule(args).refusal()


def main(
    argv: list[str] | None = None, stop: list[int] | None = None, save: list[int] | None = None
) -> int:
    args = parse_arguments(argv)
    spoken = language.draw_mix(args.seed, args.mix)
    say(f" entropy floor of the synthetic language: {spoken.entropy_floor:.6E} nats per character")
    sizes = language.Sizes(args.seq_length, args.embedding_size, args.hidden_size)
    own = args.seed if args.run_seed is None else args.run_seed
    run = Learner(sizes, own, args.weight_decay)
    if args.load and not args.ignore_checkpoint:
        load_checkpoint(run, args)
    elif args.pretrained_checkpoint:
        load_weights(run, args)
    if run.iteration >= args.train_iters:
        say(f" nothing to train: iteration {run.iteration} of {args.train_iters} is reached")
        return 0
    text = language.draw_language(args.seed).text if args.mix else spoken.text
    held_out = language.HeldOut(text, args.seed, sizes.context) if args.eval_interval else None
    train(run, spoken.text, args, [] if stop is None else stop, held_out, save)
    return 0


if __name__ == "__main__":
    received: list[int] = []
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda number, _frame: received.append(number))
    faulthandler.register(signal.SIGQUIT)
    signal.signal(signal.SIGUSR1, lambda number, _frame: asked.append(number))
    sys.exit(main(stop=received, save=asked))
