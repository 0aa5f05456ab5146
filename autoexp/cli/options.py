"""Arguments and options shared by several commands, and their shell completion.

Help and completion have to be fast: this module, and the top-level imports of each module of
commands, are cheap.
"""

import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from autoexp.storage import places

# The shell evaluates what it completes, and in a root that people share anybody names a folder.
_COMPLETED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


# Completion


def session_ids(incomplete: str) -> list[str]:
    """The sessions below the root, by the names of their directories."""
    return _beginning(incomplete, _entries(places.sessions_root()))


def job_names(context: typer.Context, incomplete: str) -> list[str]:
    """The jobs of the session given earlier on the line, by the names of their files."""
    name = context.params.get("name")
    if not isinstance(name, str):
        return []
    directory = places.sessions_root() / name / "jobs"
    return _beginning(incomplete, _names(_entries(directory), {".json"}))


def configurations(incomplete: str) -> list[str]:
    """The configurations that can be run, the user's own and those that ship with autoexp."""
    return _presets("", incomplete)


def clusters(incomplete: str) -> list[str]:
    """The files of `configs/slurm/`."""
    return _presets("slurm", incomplete)


def rule_presets(incomplete: str) -> list[str]:
    """The files of `configs/monitoring/`."""
    return _presets("monitoring", incomplete)


def _presets(group: str, incomplete: str) -> list[str]:
    found = (_entries(path / group) for path in (places.own_configs(), places.SHIPPED))
    return _beginning(incomplete, (n for names in found for n in _names(names, {".yaml", ".yml"})))


def _names(files: Iterable[str], endings: set[str]) -> list[str]:
    return [Path(file).stem for file in files if Path(file).suffix in endings]


def _entries(directory: Path) -> list[str]:
    """Names in a directory; none if it is missing or unreadable."""
    with suppress(OSError):
        return [path.name for path in directory.iterdir()]
    return []


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    fitting = {name for name in names if name.startswith(incomplete) and _COMPLETED.fullmatch(name)}
    return sorted(fitting)


# Arguments and options


def argument(metavar: str, text: str, completion: Any = None) -> Any:
    """An argument passed on unchanged, byte for byte."""
    return typer.Argument(
        metavar=metavar, help=text, autocompletion=completion, parser=str, show_default=False
    )


def option(*names: str, metavar: str, text: str, completion: Any = None) -> Any:
    """An option whose value is passed on unchanged, byte for byte."""
    return typer.Option(
        *names,
        metavar=metavar,
        help=text,
        autocompletion=completion,
        parser=str,
        show_default=False,
    )


Experiment = Annotated[
    list[str] | None,
    argument(
        "CONFIG|OVERRIDE",
        "A configuration's name or YAML file, and overrides such as backend.args.lr=1e-3.",
        configurations,
    ),
]
Subset = Annotated[
    str | None,
    option("--subset", metavar="NUMBERS", text="Some points of a sweep, such as 3,5-7."),
]
Origin = Annotated[
    str | None,
    option(
        "--from",
        metavar="SESSION[:JOB[@ITERATION]]",
        text="Start from a session: the same again, one of its cooldowns, or a checkpoint.",
        completion=session_ids,
    ),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", "-y", help="Skip the confirmation above budget.confirm_above."),
]
Session = Annotated[str, argument("SESSION", "Its id, or its directory.", session_ids)]
AnySession = Annotated[
    str | None, argument("SESSION", "Its id, or its directory; the newest by default.", session_ids)
]
AnySessions = Annotated[
    list[str] | None,
    argument("SESSION", "Their ids, or directories; the newest by default.", session_ids),
]
AnyJob = Annotated[str | None, argument("JOB", "The training by default.", job_names)]
AsJson = Annotated[bool, typer.Option("--json", help="For tools.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new entries.")]
