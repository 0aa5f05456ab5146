"""`autoexp config list`, `config show` and `schema`: configurations, without running one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.config.compose import Composed

_TITLE = 72


def config_show(
    experiment: options.Experiment = None,
    defaults: Annotated[
        bool, typer.Option("--defaults", help="Also what nobody has set, with its default.")
    ] = False,
    as_json: options.AsJson = False,
) -> int:
    """Print a configuration as it is composed, with where each value comes from.

    \b
    Examples:
      autoexp config show demo slurm=lumi
      autoexp config show demo backend.args.lr=1e-3 --defaults
    """
    from autoexp.config.validation import annotated
    from autoexp.dotted import flat, parsed
    from autoexp.flows.engine.compose import compose_words
    from autoexp.reports.terminal import say, say_json

    composed = compose_words(experiment or [])
    if as_json:
        say_json(_with_origins(composed))
        return 0
    values, unset = parsed(composed.resolved), set[tuple[str, ...]]()
    if defaults:
        known = {tuple(key.split(".")) for key in flat(values)}
        values = composed.experiment.model_dump(mode="json")
        # A list or a mapping that somebody has set stands as a whole.
        unset = {
            location
            for location in (tuple(key.split(".")) for key in flat(values))
            if not any(location[: len(set_)] == set_ for set_ in known)
        }
    assert composed.origins is not None
    say(annotated(values, composed.origins, unset))
    return 0


def _with_origins(composed: "Composed") -> dict[str, dict[str, object]]:
    from autoexp.dotted import flat, parsed

    assert composed.origins is not None
    return {
        key: {"value": value, "origin": composed.origins.of(key.split("."))}
        for key, value in flat(parsed(composed.resolved)).items()
    }


def config_list(
    group: Annotated[
        str | None, options.argument("GROUP", "Files of a group, such as slurm or monitoring.")
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """List configurations, or the files of a group, yours before those of autoexp.

    \b
    Examples:
      autoexp config list
      autoexp config list slurm
    """
    from autoexp.config.search_path import available
    from autoexp.model import nearest
    from autoexp.reports.terminal import say, say_json

    found = available(group or "")
    if not found:
        groups = sorted({name.partition("/")[0] for name in _groups()})
        raise BadInput(f"{group}: no such group{nearest(group or '', groups)}; {', '.join(groups)}")
    if as_json:
        say_json({name: str(path) for name, path in found.items()})
        return 0
    width = max(map(len, found))
    for name, path in found.items():
        say(f"{name:<{width}}  {_about(path)}")
    if group is None:
        say(f"\ngroups: {', '.join(_groups())} (autoexp config list GROUP)")
    return 0


def _groups() -> list[str]:
    from autoexp.config.search_path import directories

    folders = (folder for directory in directories() for folder in directory.iterdir())
    return sorted({path.name for path in folders if path.is_dir() and any(path.glob("*.y*ml"))})


def _about(path: Path) -> str:
    """The first comment of a file, which says what it is for."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"({error.strerror})"
    comments = (line.lstrip("# ").strip() for line in lines if line.startswith("#"))
    title = next((text for text in comments if text and not text.startswith(_NO_TITLE)), "")
    return title if len(title) <= _TITLE else f"{title[: _TITLE - 1]}…"


_NO_TITLE = ("@package", "yaml-language-server")


def schema(
    group: Annotated[
        str | None, options.argument("GROUP", "Of the files of a group, such as slurm.")
    ] = None,
) -> int:
    """Print the JSON Schema of configurations, for completion in editors.

    Put `# yaml-language-server: $schema=../autoexp.json` into the first line of a file.

    \b
    Examples:
      autoexp schema > autoexp.json
      autoexp schema slurm > slurm.json
    """
    from autoexp.config.experiment import Experiment, json_schema
    from autoexp.model import nearest
    from autoexp.reports.terminal import say_json

    groups = list(Experiment.model_fields)
    if group is not None and group not in groups:
        raise BadInput(f"{group}: no such group{nearest(group, groups)}; {', '.join(groups)}")
    say_json(json_schema(group))
    return 0
