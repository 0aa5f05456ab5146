"""Runs a script with the Trainer of Transformers as it is, and disturbs it from inside.

`PYTHON disturbed.py SCRIPT ARGUMENTS...`. A training that begins at 0 waits after step
$DISTURBED_SLOW until it is warned of its time limit, and is slow from then on: the Trainer saves
some seconds later. The first attempt of the cooldown that ends at step $DISTURBED_ENDS is killed
with SIGKILL after its step $DISTURBED_DIES.
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

    def wait_for_the_warning(self):
        """Wait for SIGTERM, of which the Trainer's own handler hears too."""
        own, told = signal.getsignal(signal.SIGTERM), []

        def note(signum, frame):
            told.append(signum)
            own(signum, frame)

        signal.signal(signal.SIGTERM, note)
        while not told:
            time.sleep(0.1)

    def on_step_end(self, args, state, control, **kwargs):
        at = {name: int(os.environ[f"DISTURBED_{name}"]) for name in ("SLOW", "ENDS", "DIES")}
        if args.resume_from_checkpoint is None and state.global_step >= at["SLOW"]:
            if state.global_step == at["SLOW"]:
                self.wait_for_the_warning()
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
