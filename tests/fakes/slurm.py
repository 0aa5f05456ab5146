"""SLURM's commands as scripts of recorded words."""

from pathlib import Path

COMMANDS = ("sbatch", "squeue", "sacct", "scancel", "scontrol", "sinfo")


class Fakes:
    """SLURM's commands, which write their calls down and then do as they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in (*COMMANDS, "srun"):  # submitit looks for this one
            self.tell(name, "exit 0")

    def tell(self, name: str, lines: str) -> None:
        """Shell lines for a command."""
        script = self.folder / name
        script.write_text(
            f'#!/bin/sh\nPATH=/usr/bin:/bin\necho "{name} $*" >>{self.folder}/calls\n{lines}\n'
        )
        script.chmod(0o755)

    def says(self, name: str, *lines: str) -> None:
        """Lines that a command answers."""
        text = "\n".join(lines)
        self.tell(name, f"cat <<'.'\n{text}\n.")

    def fails(self, name: str, words: str) -> None:
        """Words with which a command fails."""
        self.tell(name, f"cat >&2 <<'.'\n{words}\n.\nexit 1")

    def calls(self, name: str) -> list[str]:
        """Arguments of a command's calls."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.startswith(f"{name} ")]
