"""Runs nanoGPT's configurator and schedule: `PYTHON nanogpt_parser.py CHECKOUT < argv.json`.

Prints for each command line the settings that train.py would have, and the rate of each iteration.
"""

import ast
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.chdir(sys.argv[1])
    sys.path.insert(0, sys.argv[1])
    tree = ast.parse(Path("train.py").read_text(), "train.py")
    # All that it does before it trains, and the function that its rates come from.
    reads = [
        place
        for place, node in enumerate(tree.body)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "config"
    ]
    head = tree.body[: reads[0] + 1]
    schedule = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "get_lr"]
    code = compile(ast.Module([*head, *schedule], []), "train.py", "exec")
    for line in json.load(sys.stdin):
        sys.argv[1:] = line
        settings = {}
        exec(code, settings)  # noqa: S102  the trainer's own
        rates = [settings["get_lr"](at) for at in range(settings["max_iters"])]
        print()
        print(json.dumps([settings["config"], rates]))
