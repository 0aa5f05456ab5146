"""Runs litgpt's command line and schedule: `PYTHON litgpt_parser.py CHECKOUT < argv.json`.

Prints for each command line what is read of it, and the rate of each step on one device, as
`fit` of its pretrain.py makes it.
"""

import json
import sys
from pathlib import Path

from jsonargparse import capture_parser

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    from litgpt.__main__ import main
    from litgpt.args import EvalArgs, TrainArgs
    from litgpt.config import Config
    from litgpt.pretrain import get_lr, validate_args

    parser = capture_parser(main)
    for line in json.load(sys.stdin):
        given = parser.parse_args(line).pretrain
        train = TrainArgs(**vars(given.train))
        validate_args(train, EvalArgs(**vars(given.eval)), None, given.resume)
        model = Config.from_name(given.model_name)
        micro = train.gradient_accumulation_iters(1)
        longest = train.max_tokens // (train.micro_batch_size * model.block_size)
        warmup = train.warmup_iters(1, 1, longest, None)
        peak = given.optimizer["init_args"]["lr"]
        rates = [
            get_lr(peak, (step + 1) * micro - 1, warmup, longest, train.min_lr)
            for step in range(longest // micro)
        ]
        read = {"out_dir": str(Path(str(given.out_dir))), "resume": given.resume}
        print(json.dumps([read | vars(train), rates]))
