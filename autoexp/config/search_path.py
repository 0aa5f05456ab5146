"""The search path of configurations: the user's own YAML files before those of autoexp."""

import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

import yaml

from autoexp.config.validation import defaults_of, find_file, references
from autoexp.errors import BadInput
from autoexp.model import nearest
from autoexp.scalars import marked_yaml
from autoexp.storage import places

DEFAULT_CONFIG = "default"
AUTO = "slurm=auto"


@contextmanager
def merged(paths: Sequence[Path], name: str, groups: Iterable[str]) -> Iterator[Path]:
    """One directory that shows what a configuration may use, the first path's files before others'.

    Hydra looks for the primary file in its first directory only, and lets that one's groups win;
    here a shipped experiment may use a group file of the user's own, and any path works. Only
    the files and groups are shown that `name` and its defaults name, and these `groups`: a user's
    folder may hold anything else.
    """
    with tempfile.TemporaryDirectory(prefix="autoexp-configs-") as folder:
        shown = Path(folder)
        waiting, seen = [name, *(f"{group}/*" for group in groups)], set[str]()
        while waiting:
            reference = waiting.pop()
            if reference not in seen:
                seen.add(reference)
                for config, file in _files_of(paths, reference):
                    waiting += _show(file, shown / f"{config}.yaml", config)
        yield shown


def _files_of(paths: Sequence[Path], reference: str) -> Iterator[tuple[str, Path]]:
    """The files that `demo`, `slurm/lumi` or `slurm/*` means, by their names in Hydra."""
    group, _, name = reference.rpartition("/")
    if name != "*":
        file = find_file(paths, reference)
        yield from [] if file is None else [(reference, file)]
        return
    for directory in paths:
        for file in sorted((directory / group).glob("*.y*ml")):
            yield f"{group}/{file.stem}", file


def _show(file: Path, shown: Path, config: str) -> list[str]:
    """Show Hydra a file, its scalars as they are written; returns what its defaults refer to."""
    if shown.exists():
        return []
    shown.parent.mkdir(parents=True, exist_ok=True)
    try:
        text = file.read_text(encoding="utf-8")
        shown.write_text(marked_yaml(text), encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        shown.unlink(missing_ok=True)
        shown.symlink_to(file)  # so that Hydra says what is wrong with it, if it is asked for
        return []
    group = config.rpartition("/")[0]
    return [found for entry in defaults_of(text) for found in references(entry, group)]


def chosen_groups(shown: Path, name: str) -> set[str]:
    """The groups that a configuration and those that it begins from choose a file of."""
    waiting, seen = [name], set[str]()
    while waiting:
        reference = waiting.pop()
        file = shown / f"{reference}.yaml"
        if reference not in seen and not reference.endswith("/*") and file.is_file():
            try:
                entries = defaults_of(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError):  # Hydra says what is wrong with it
                entries = []
            group = reference.rpartition("/")[0]
            waiting += [found for entry in entries for found in references(entry, group)]
        seen.add(reference)
    return {reference[:-2] for reference in seen if reference.endswith("/*")}


def available(group: str = "") -> dict[str, Path]:
    """The runnable experiments by name, or a group's files: the user's own before the shipped."""
    found: dict[str, Path] = {}
    for directory in directories():
        for path in sorted((directory / group).glob("*.y*ml")):
            found.setdefault(path.stem, path)
    return found


def directories() -> list[Path]:
    """The search path, best first; raises BadInput if `$AUTOEXP_CONFIGS` is not a directory."""
    own = places.own_configs()
    if os.environ.get("AUTOEXP_CONFIGS") and not own.is_dir():
        raise BadInput(f"AUTOEXP_CONFIGS names {own}, which is not a directory")
    found = [path.resolve() for path in (own, places.SHIPPED) if path.is_dir()]
    return list(dict.fromkeys(found))


def locate(config: str | None) -> tuple[list[Path], str]:
    """The search path, best first, and the name of the primary file in it."""
    found = directories()
    if config is None:
        config = DEFAULT_CONFIG
    if config.endswith((".yaml", ".yml")) or "/" in config:
        path = Path(config).resolve()
        if not path.is_file():
            raise BadInput(f"{config}: no such file; give a YAML file or a name")
        return list(dict.fromkeys([path.parent, *found])), path.stem
    if config not in available():
        names = ", ".join(sorted(available()))
        raise BadInput(
            f"{config}: no such configuration{nearest(config, available())}; there are: {names}"
        )
    return found, config


class ConfigGroups:
    """The names of groups, which are directories of files to choose from."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._known: dict[str, bool] = {}

    def __contains__(self, name: object) -> bool:
        if name not in self._known:
            self._known[str(name)] = self._is_group(str(name))
        return self._known[str(name)]

    def _is_group(self, name: str) -> bool:
        if not name or "." in name or name.startswith("/"):
            return False
        # Only the directory of this name is read: a folder may hold many, of many files.
        return any(any((path / name).glob("*.y*ml")) for path in self._paths)


def with_site(overrides: Sequence[str]) -> list[str]:
    """The overrides, `slurm=auto` replaced by the site whose `hosts` have this machine's name.

    Raises BadInput where none has, or several.
    """
    return [f"slurm={_site_of_host()}" if word == AUTO else word for word in overrides]


def _site_of_host() -> str:
    host = socket.gethostname()
    files = _files_of(directories(), "slurm/*")
    hosts = {name.partition("/")[2]: _hosts_in(file) for name, file in files}
    names = (host, host.partition(".")[0])
    found = sorted(
        site
        for site, patterns in hosts.items()
        if any(fnmatch(n, p) for n in names for p in patterns)
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInput(
            f"`{AUTO}`: no site in configs/slurm/ names this host, {host}, in its `hosts`; "
            "say which it is, as in `slurm=lumi`"
        )
    raise BadInput(f"`{AUTO}`: this host, {host}, may be one of {', '.join(found)}; say which")


def _hosts_in(file: Path) -> list[str]:
    """The `hosts` of a site's file; empty for one that cannot be read."""
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader=yaml.CBaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    found = content.get("hosts") if isinstance(content, dict) else None
    return (
        [pattern for pattern in found if isinstance(pattern, str)]
        if isinstance(found, list)
        else []
    )


def group_choices(overrides: Sequence[str]) -> dict[str, str]:
    """Overrides that choose a file of a group, such as `slurm=lumi`."""
    groups = ConfigGroups(directories())
    words = (word.partition("=") for word in overrides)
    return {key: value for key, _, value in words if key in groups and value}
