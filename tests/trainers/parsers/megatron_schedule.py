"""Megatron-LM's own parser, validation and scheduler: `PYTHON megatron_schedule.py CHECKOUT`.

Reads [trunk, branch, at, end] from stdin, command lines without their program; a trunk of null is
a run from scratch. The trunk's scheduler comes to iteration `at`, the branch's loads its state and
goes on to `end`. Prints for each its learning rates, what it was validated as, and where its
sampler begins in its data. What it imports for GPUs alone is stood in for.
"""

import argparse
import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace

from stand_ins import without_resiliency, without_triton


def out_of_source(checkout):
    """`get_optimizer_param_scheduler`, and the statement that says where the sampler begins.

    The rest of the module wants a GPU.
    """
    tree = ast.parse((Path(checkout) / "megatron/training/training.py").read_text())
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    build = functions["build_train_valid_test_data_loaders"]
    begins = next(
        node
        for node in build.body
        if isinstance(node, ast.If) and "phase_transition_iterations" in ast.unparse(node.test)
    )
    return functions["get_optimizer_param_scheduler"], begins


def run(tree, names):
    exec(compile(ast.Module([tree], []), "training.py", "exec"), names)  # noqa: S102
    return names


if __name__ == "__main__":
    without_triton()
    without_resiliency()
    sys.path.insert(0, sys.argv[1])
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler
    from megatron.training import arguments

    make, begins = out_of_source(sys.argv[1])

    def validated(line):
        parser = arguments.add_megatron_arguments(argparse.ArgumentParser(allow_abbrev=False))
        args = parser.parse_args(line)
        args.rank, args.world_size = 0, 1
        arguments.validate_args(args)
        return args

    def scheduler_of(args):
        group = {"lr": 0.0, "weight_decay": 0.0}
        names = {
            "get_args": lambda: args,
            "OptimizerParamScheduler": OptimizerParamScheduler,
            "update_train_iters": lambda _: None,
        }
        optimizer = SimpleNamespace(param_groups=[group])
        return group, run(make, names)["get_optimizer_param_scheduler"](optimizer)

    for trunk, branch, at, end in json.load(sys.stdin):
        args = validated(branch)
        group, scheduler = scheduler_of(args)
        consumed = 0
        if trunk is not None:
            before = validated(trunk)
            _, first = scheduler_of(before)
            consumed = at * before.global_batch_size
            first.step(consumed)
            scheduler.load_state_dict(first.state_dict())
        args.iteration, args.consumed_train_samples = at, consumed
        data = run(begins, {"args": args})["consumed_train_samples_in_current_phase"]
        rates = [group["lr"]]
        for _ in range(at, end):
            scheduler.step(args.global_batch_size)
            rates.append(group["lr"])
        named = ("seq_length", "global_batch_size", "data_path", "train_iters", "finetune")
        said = {name: getattr(args, name) for name in named}
        print("READ " + json.dumps({"rates": rates, "begins": data, **said}))
