"""The image that a trainer runs in: submission stays outside, the training command goes inside."""

import os
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, PrivateAttr, ValidationInfo, create_model, field_validator

from autoexp.model import COMPOSING, FrozenModel
from autoexp.redaction import Variables

# Variables that the payload and the launcher set inside the job; Docker passes none on by itself.
_OF_THE_JOB = (
    *("AUTOEXP_KEY", "AUTOEXP_ATTEMPT", "MASTER_ADDR", "MASTER_PORT", "PET_RDZV_ENDPOINT"),
    *("PET_LOCAL_ADDR", "PET_RDZV_CONF"),
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"),
    *("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS", "SLURM_NODEID"),
)
KEPT_BY_THE_RUNTIME = ("PATH", "LD_LIBRARY_PATH")
"""Variables that are the image's own whatever is set outside: Apptainer writes them itself."""
_OF_PYTHON = ("PYTHONPATH", "PYTHONHOME")
_NO_USER_SITE = "PYTHONNOUSERSITE"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLACEHOLDER = re.compile(r"\{(job|key|output_dir)\}")
_PLAIN = re.compile(r"[^,:\"\n]+")
# The host's Python as a whole word or a part of one, as in `env X=1 PYTHON` or `--python=PYTHON`.
_HOST_PYTHON = re.compile(rf"(?<![\w./-]){re.escape(sys.executable)}(?![\w./-])")


class Handing(NamedTuple):
    """What is set inside whatever the runtime's options keep out, and what stays outside."""

    prefixes: tuple[str, ...] = ()
    """In front of a variable's name they set it inside; empty where a command line names it."""
    names: tuple[str, ...] = ()
    """Variables that go in besides those of the job itself."""
    defaults: dict[str, str] = {}  # noqa: RUF012
    """Variables inside unless something else sets them."""
    without: tuple[str, ...] = ()
    """Variables of the host that are the image's own matter."""


def _without_python(asked: Collection[str]) -> Handing:
    """The host's Python packages stay outside, unless somebody asks for them."""
    return Handing(
        # ~/.local, since most runtimes mount the home directory.
        defaults={} if _NO_USER_SITE in asked else {_NO_USER_SITE: "1"},
        without=tuple(name for name in _OF_PYTHON if name not in asked),
    )


