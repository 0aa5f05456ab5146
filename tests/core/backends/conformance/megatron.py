"""Megatron-LM, and the demo trainer that writes as it does."""

import math
from pathlib import Path

from autoexp.backends.megatron.formats import TRACKER
from tests.core.backends.conformance.trainer import Trainer, Write, emptied, write
from tests.sources import ROOT

STAND_IN = ROOT / "tests" / "data"


def folder(save_dir: Path, iteration: int) -> Path:
    return save_dir / f"iter_{iteration:07d}"


def saving(save_dir: Path, iteration: int) -> list[Write]:
    here = folder(save_dir, iteration)
    return [
        write(here / "__0_0.distcp", "weights"),
        write(here / ".metadata", "index"),
        write(here / "metadata.json", '{"sharded_backend": "torch_dist"}'),
        write(save_dir / TRACKER, ""),  # in place: it can be read empty
        write(save_dir / TRACKER, str(iteration)),
    ]


def legacy_saving(save_dir: Path, iteration: int) -> list[Write]:
    return [
        write(folder(save_dir, iteration) / "mp_rank_00" / "model_optim_rng.pt", "weights"),
        write(save_dir / TRACKER, ""),
        write(save_dir / TRACKER, str(iteration)),
    ]


def log_line(iteration: int, loss: float) -> str:
    # Printed only when it is >= 0: a NaN vanishes.
    shown = "" if math.isnan(loss) else f" lm loss: {loss:.6E} |"
    return (
        f" [2026-08-22 10:00:00] iteration {iteration:8d}/     300 | consumed samples: 51210240 | "
        "elapsed time per iteration (ms): 812.1 | learning rate: 2.000000E-03 | "
        f"global batch size:  1024 |{shown} loss scale: 1.0 | grad norm: 0.211 |"
    )


ARGS = {
    "train_iters": 300,
    "save_interval": 100,
    "lr": 1e-3,
    "micro_batch_size": 1,
    "global_batch_size": 8,
    "seq_length": 64,
    "max_position_embeddings": 64,
    "num_layers": 1,
    "hidden_size": 16,
    "num_attention_heads": 1,
    "mock_data": True,
}
BACKEND = {"kind": "megatron", "source": str(STAND_IN), "args": ARGS}

MEGATRON = Trainer("megatron", BACKEND, saving, log_line, folder, emptied(TRACKER))
LEGACY = MEGATRON._replace(
    name="megatron-torch",
    backend={**BACKEND, "args": {**ARGS, "ckpt_format": "torch"}},
    saving=legacy_saving,
)
DEMO = MEGATRON._replace(
    name="demo",
    backend={
        "kind": "demo",
        "args": {"train_iters": 300, "save_interval": 100, "lr_warmup_iters": 10},
    },
)
