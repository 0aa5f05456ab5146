"""SLURM's commands behind a wrapper: it writes every call down, and misbehaves when told to."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

NAMES = ("squeue", "sacct", "sbatch", "scancel", "sinfo")

# Told by a file named after the command: shell lines, in which "$real" is the real command.
_WRAPPER = """#!/bin/sh
name=${{0##*/}}
real={real}/$name
printf '%s\\t%s\\t%s\\n' "$(date +%s.%N)" "$name" "$*" >>{folder}/calls
[ ! -e {folder}/$name.told ] || . {folder}/$name.told
exec "$real" "$@"
"""

_LIVE = "PD,R,S,ST,CF,CG,RQ,RH,RD,RF,RS,SI,SO"
HIDE_ENDED = f'exec "$real" "$@" -t {_LIVE}'
"""Told to squeue: forget ended jobs at once, as it does by itself after MinJobAge."""


class Call(NamedTuple):
    """One command that was run: when (seconds since 1970), which, with what."""

    time: float
    name: str
    arguments: str


class Commands:
    """The wrapped commands; `folder` has to come first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        found = shutil.which("squeue")
        assert found is not None
        text = _WRAPPER.format(real=Path(found).parent, folder=folder)
        for name in NAMES:
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.forget()

    @property
    def path(self) -> str:
        """PATH with the wrapper first."""
        return f"{self.folder}:{os.environ['PATH']}"

    def tell(self, name: str, lines: str) -> None:
        """From now on the command runs these shell lines first; they may `exit`."""
        draft = self.folder / f"{name}.draft"
        draft.write_text(lines + "\n")
        draft.rename(self.folder / f"{name}.told")

    def fails(self, name: str, words: str, code: int = 1) -> None:
        """From now on the command says `words` on its stderr and exits `code`."""
        self.tell(name, f"cat >&2 <<'.'\n{words}\n.\nexit {code}")

    def hangs(self, name: str) -> None:
        """From now on the command answers nothing, and does not end."""
        self.tell(name, "exec sleep 300")

    def behaves(self, *names: str) -> None:
        """From now on these commands, or all, are the real ones again."""
        for name in names or NAMES:
            (self.folder / f"{name}.told").unlink(missing_ok=True)

    def forget(self) -> None:
        """Start counting anew."""
        (self.folder / "calls").write_text("")

    def calls(self, name: str | None = None) -> list[Call]:
        """What was run since the last `forget`, in order."""
        lines = (self.folder / "calls").read_text().splitlines()
        found = [line.split("\t", 2) for line in lines]
        calls = [Call(float(when), what, arguments) for when, what, arguments in found]
        return [call for call in calls if name in (None, call.name)]

    def counts(self) -> dict[str, int]:
        """How often each command was run since the last `forget`."""
        names = [call.name for call in self.calls()]
        return {name: names.count(name) for name in NAMES if name in names}


@contextmanager
def wrapped(folder: Path) -> Iterator[Commands]:
    """SLURM's commands behind the wrapper, for this process and what it starts."""
    commands = Commands(folder / "autoexp-commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", commands.path)
        yield commands
