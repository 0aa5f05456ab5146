"""Runs the parser of a Megatron-LM checkout: `PYTHON megatron_parser.py CHECKOUT < argv.json`.

Prints the names of all arguments, and what of each command line the parser does not take. What it
imports for GPUs alone is stood in for.
"""

import argparse
import json
import sys

from stand_ins import without_resiliency, without_triton

if __name__ == "__main__":
    without_triton()
    without_resiliency()
    sys.path.insert(0, sys.argv[1])
    from megatron.training.arguments import add_megatron_arguments

    parser = add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
    spelled = [word for action in parser._actions for word in action.option_strings]
    names = sorted(word[2:].replace("-", "_") for word in spelled if word.startswith("--"))
    unknown = [parser.parse_known_args(line)[1] for line in json.load(sys.stdin)]
    print(json.dumps({"names": names, "unknown": unknown}))
