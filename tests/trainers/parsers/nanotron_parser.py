"""Runs nanotron's parser and schedule: `PYTHON nanotron_parser.py CHECKOUT < texts.json`.

Prints for each settings file what was read of it, and the rate of each of its steps. Its packages
for GPUs are stood in for.
"""

import dataclasses
import json
import sys
import types

import torch
import yaml
from stand_ins import Finder

if __name__ == "__main__":
    sys.meta_path.insert(0, Finder("flash_attn", "grouped_gemm", "triton"))
    sys.path.insert(0, sys.argv[1] + "/src")
    from nanotron.config import Config, get_config_from_dict
    from nanotron.helpers import lr_scheduler_builder

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=store)
    for text in json.load(sys.stdin):
        config = get_config_from_dict(yaml.safe_load(text), config_class=Config)
        given = config.optimizer.learning_rate_scheduler
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=given.learning_rate)
        own = types.SimpleNamespace(get_base_optimizer=lambda optimizer=optimizer: optimizer)
        schedule = lr_scheduler_builder(own, given, config.tokens.train_steps)
        rates = []
        for _ in range(config.tokens.train_steps):
            rates.append(schedule.get_last_lr()[0])
            optimizer.step()
            schedule.step()
        checkpoints = dataclasses.asdict(config.checkpoints)
        read = {name: value and str(value) for name, value in checkpoints.items()}
        print(json.dumps([read, rates]))
