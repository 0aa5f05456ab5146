"""Jobs that run inside a real image, on this machine."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from autoexp.config.compose import compose
from autoexp.jobs.record import Attempt
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.schedulers.base import AttemptRef, prepare
from autoexp.schedulers.launch import payload_spec
from autoexp.schedulers.local import LocalScheduler
from tests.builders import attempt_of
from tests.patience import until

SETS_OF_OPTIONS = (
    (),
    ("--cleanenv",),
    ("--containall",),
    ("--compat",),
    ("--userns",),
)
"""What sites recommend, and what changes most of what is seen inside."""
COUNTS = """
import json, pathlib, signal, time
got = []
signal.signal(signal.SIGTERM, lambda *_: got.append(1))
print("ready", flush=True)
while not got:
    time.sleep(0.01)
time.sleep(1)  # what comes twice comes at once
pathlib.Path("saved").write_text(json.dumps(len(got)))
print(len(got))
"""
"""A trainer that saves how often it was signalled, and prints it."""
SEEN = "import json, os; print(json.dumps(dict(os.environ)))"
ODD = {
    "QUOTES": 'it\'s "quoted"',
    "EVALUATED": "$HOME ${HOME} `id` $(id) \\$x",
    "BACKSLASHES": "\\ \\\\ \\n ends in one\\",
    "LINES": "one\ntwo\n",
    "COMMAS": "a,b=c:d;e",
    "LONG": "x" * 10_000,
    "EMPTY": "",
    "UNICODE": "schön 漢字",
}
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).map(lambda name: f"T_{name}")
TEXTS = st.text(
    st.sampled_from([*"$`\"'\\\n,:;=(){}!%*? ab", "\t"]) | st.characters(codec="utf-8"), max_size=40
).filter(lambda text: "\0" not in text)
MISSING = "there is no apptainer here: tests/containers/apptainer.sh install"


def runs_here() -> bool:
    """True if Apptainer is installed, and starts something."""
    return shutil.which("apptainer") is not None


class Image(NamedTuple):
    """An image, and what has to be bound for its programs."""

    path: Path
    binds: tuple[str, ...] = ()

    def overrides(self, *options: str, binds: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Overrides of a configuration for a training in this image."""
        return (
            *("container=apptainer", f"container.image={self.path}", "container.gpus=none"),
            f"container.binds={json.dumps([*self.binds, *binds])}",
            f"container.options={json.dumps(options)}",
        )

    def need_directory(self) -> None:
        """Skip the test where the image is one file, which Apptainer alone takes."""
        if not self.path.is_dir():
            pytest.skip(f"{self.path} is no directory")

    def in_ch_run(self, *options: str, binds: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Overrides of a training in this image by ch-run, which has places for the binds then.

        What the image says of its environment, `--set-env` takes.
        """
        self.need_directory()
        (own := self.path / "ch").mkdir(exist_ok=True)
        said = ("OMP", "OF_THE_IMAGE", "RANK", "WORLD_SIZE", "MASTER_ADDR", "AUTOEXP_KEY")
        (own / "environment").write_text("".join(f"{name}=of-the-image\n" for name in said))
        folders = [bind.removesuffix(":ro") for bind in (*self.binds, *binds)]
        for folder in folders:
            Path(f"{self.path}{folder}").mkdir(parents=True, exist_ok=True)
        return (
            *("container=charliecloud", f"container.image={self.path}"),
            f"container.binds={json.dumps(folders)}",
            f"container.options={json.dumps(options)}",
        )


def image_of_this_machine(folder: Path) -> Image:
    """An image in a directory: a root of its own, whose programs are this machine's, bound."""
    made, folder = folder, folder.with_name(f"{folder.name}-sources")
    for name in ("dev", "etc", "proc", "root", "sys", "tmp", "usr", "var/tmp"):
        (folder / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        if Path("/", name).is_symlink():
            (folder / name).symlink_to(f"usr/{name}")
    for name in ("passwd", "group", "hosts", "resolv.conf", "of-the-image"):
        (folder / "etc" / name).touch()
    # What Apptainer itself puts into an image: without it variables are set another way.
    subprocess.run(["apptainer", "build", "--sandbox", made, folder], check=True)
    return Image(made, ("/usr:/usr:ro",))


class Box(NamedTuple):
    """An attempt that is laid out for its payload."""

    ref: AttemptRef
    spec: JobSpec
    attempt: Attempt

    def start(self, **environment: str) -> "subprocess.Popen[bytes]":
        """Start the payload, as a scheduler does."""
        return subprocess.Popen(
            [sys.executable, str(self.ref.directory / "payload.py")],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def run(self, **environment: str) -> Any:
        """Run the payload to its end; what the program printed as JSON."""
        assert self.start(**environment).wait(300) == 0, self.log
        return json.loads(self.log.splitlines()[-1])

    @property
    def log(self) -> str:
        path = Path(self.attempt.log)
        return path.read_text() if path.exists() else ""


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def container_ends_before_its_attempt(
    made: Box, payload: "subprocess.Popen[bytes]", is_gone: Callable[[], bool]
) -> None:
    """Kill a payload; raise AssertionError unless its container ends before its attempt does."""
    payload.kill()
    payload.wait()
    scheduler = LocalScheduler()

    def state() -> str:
        return scheduler.query([made.ref])[made.ref.key].state

    assert state() == "RUNNING"  # it was there, and is ended
    until(is_gone, "the end of the container")
    until(lambda: state() == "FAILED", "the end of the attempt")


def box(session: Path, program: str, *overrides: str, **variables: str) -> Box:
    """A training of a session whose trainer is a program's text, in the image of the overrides."""
    asked = [*("cooldowns=[]", "project.name=boxed"), *overrides]
    experiment = compose("demo", asked).experiment
    if variables:
        own = {"variables": {**getattr(experiment.container, "variables", {}), **variables}}
        container = experiment.container.model_copy(update=own)
        experiment = experiment.model_copy(update={"container": container})
    trunk = make_plan(experiment, session / "output").trunk
    spec = trunk.model_copy(update={"command": (sys.executable, "-c", program)})
    key = "s-boxed-a1"
    attempt = attempt_of(key, str(session / "job.log"))
    ref = AttemptRef(key, session / "attempts" / key, key, "batch.sh")
    prepare(ref, spec, attempt, payload_spec(spec.machine, spec, key))
    return Box(ref, spec, attempt)


def any_name_and_value_arrives(
    overrides: tuple[str, ...], folders: pytest.TempPathFactory, values: st.SearchStrategy[str]
) -> None:
    """Raise AssertionError with a variable that a program in the image sees as another value."""

    @settings(
        max_examples=4,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],  # a run takes a second
        suppress_health_check=list(HealthCheck),
    )
    @given(st.dictionaries(NAMES, values, min_size=20, max_size=40))
    def arrives(variables: dict[str, str]) -> None:
        seen = box(folders.mktemp("any"), SEEN, *overrides, **variables).run()
        assert {name: seen.get(name) for name in variables} == variables

    arrives()
