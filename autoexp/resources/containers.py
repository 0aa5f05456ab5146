"""The image that a trainer runs in: submission stays outside, the training command goes inside."""

import os
import sys
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from autoexp.model import FrozenModel
from autoexp.redaction import Variables

# Variables that the payload and the launcher set inside the job; Docker passes none on by itself.
_OF_THE_JOB = (
    *("AUTOEXP_KEY", "AUTOEXP_ATTEMPT", "MASTER_ADDR", "MASTER_PORT", "PET_RDZV_ENDPOINT"),
    *("PET_LOCAL_ADDR", "PET_RDZV_CONF"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODEID"),
)


class NoContainer(FrozenModel):
    """The trainer runs on the node as it is."""

    kind: Literal["none"] = "none"

    def environment(self) -> dict[str, str]:
        return {}

    def inside(
        self, command: tuple[str, ...], output_dir: str, names: Iterable[str]
    ) -> tuple[str, ...]:
        """The command to run on the node."""
        del output_dir, names
        return command


class _Image(FrozenModel):
    """Fields of all runtimes."""

    image: str = Field(min_length=1, description="the image, by the runtime's name for it")
    binds: tuple[str, ...] = Field(
        (), description="bind mounts: /path, /host:/inside or /host:/inside:ro"
    )
    variables: Variables = Field(default_factory=dict, description="variables inside")
    gpus: Literal["none", "nv", "rocm"] = Field(
        "none", description="vendor of the GPUs that are visible inside"
    )
    workdir: str | None = Field(None, description="directory inside; the job's own if unset")
    python: str = Field("python3", description="Python inside, in place of autoexp's own")
    options: tuple[str, ...] = Field((), description="further options of the runtime")

    def _command(self, command: tuple[str, ...]) -> tuple[str, ...]:
        # autoexp's own Python is a path on the host.
        return (self.python, *command[1:]) if command[0] == sys.executable else command


class Apptainer(_Image):
    """Apptainer, or Singularity as it was called before."""

    kind: Literal["apptainer", "singularity"] = "apptainer"

    def environment(self) -> dict[str, str]:
        """Variables of the job that become variables inside: `--env` would split at commas."""
        return {f"{self.kind.upper()}ENV_{name}": value for name, value in self.variables.items()}

    def inside(
        self, command: tuple[str, ...], output_dir: str, names: Iterable[str]
    ) -> tuple[str, ...]:
        """The command to run on the node; the job's environment is passed on."""
        del names
        gpus = () if self.gpus == "none" else (f"--{self.gpus}",)
        binds = (word for bind in (output_dir, *self.binds) for word in ("--bind", bind))
        return (
            *(self.kind, "exec", *gpus, *binds, "--pwd", self.workdir or output_dir),
            *(*self.options, self.image, *self._command(command)),
        )


class Docker(_Image):
    """Docker, or a command compatible with it."""

    kind: Literal["docker"] = "docker"

    def environment(self) -> dict[str, str]:
        return dict(self.variables)

    def inside(
        self, command: tuple[str, ...], output_dir: str, names: Iterable[str]
    ) -> tuple[str, ...]:
        """The command to run on the node; variables are passed by name, without their values."""
        gpus = {
            "none": (),
            "nv": ("--gpus", "all"),
            "rocm": ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video"),
        }[self.gpus]
        volumes = (
            word
            for bind in (output_dir, *self.binds)
            for word in ("--volume", bind if ":" in bind else f"{bind}:{bind}")
        )
        known = dict.fromkeys((*_OF_THE_JOB, *names))
        return (
            *("docker", "run", "--rm", "--init", "--network", "host", "--ipc", "host"),
            *("--user", f"{os.getuid()}:{os.getgid()}", *gpus, *volumes),
            *(word for name in known for word in ("--env", name)),
            *("--workdir", self.workdir or output_dir),
            *(*self.options, self.image, *self._command(command)),
        )


Container = Annotated[NoContainer | Apptainer | Docker, Field(discriminator="kind")]
