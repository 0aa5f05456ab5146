"""Runs torchtitan's configuration manager: `PYTHON torchtitan_parser.py < argv.json`.

The checkout, of 0.2 or 0.3, is on PYTHONPATH. Prints for each command line its whole configuration,
and the rate of each step. Its package for GPUs is stood in for.
"""

import dataclasses
import json
import sys

import torch
from stand_ins import without_triton


def schedule_of(config, rate=1.0):
    """An optimizer, and the scheduler that torchtitan makes for it."""
    optimizers = [torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)]
    schedule, steps = config.lr_scheduler, config.training.steps
    if hasattr(schedule, "build"):
        return optimizers[0], schedule.build(optimizers=optimizers, training_steps=steps)
    from torchtitan.components.lr_scheduler import build_lr_schedulers

    return optimizers[0], build_lr_schedulers(optimizers, schedule, steps)


if __name__ == "__main__":
    without_triton()
    from torchtitan.config.manager import ConfigManager

    for line in json.load(sys.stdin):
        config = ConfigManager().parse_args(line)
        optimizer, made = schedule_of(config)
        factors = []
        for _ in range(config.training.steps):
            factors.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            made.step()
        print(json.dumps([dataclasses.asdict(config), factors], default=str))
