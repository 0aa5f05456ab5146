"""Runs a script with the Trainer of Transformers as it is, and disturbs it from inside.

`PYTHON disturbed.py SCRIPT ARGUMENTS...`. A training that begins at 0 is slow from step
$DISTURBED_SLOW on, so that its time limit comes. The first attempt of the cooldown that ends at
step $DISTURBED_ENDS is killed with SIGKILL after its step $DISTURBED_DIES.
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

import transformers.trainer
from transformers import TrainerCallback


class Disturbance(TrainerCallback):
    """One process of it is killed, whatever launcher has started it."""

    def on_step_end(self, args, state, control, **kwargs):
        at = {name: int(os.environ[f"DISTURBED_{name}"]) for name in ("SLOW", "ENDS", "DIES")}
        if args.resume_from_checkpoint is None and state.global_step >= at["SLOW"]:
            time.sleep(1.0)
        # Its next attempt begins at a later checkpoint, and leaves this mark alone.
        mark = Path(args.output_dir, "killed")
        dies = (state.max_steps, state.global_step) == (at["ENDS"], at["DIES"])
        if dies and state.is_world_process_zero and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    transformers.trainer.DEFAULT_CALLBACKS.append(Disturbance)
    sys.argv = sys.argv[1:]
    runpy.run_path(sys.argv[0], run_name="__main__")
