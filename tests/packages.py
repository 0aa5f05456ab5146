"""A package that extends autoexp, laid out in a folder as pip installs one."""

from pathlib import Path

# Each in a module of its own: a broken one stops no other.
MODULES = {
    "trainer": """
from typing import Literal
from autoexp.backends.demo import DemoBackend

class Mine(DemoBackend):
    kind: Literal["mine"] = "mine"
""",
    "condition": """
from pydantic import Field
from autoexp.extensions.bases import Never, OwnCondition, Situation
from autoexp.templates import fill

class QuotaLeft(OwnCondition):
    quota_left: str = Field(description="a file that is there while there is quota")

    def templates(self):
        yield self.quota_left

    def waits_for(self, situation: Situation) -> str | None:
        if situation.attempts > 5:
            raise Never("there is no quota for a sixth attempt")
        path = situation.directory / fill(self.quota_left, situation.values)
        return None if path.exists() else f"waits for {path}"
""",
    "action": """
from typing import Literal
from pydantic import Field
from autoexp.extensions.bases import OwnAction
from autoexp.templates import fill

class Notify(OwnAction):
    \"\"\"Tell the group.\"\"\"
    kind: Literal["notify"] = "notify"
    message: str = Field(description="the message, a template")

    def templates(self):
        yield self.message

    def run(self, values, session):
        message = fill(self.message, values)
        with (session / "told").open("a") as told:
            told.write(message + "\\n")
        return f"told the group: {message}"
""",
    "machine": """
from typing import Literal
from autoexp.resources.local import OwnMachine

class Desk(OwnMachine):
    kind: Literal["desk"] = "desk"

    def scheduler(self):
        from autoexp.schedulers.local import LocalScheduler

        class DeskScheduler(LocalScheduler):
            def submit(self, ref, options, lock):
                (ref.directory / "on-the-desk").touch()
                return super().submit(ref, options, lock)

        return DeskScheduler()
""",
}
ENTRIES = {
    "autoexp.backends": "mine = my_trainer:Mine",
    "autoexp.conditions": "quota_left = my_condition:QuotaLeft",
    "autoexp.actions": "notify = my_action:Notify",
    "autoexp.schedulers": "desk = my_machine:Desk",
}


def install(folder: Path, entries: dict[str, str] = ENTRIES) -> None:
    """The package `my-lab` in a folder for PYTHONPATH, with these entry points by group."""
    for name, text in MODULES.items():
        (folder / f"my_{name}.py").write_text(text)
    info = folder / "my_lab-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    text = "".join(f"[{group}]\n{lines}\n" for group, lines in entries.items())
    (info / "entry_points.txt").write_text(text)
