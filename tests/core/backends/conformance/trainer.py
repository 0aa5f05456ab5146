"""What a fixture has to provide: how one trainer writes checkpoints and logs, step by step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

Write = Callable[[], object]


class Trainer(NamedTuple):
    """One backend and its trainer's habits, for the cases of the conformance suite."""

    name: str
    backend: dict[str, Any]
    """The configuration: 300 iterations, a checkpoint every 100, no warm-up beyond 10."""
    saving: Callable[[Path, int], list[Write]]
    """The writes of one save below a save directory, in the trainer's order."""
    log_line: Callable[[int, float], str] | None
    """A progress line for an iteration and a loss; None where the log has no iteration."""
    folder: Callable[[Path, int], Path]
    """Where a checkpoint lies below a save directory."""
    empty_tracker: Callable[[Path], object] | None = None
    """Empties the tracker file, where there is one."""

    @property
    def configuration(self) -> dict[str, Any]:
        """A configuration of one trunk and a cooldown at 100."""
        return {
            "project": {"name": "t"},
            "backend": self.backend,
            "slurm": {"kind": "local"},
            "cooldowns": [{"at": [100], "decay": {"iterations": 50}}],
        }

    def save(self, save_dir: Path, iteration: int) -> None:
        """A save from its first write to its last."""
        for step in self.saving(save_dir, iteration):
            step()

    def torn(self, save_dir: Path, iteration: int) -> None:
        """A save that is killed before its last write."""
        for step in self.saving(save_dir, iteration)[:-1]:
            step()


def options(command: tuple[str, ...]) -> dict[str, str]:
    """The options of a command line; a bare flag is empty."""
    found: dict[str, str] = {}
    name = ""
    for word in command:
        if word.startswith("--"):
            name = word
            found[name] = ""
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return found


def emptied(tracker: str) -> Callable[[Path], object]:
    """Empties a tracker of this name below a save directory."""
    return lambda save_dir: (save_dir / tracker).write_text("")


def write(path: Path, text: str = "") -> Write:
    """A step that writes a file, in a folder that is made if need be."""

    def step() -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return step
