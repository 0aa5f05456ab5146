"""Logs rates as torchtitan does: `PYTHON torchtitan_metrics.py RATE < argv.json`.

For each command line its own metric logger gets the rate that its own scheduler has at the steps
which it logs. What it names it in 0.2 is in its train.py, which wants a GPU.
"""

import json
import sys
from types import SimpleNamespace

import torch
from stand_ins import without_triton
from torchtitan_parser import schedule_of


def logger_of(config):
    """The logger that it makes for a process alone."""
    from torchtitan.components import metrics

    alone = SimpleNamespace(pp_enabled=False)
    if hasattr(metrics, "_build_metric_logger"):
        return metrics._build_metric_logger(config, alone)
    return metrics.MetricsProcessor._build_metric_logger(
        None, config=config.metrics, parallel_dims=alone, dump_folder=config.dump_folder,
        pp_schedule="1F1B",
    )  # fmt: skip


if __name__ == "__main__":
    without_triton()
    from torchtitan.config.manager import ConfigManager

    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    for line in json.load(sys.stdin):
        config = ConfigManager().parse_args(line)
        optimizer, made = schedule_of(config, float(sys.argv[1]))
        logger = logger_of(config)
        for step in range(1, config.training.steps + 1):
            rates = optimizer.param_groups[0]["lr"]
            named = made.get_metrics() if hasattr(made, "get_metrics") else {"lr": rates}
            if step == 1 or step % config.metrics.log_freq == 0:
                logger.log({"n_tokens_seen": step, **named}, step)
            optimizer.step()
            made.step()
        logger.close()
        print(json.dumps([config.training.steps]))
    torch.distributed.destroy_process_group()
