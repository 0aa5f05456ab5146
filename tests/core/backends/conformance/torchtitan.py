"""torchtitan: `.metadata` appears last, and lines are coloured."""

from pathlib import Path

from tests.core.backends.conformance.trainer import Trainer, Write, write


def folder(save_dir: Path, iteration: int) -> Path:
    return save_dir / "checkpoint" / f"step-{iteration}"


def saving(save_dir: Path, iteration: int) -> list[Write]:
    here = folder(save_dir, iteration)
    return [
        write(here / "__0_0.distcp", "weights"),
        write(here / "__1_0.distcp", "weights"),
        write(here / ".metadata", "index"),
    ]


def log_line(iteration: int, loss: float) -> str:
    return (
        f"[titan] 2026-08-22 10:00:00,000 - root - INFO - \x1b[31mstep: {iteration:2}  "
        f"\x1b[32mloss: {loss:8.5f}  \x1b[38;2;180;60;0mgrad_norm: 1.2000  \x1b[36mmemory:  1.00GiB"
        "(2.00%)  \x1b[34mtps: 8,123  \x1b[36mtflops: 1.00  \x1b[35mmfu: 2.00%\x1b[39m"
    )


TORCHTITAN = Trainer(
    "torchtitan",
    {
        "kind": "torchtitan",
        "args": {
            "training": {"steps": 300},
            "optimizer": {"lr": 1e-3},
            "lr_scheduler": {"warmup_steps": 10},
            "checkpoint": {"interval": 100},
        },
    },
    saving,
    log_line,
    folder,
)
