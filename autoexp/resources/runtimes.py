"""What all runtimes of containers have in common: an image, its binds, and what goes inside."""

import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, ValidationInfo, create_model, field_validator, model_validator

from autoexp.model import COMPOSING, FrozenModel
from autoexp.redaction import Variables

KEPT_BY_THE_RUNTIME = ("PATH", "LD_LIBRARY_PATH")
"""Variables that are the image's own whatever is set outside: Apptainer writes them itself."""
_OF_PYTHON = ("PYTHONPATH", "PYTHONHOME")
_NO_USER_SITE = "PYTHONNOUSERSITE"
# Programs whose options are those of one kind.
_KINDS = {
    **dict.fromkeys(("apptainer", "singularity"), ("apptainer", "singularity")),
    **dict.fromkeys(("docker", "podman", "podman-hpc"), ("docker",)),
    "ch-run": ("charliecloud",),
}
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
    unreadable: str = ""
    """Characters that the runtime does not take: a value with one of them costs all others."""
    own: dict[str, str] = {}  # noqa: RUF012
    """Variables that the runtime itself asks for, where nothing sets them."""


def without_python(asked: Collection[str]) -> Handing:
    """The host's Python packages stay outside, unless somebody asks for them."""
    return Handing(
        # ~/.local, since most runtimes mount the home directory.
        defaults={} if _NO_USER_SITE in asked else {_NO_USER_SITE: "1"},
        without=tuple(name for name in _OF_PYTHON if name not in asked),
    )


class Runtime(FrozenModel):
    """What a job asks of where its command runs; as it is where nothing has to be handed in."""

    passes_signals: ClassVar = False
    """True if its own process passes signals on, so that a signal to its group comes twice."""

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
    _Passing = Runtime
else:
    # `pass` is a word of Python's own.
    _Passing = create_model(
        "_Passing",
        __base__=Runtime,
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


class Image(_Passing):
    """Fields of all runtimes."""

    if TYPE_CHECKING:
        kind: str

    passes_signals = True

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
    def program(self) -> str:
        """The program that is run."""
        return self.command or self.kind

    @property
    def passed(self) -> tuple[str, ...]:
        """Names of variables that are passed on from the user's own environment."""
        found: tuple[str, ...] = getattr(self, "pass")
        return found

    def environment(self) -> dict[str, str]:
        """Variables of the job, the ones that are set inside among them."""
        return dict(self.variables)

    @model_validator(mode="after")
    def _of_this_kind(self) -> Self:
        name, kind = Path(self.command or "").name, self.kind
        kinds = _KINDS.get(name, (kind,))
        if kind not in kinds:
            raise ValueError(
                f"{name} takes other options than {kind}: `container.kind: {kinds[0]}`, "
                f"as container={kinds[0]} has it"
            )
        return self

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
    return f"{absolute(host)}{colon}{rest}"


def absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute()) if path else path
