"""Hugging Face's Trainer: `trainer_state.json` lands last and tells the story; the log does not."""

import json
from pathlib import Path

from tests.core.backends.conformance.trainer import Trainer, Write, write
from tests.sources import ROOT


def folder(save_dir: Path, iteration: int) -> Path:
    return save_dir / f"checkpoint-{iteration}"


def state(iteration: int, loss: float = 2.5) -> str:
    history = [
        {"step": step, "loss": loss if step == iteration else 2.5, "learning_rate": 1e-3}
        for step in range(50, iteration + 1, 50)
    ]
    story = {"global_step": iteration, "max_steps": 300, "log_history": history}
    return json.dumps(story, indent=2)


def saving(save_dir: Path, iteration: int, loss: float = 2.5) -> list[Write]:
    here = folder(save_dir, iteration)
    text = state(iteration, loss)
    return [
        write(here / "model.safetensors", "weights"),
        write(here / "optimizer.pt", "moments"),
        write(here / "trainer_state.json", text[: len(text) // 2]),
        write(here / "trainer_state.json", text),
    ]


HUGGINGFACE = Trainer(
    "huggingface",
    {
        "kind": "huggingface",
        "script": str(ROOT / "examples" / "huggingface" / "train.py"),
        "args": {"max_steps": 300, "save_steps": 100, "learning_rate": 1e-3, "warmup_steps": 10},
    },
    saving,
    None,
    folder,
)
