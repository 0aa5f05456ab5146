"""Runs torchtitan's configuration manager: `PYTHON torchtitan_parser.py < argv.json`.

The checkout, of 0.2 or 0.3, is on PYTHONPATH. Prints for each command line its whole configuration,
and the rate of each step. Its package for GPUs is stood in for.
"""

import dataclasses
import json
import sys

import torch
from stand_ins import without_triton

if __name__ == "__main__":
    without_triton()
    from torchtitan.config.manager import ConfigManager

    for line in json.load(sys.stdin):
        config = ConfigManager().parse_args(line)
        optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)]
        schedule, steps = config.lr_scheduler, config.training.steps
        if hasattr(schedule, "build"):
            made = schedule.build(optimizers=optimizers, training_steps=steps)
        else:
            from torchtitan.components.lr_scheduler import build_lr_schedulers

            made = build_lr_schedulers(optimizers, schedule, steps)
        factors = []
        for _ in range(steps):
            factors.append(optimizers[0].param_groups[0]["lr"])
            optimizers[0].step()
            made.step()
        print(json.dumps([dataclasses.asdict(config), factors], default=str))
