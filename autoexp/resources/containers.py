"""The image that a trainer runs in: submission stays outside, the training command goes inside."""

import getpass
import os
import re
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, field_validator

from autoexp.model import COMPOSING
from autoexp.resources.runtimes import (
    KEPT_BY_THE_RUNTIME,
    Bind,
    Handing,
    Image,
    Runtime,
    absolute,
    without_python,
)

# Variables that the payload and the launcher set inside the job; Docker passes none on by itself.
_OF_THE_JOB = (
    *("AUTOEXP_KEY", "AUTOEXP_ATTEMPT", "MASTER_ADDR", "MASTER_PORT", "PET_RDZV_ENDPOINT"),
    *("PET_LOCAL_ADDR", "PET_RDZV_CONF"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODEID"),
)


class NoContainer(Runtime):
    """The trainer runs on the node as it is."""

    kind: Literal["none"] = "none"

    @property
    def image_file(self) -> None:
        """None: there is no image."""

    def environment(self) -> dict[str, str]:
        return {}

    def inside(
        self,
        command: tuple[str, ...],
        output_dir: str,
        names: Iterable[str],
        paths: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command to run on the node."""
        del output_dir, names, paths
        return command


class Apptainer(Image):
    """Apptainer, or Singularity as it was called before."""

    kind: Literal["apptainer", "singularity"] = "apptainer"

    # The `singularity` of one site is Apptainer, of another Singularity, which knows the second.
    _PREFIXES: ClassVar = ("APPTAINERENV_", "SINGULARITYENV_")

    @field_validator("image")
    @classmethod
    def _absolute_image(cls, image: str, info: ValidationInfo) -> str:
        is_file = info.context == COMPOSING and "://" not in image
        return absolute(image) if is_file else image

    def environment(self) -> dict[str, str]:
        """Variables of the job that become variables inside: `--env` would split at commas.

        A shell inside would evaluate `$HOME` and backquotes in their values (`--no-eval`).
        """
        return {
            "APPTAINER_NO_EVAL": "1",
            "SINGULARITY_NO_EVAL": "1",
            **{
                f"{prefix}{name}": value
                for name, value in self.variables.items()
                for prefix in self._PREFIXES
            },
        }

    def handing(self, names: Iterable[str]) -> Handing:
        """What goes in, whatever `--cleanenv` and the image say; `names` are the configuration's.

        The host's Python packages stay outside, unless the configuration names their variables.
        """
        named = tuple(dict.fromkeys((*names, *self.passed)))
        return without_python({*named, *self.variables})._replace(
            prefixes=self._PREFIXES,
            # To the shell that is built into it, mvdan/sh, they are the end of its input and an
            # escaped end of line: with one of them it sets no variable at all.
            unreadable="\x80\x81",
            names=tuple(name for name in named if name not in KEPT_BY_THE_RUNTIME),
        )

    def inside(
        self,
        command: tuple[str, ...],
        output_dir: str,
        names: Iterable[str],
        paths: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command to run on the node; variables go in by the environment (`handing`)."""
        del names
        gpus = () if self.gpus == "none" else (f"--{self.gpus}",)
        binds = (
            word
            for bind in self.mounts((output_dir, *paths))
            for word in (("--bind", bind.short) if bind.is_plain else ("--mount", bind.mount))
        )
        return (
            *(
                self.program,
                "exec",
                *gpus,
                *binds,
                "--pwd",
                self.workdir or output_dir,
            ),
            *(*self.options, self.image, *self._command(command)),
        )


class Docker(Image):
    """Docker, or a command compatible with it."""

    kind: Literal["docker"] = "docker"
    _name: str = PrivateAttr("")

    def named(self, name: str) -> Self:
        """With a name for its container, unless the options have one: by it, it can be ended."""
        if any(word.partition("=")[0] == "--name" for word in self.options):
            return self
        copy = self.model_copy()
        copy._name = name
        return copy

    def stop(self) -> tuple[str, ...]:
        """End the container, which is its daemon's and lives on when the client is killed.

        It fails where none runs, so an answer of 0 says that there was one.
        """
        return (self.program, "kill", self._name) if self._name else ()

    def inside(
        self,
        command: tuple[str, ...],
        output_dir: str,
        names: Iterable[str],
        paths: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command to run on the node; variables are passed by name, without their values."""
        gpus = {
            "none": (),
            "nv": ("--gpus", "all"),
            "rocm": ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video"),
        }[self.gpus]
        volumes = (
            word
            for bind in self.mounts((output_dir, *paths))
            for word in (
                ("--volume", ":".join(filter(None, bind)))
                if bind.is_plain
                else ("--mount", bind.mount)
            )
        )
        known = dict.fromkeys((*_OF_THE_JOB, *names, *self.passed))
        return (
            *(
                self.program,
                "run",
                "--rm",
                "--init",
                "--network",
                "host",
                "--ipc",
                "host",
            ),
            *("--user", f"{os.getuid()}:{os.getgid()}", *gpus, *volumes),
            *(("--name", self._name) if self._name else ()),
            *(word for name in known for word in ("--env", name)),
            *("--workdir", self.workdir or output_dir),
            *(*self.options, self.image, *self._command(command)),
        )


class Charliecloud(Image):
    """Charliecloud's ch-run, in an image that is a directory.

    It becomes the command, in the job's own environment, so signals and exit codes are as without
    it. Its options are those of 0.31, ch-run(1).
    """

    kind: Literal["charliecloud"] = "charliecloud"
    gpus: Literal["none"] = Field(
        "none", description="it has no flag: `ch-fromhost --nvidia IMAGE` puts a driver's in, once"
    )

    passes_signals = False
    # `--set-env=NAME=$THIS_NAME` sets a variable to another's value, whatever is in it.
    _PREFIX: ClassVar = "AUTOEXPENV_"
    # Of an image that says nothing; a host's leads to its own programs, where they are mounted.
    _PATH: ClassVar = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    # The payload sets them in every job, so they may count above the image's own.
    _ALWAYS_SET: ClassVar = ("AUTOEXP_KEY", "AUTOEXP_ATTEMPT", "MASTER_ADDR", "MASTER_PORT")
    _NEEDED: ClassVar = (
        *("AUTOEXP", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "PET_"),
    )

    @property
    def program(self) -> str:
        """The program that is run."""
        return self.command or "ch-run"

    @property
    def makes_places(self) -> bool:
        """True if its options let it make the directories that it mounts on."""
        words = (word.partition("=")[0] for word in self.options)
        return any(w.startswith("--w") or re.fullmatch("-[a-z]*[wW].*", w) for w in words)

    @field_validator("image")
    @classmethod
    def _absolute_image(cls, image: str, info: ValidationInfo) -> str:
        # Names are those of a storage of the user's, by default in /var/tmp of one node.
        return absolute(image) if info.context == COMPOSING else image

    @field_validator("binds")
    @classmethod
    def _writable(cls, binds: tuple[str, ...]) -> tuple[str, ...]:
        if odd := next((text for text in binds if Bind.parse(text).mode), None):
            raise ValueError(f"{odd!r}: ch-run mounts to be written alone; leave out what follows")
        return binds

    @field_validator("options")
    @classmethod
    def _leave_the_environment(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for word, following in zip(options, (*options[1:], ""), strict=False):
            name, _, glob = word.partition("=")
            if name.startswith("--env") and "--env-no-expand".startswith(name):
                raise ValueError(f"{word}: variables are handed in by what it turns off")
            if not name.startswith("--unse") or not "--unset-env".startswith(name):
                continue
            plain = re.match(r"\w*", glob or following, re.ASCII)
            begin = plain[0] if plain else ""
            if any(need.startswith(begin) or begin.startswith(need) for need in cls._NEEDED):
                raise ValueError(
                    f"{word}: it could take out what the job needs, such as RANK and AUTOEXP_KEY; "
                    "name what is to go, as --unset-env=SLURM*"
                )
        return options

    def environment(self) -> dict[str, str]:
        """Variables of the job that become variables inside."""
        return {f"{self._PREFIX}{name}": value for name, value in self.variables.items()}

    def handing(self, names: Iterable[str]) -> Handing:
        """What counts above the image's own `--set-env`; all else of the job goes in by itself."""
        named = tuple(dict.fromkeys(names))
        return without_python({*named, *self.passed, *self.variables})._replace(
            prefixes=(self._PREFIX,),
            names=tuple(name for name in named if name not in KEPT_BY_THE_RUNTIME),
            own={"USER": _user()},
        )

    def inside(
        self,
        command: tuple[str, ...],
        output_dir: str,
        names: Iterable[str],
        paths: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command to run on the node; no value of a variable stands on it."""
        configured = [name for name in names if not name.startswith(self._PREFIX)]
        defaults = self.handing(configured).defaults
        own = (name for name in configured if name not in KEPT_BY_THE_RUNTIME)
        last = dict.fromkeys((*own, *defaults, *self.variables, *self._ALWAYS_SET))
        kept = {"PATH": f"--set-env=PATH={self._PATH}"} | {
            name: f"--unset-env={name}" for name in KEPT_BY_THE_RUNTIME if name != "PATH"
        }
        return (
            self.program,
            *(word for name, word in kept.items() if name not in self.passed),
            *(f"--bind={bind.host}:{bind.inside}" for bind in self.mounts((output_dir, *paths))),
            f"--cd={self.workdir or output_dir}",
            *self.options,
            *(f"--set-env={name}=${self._PREFIX}{name}" for name in last),
            f"--unset-env={self._PREFIX}*",
            *(self.image, "--", *self._command(command)),
        )


def _user() -> str:
    """This user's name, without which ch-run does not start."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # of a number without a name
        return str(os.getuid())


class _OfSrun(Image):
    """A runtime that a plugin of SLURM starts, by options of srun: all behind srun is inside."""

    def handing(self, names: Iterable[str]) -> Handing:
        """The job's environment goes in as it is, but for the host's Python packages."""
        return without_python({*names, *self.passed, *self.variables})

    def inside(
        self,
        command: tuple[str, ...],
        output_dir: str,
        names: Iterable[str],
        paths: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """The command behind srun, which is inside already."""
        del output_dir, names, paths
        return self._command(command)


class Pyxis(_OfSrun):
    """Enroot through NVIDIA's pyxis."""

    kind: Literal["pyxis"] = "pyxis"

    @field_validator("image")
    @classmethod
    def _absolute_file(cls, image: str, info: ValidationInfo) -> str:
        # Other words are names of a registry, to pyxis as well.
        is_relative = info.context == COMPOSING and image.startswith((".", "~"))
        return absolute(image) if is_relative else image

    @field_validator("binds")
    @classmethod
    def _no_commas(cls, binds: tuple[str, ...]) -> tuple[str, ...]:
        if odd := next((text for text in binds if "," in text), None):
            raise ValueError(f"{odd!r}: pyxis takes a comma for the end of a mount")
        return binds

    def step(self, output_dir: str, names: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
        """Options of srun: image, mounts, directory, and variables that win over the image's."""
        binds = self.mounts((output_dir, *paths))
        mounts = ",".join(":".join(filter(None, bind)) for bind in binds)
        kept = (name for name in dict.fromkeys((*names, *self.variables, *self.passed)))
        variables = ",".join(name for name in kept if name not in KEPT_BY_THE_RUNTIME)
        return (
            *(f"--container-image={self.image}", f"--container-mounts={mounts}"),
            f"--container-workdir={self.workdir or output_dir}",
            *((f"--container-env={variables}",) if variables else ()),
            *self.options,
        )


class Edf(_OfSrun):
    """CSCS's container engine: an environment definition file says image, mounts and variables."""

    kind: Literal["edf"] = "edf"

    @field_validator("binds")
    @classmethod
    def _no_binds(cls, binds: tuple[str, ...]) -> tuple[str, ...]:
        if binds:
            raise ValueError("the environment's file says what is mounted: `mounts` in it")
        return binds

    @field_validator("image")
    @classmethod
    def _absolute_file(cls, image: str, info: ValidationInfo) -> str:
        # A name alone is a file in ~/.edf, which the engine finds by itself.
        return absolute(image) if info.context == COMPOSING and "/" in image else image

    def mounts(self, paths: Sequence[str]) -> list[Bind]:
        """None of ours: the file says them."""
        del paths
        return []

    def step(self, output_dir: str, names: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
        """Options of srun: the file."""
        del output_dir, names, paths
        return (f"--environment={self.image}", *self.options)


Container = Annotated[
    NoContainer | Apptainer | Docker | Charliecloud | Pyxis | Edf, Field(discriminator="kind")
]