class _Runtime(FrozenModel):
    """What a job asks of where its command runs; as it is where nothing has to be handed in."""

    def handing(self, names: Iterable[str]) -> Handing:
        """Nothing: the job's environment is the trainer's, or a command line names what goes in."""
        del names
        return Handing()

    def step(self, output_dir: str, names: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
        """Options of srun, where that is what starts the image: none."""
        del output_dir, names, paths
        return ()

    def named(self, name: str) -> Self:
        """As it is: what it starts ends with its own process."""
        del name
        return self

    def stop(self) -> tuple[str, ...]:
        """The command that ends what would outlive its own process: none."""
        return ()


if TYPE_CHECKING:
    _Passing = _Runtime
else:
    # `pass` is a word of Python's own.
    _Passing = create_model(
        "_Passing",
        __base__=_Runtime,
        **{
            "pass": (
                tuple[str, ...],
                Field(
                    (),
                    description="names of variables of your environment that are to be set inside, "
                    "such as HF_TOKEN: their values are never stored",
                ),
            )
        },
    )


class NoContainer(_Runtime):
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


class _Image(_Passing):
    """Fields of all runtimes."""

    image: str = Field(min_length=1, description="the image, by the runtime's name for it")
    binds: tuple[str, ...] = Field(
        (),
        description="bind mounts: /path, /host:/inside or /host:/inside:ro; in these, in options "
        "and in variables {job}, {key} and {output_dir} are those of the attempt",
    )
    variables: Variables = Field(default_factory=dict, description="variables inside")
    gpus: Literal["none", "nv", "rocm"] = Field(
        "none", description="vendor of the GPUs that are visible inside"
    )
    workdir: str | None = Field(None, description="directory inside; the job's own if unset")
    python: str = Field("python3", description="Python inside, in place of autoexp's own")
    options: tuple[str, ...] = Field((), description="further options of the runtime")
    command: str | None = Field(
        None,
        min_length=1,
        description="the runtime's program, where it has another name or lies elsewhere: "
        "/opt/apptainer/bin/apptainer; for docker a program that takes its options: podman-hpc",
    )

    def for_attempt(self, values: Mapping[str, str]) -> Self:
        """The settings of one attempt: `{job}`, `{key}` and `{output_dir}` are filled in."""

        def filled(text: str) -> str:
            return _PLACEHOLDER.sub(lambda match: values[match[1]], text)

        return self.model_copy(
            update={
                "options": tuple(map(filled, self.options)),
                "binds": tuple(map(filled, self.binds)),
                "variables": {name: filled(text) for name, text in self.variables.items()},
            }
        )

    @property
    def image_file(self) -> Path | None:
        """The image where it is a path, and not a name of a registry or of a daemon."""
        return Path(self.image) if self.image.startswith("/") else None

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of variables that are passed on from the user's own environment."""
        found: tuple[str, ...] = getattr(self, "pass")
        return found

    def environment(self) -> dict[str, str]:
        """Variables of the job, the ones that are set inside among them."""
        return dict(self.variables)

    @field_validator("pass", check_fields=False)
    @classmethod
    def _only_names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(
                    f"{name!r} is not the name of a variable; values are not written here, they "
                    "come from your environment"
                )
        return names

    @field_validator("binds")
    @classmethod
    def _absolute_binds(cls, binds: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        # A job runs in its own directory, and would look there for what is relative.
        return tuple(map(_absolute_bind, binds)) if info.context == COMPOSING else binds

    def mounts(self, paths: Sequence[str]) -> list["Bind"]:
        """What is mounted, parents before what lies in them; the configuration's own win."""
        own = [Bind.parse(text) for text in self.binds]
        taken = {bind.inside for bind in own}
        ours = [Bind(path, path) for path in dict.fromkeys(paths) if path not in taken]
        writable = [Path(bind.host) for bind in (*ours, *own) if bind == Bind(bind.host, bind.host)]
        needed = [bind for bind in ours if not any(w in Path(bind.host).parents for w in writable)]
        return sorted((*needed, *own), key=lambda bind: len(Path(bind.inside).parts))

    def _command(self, command: tuple[str, ...]) -> tuple[str, ...]:
        # autoexp's own Python is a path on the host, wherever in the command it stands.
        return tuple(_HOST_PYTHON.sub(lambda _: self.python, word) for word in command)


class Bind(NamedTuple):
    """A directory or file of the host, and where it is inside."""

    host: str
    inside: str
    mode: str = ""

    @classmethod
    def parse(cls, text: str) -> "Bind":
        """Read `/path`, `/host:/inside` or `/host:/inside:ro`."""
        if "," in text:
            return cls(text, text)
        host, _, rest = text.partition(":")
        inside, _, mode = rest.partition(":")
        return cls(host, inside or host, mode)

    @property
    def is_plain(self) -> bool:
        """True if no character in it means something to the short notation."""
        return bool(_PLAIN.fullmatch(self.host) and _PLAIN.fullmatch(self.inside))

    @property
    def short(self) -> str:
        """`/host:/inside:ro`, as short as it can be."""
        same = self.host == self.inside and not self.mode
        return self.host if same else ":".join(filter(None, self))

    @property
    def mount(self) -> str:
        """The long notation, a line of CSV: for names with a comma or a colon."""
        fields = ["type=bind", f"source={self.host}", f"destination={self.inside}"]
        quoted = ('"' + field.replace('"', '""') + '"' for field in fields)
        return ",".join([*quoted, *(["ro"] if self.mode == "ro" else [])])


def _absolute_bind(text: str) -> str:
    """The bind with an absolute path of the host; raises ValueError for what is ambiguous."""
    if "," in text and not Path(text).exists():
        raise ValueError(f"{text!r}: give each bind as an item of its own, not with a comma")
    if text.count(":") > 2:
        raise ValueError(f"{text!r}: write /path, /host:/inside or /host:/inside:ro")
    host, colon, rest = text.partition(":")
    if host.startswith("{"):
        return text  # as {output_dir}, which is absolute
    inside = rest.partition(":")[0]
    if colon and not inside.startswith("/"):
        raise ValueError(f"{text!r}: the path inside has to be absolute")
    return f"{_absolute(host)}{colon}{rest}"


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else path


class Apptainer(_Image):
    """Apptainer, or Singularity as it was called before."""

    kind: Literal["apptainer", "singularity"] = "apptainer"

    # The `singularity` of one site is Apptainer, of another Singularity, which knows the second.
    _PREFIXES: ClassVar = ("APPTAINERENV_", "SINGULARITYENV_")

    @field_validator("image")
    @classmethod
    def _absolute_image(cls, image: str, info: ValidationInfo) -> str:
        is_file = info.context == COMPOSING and "://" not in image
        return _absolute(image) if is_file else image

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
        return _without_python({*named, *self.variables})._replace(
            prefixes=self._PREFIXES,
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
                self.command or self.kind,
                "exec",
                *gpus,
                *binds,
                "--pwd",
                self.workdir or output_dir,
            ),
            *(*self.options, self.image, *self._command(command)),
        )


class Docker(_Image):
    """Docker, or a command compatible with it."""

    kind: Literal["docker"] = "docker"
    _name: str = PrivateAttr("")

    @property
    def program(self) -> str:
        """The program that is run."""
        return self.command or self.kind

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


class _OfSrun(_Image):
    """A runtime that a plugin of SLURM starts, by options of srun: all behind srun is inside."""

    def handing(self, names: Iterable[str]) -> Handing:
        """The job's environment goes in as it is, but for the host's Python packages."""
        return _without_python({*names, *self.passed, *self.variables})

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
        return _absolute(image) if is_relative else image

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
        return _absolute(image) if info.context == COMPOSING and "/" in image else image

    def mounts(self, paths: Sequence[str]) -> list["Bind"]:
        """None of ours: the file says them."""
        del paths
        return []

    def step(self, output_dir: str, names: Iterable[str], paths: Sequence[str]) -> tuple[str, ...]:
        """Options of srun: the file."""
        del output_dir, names, paths
        return (f"--environment={self.image}", *self.options)


Container = Annotated[NoContainer | Apptainer | Docker | Pyxis | Edf, Field(discriminator="kind")]
