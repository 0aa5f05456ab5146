"""Runs the script of a plan with OLMo-core's classes: `PYTHON olmo_core_parser.py < argv.json`.

Each command line begins with the script's path, whose checkout is on PYTHONPATH. Prints what its
configuration is, and the rate of each step. Its package for downloads is stood in for.
"""

import importlib
import json
import sys
from pathlib import Path

from stand_ins import Finder

if __name__ == "__main__":
    sys.meta_path.insert(0, Finder("cached_path"))
    for script, *line in json.load(sys.stdin):
        sys.path.insert(0, str(Path(script).parent))
        module = importlib.import_module(Path(script).stem)
        sys.argv = [script, *line]
        config = module.build_config(*module.parser_args())
        trainer, optimizer = config.trainer, config.train_module
        saves, last = trainer.callbacks["checkpointer"], trainer.max_duration.value
        read = {
            "save_folder": trainer.save_folder,
            "max_duration": [last, str(trainer.max_duration.unit)],
            "save_interval": saves.save_interval,
            "ephemeral_save_interval": saves.ephemeral_save_interval,
            "max_checkpoints": saves.max_checkpoints,
            "save_async": saves.save_async,
        }
        # It counts a step before it makes it.
        schedule, peak = optimizer.scheduler, optimizer.optim.lr
        rates = [schedule.get_lr(peak, step + 1, last) for step in range(last)]
        print(json.dumps([read, rates]))
