"""Where configurations are: the user's own YAML files before those that ship with autoexp."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from autoexp.errors import BadInput
from autoexp.problems import nearest

SHIPPED = Path(__file__).resolve().parent.parent / "configs"
DEFAULT_CONFIG = "default"


@contextmanager
def merged(paths: Sequence[Path]) -> Iterator[Path]:
    """One directory that shows all of them, the first one's files before the others'.

    Hydra looks for the primary file in its first directory only, and lets that one's groups win;
    here a shipped experiment may use a group file of the user's own, and any path will do.
    """
    with tempfile.TemporaryDirectory(prefix="autoexp-configs-") as name:
        shown = Path(name)
        for directory in paths:
            for file in sorted(directory.rglob("*.y*ml")):
                link = (shown / file.relative_to(directory)).with_suffix(".yaml")
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    link.symlink_to(file)
        yield shown


def available() -> dict[str, Path]:
    """The runnable experiments by name, the user's own before the shipped ones."""
    found: dict[str, Path] = {}
    for directory in directories():
        for path in sorted(directory.glob("*.y*ml")):
            found.setdefault(path.stem, path)
    return found


def directories() -> list[Path]:
    """Where to look, best first; raises BadInput for `$AUTOEXP_CONFIGS` that is no directory."""
    own = os.environ.get("AUTOEXP_CONFIGS")
    candidates = [Path(own) if own else Path("configs"), SHIPPED]
    if own and not candidates[0].is_dir():
        raise BadInput(f"AUTOEXP_CONFIGS names {own}, which is not a directory")
    found = [path.resolve() for path in candidates if path.is_dir()]
    return list(dict.fromkeys(found))


def locate(config: str | None) -> tuple[list[Path], str]:
    """The search path, best first, and the name of the primary file in it."""
    found = directories()
    if config is None:
        config = DEFAULT_CONFIG
    if config.endswith((".yaml", ".yml")) or "/" in config:
        path = Path(config).resolve()
        if not path.is_file():
            raise BadInput(f"{config}: no such file, or no file; give a YAML file or a name")
        return list(dict.fromkeys([path.parent, *found])), path.stem
    if config not in available():
        names = ", ".join(sorted(available()))
        raise BadInput(
            f"{config}: no such configuration{nearest(config, available())}; there are: {names}"
        )
    return found, config


def groups_in(paths: Sequence[Path]) -> frozenset[str]:
    """Names of the groups, which are directories of files to choose from."""
    return frozenset(
        path.name for directory in paths for path in directory.iterdir() if path.is_dir()
    )


def group_choices(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides that choose a file of a group, such as `slurm=lumi`."""
    groups = groups_in(directories())
    words = (word.partition("=") for word in overrides)
    return {key: value for key, _, value in words if key in groups and value}
