"""Trainers described in YAML: one with a tracker, one with a marker beside, as NeMo has it."""

from pathlib import Path

from tests.core.backends.conformance.trainer import Trainer, Write, emptied, write


def log_line(iteration: int, loss: float) -> str:
    return f"\x1b[1mit {iteration}\x1b[0m loss={loss:.4f} lr=0.001"


COMMON = {
    "kind": "command",
    "command": ["python3", "train.py", "--steps", "{train_iters}", "--out", "{save_dir}"],
    "cooldown": {"--schedule": "{shape}", "--decay": "{decay_iterations}"},
    "log_line": r"it (?P<iteration>[0-9]+) loss=(?P<loss>\S+) lr=(?P<learning_rate>\S+)",
    "args": {"train_iters": 300, "save_interval": 100},
}


def tracked(save_dir: Path, iteration: int) -> Path:
    return save_dir / "models" / f"{iteration}"


def saving_tracked(save_dir: Path, iteration: int) -> list[Write]:
    here = tracked(save_dir, iteration)
    return [
        write(here / "rank-0.bin", "weights"),
        write(here / "meta.json", "{}"),
        write(save_dir / "models" / "latest.txt", str(iteration)),
    ]


TRACKED = Trainer(
    "command-tracker",
    {
        **COMMON,
        "saves": {
            "name": "{iteration}",
            "folder": "models",
            "must_exist": ["rank-*.bin"],
            "must_parse": ["meta.json"],
            "tracker": "latest.txt",
        },
    },
    saving_tracked,
    log_line,
    tracked,
    emptied("models/latest.txt"),
)


def marked(save_dir: Path, iteration: int) -> Path:
    return save_dir / f"llama-step={iteration}-last"


def saving_marked(save_dir: Path, iteration: int) -> list[Write]:
    here = marked(save_dir, iteration)
    marker = here.with_name(f"{here.name}-unfinished")
    return [write(marker), write(here / "weights", "weights"), lambda: marker.unlink()]


MARKED = Trainer(
    "command-marker",
    {
        **COMMON,
        "saves": {
            "name": "*-step={iteration}-last",
            "must_exist": ["weights"],
            "must_not_exist": ["../{name}-unfinished"],
        },
    },
    saving_marked,
    log_line,
    marked,
)
