"""Replaces names of blocks in an experiment: `slurm: {block: lumi}` becomes its settings.

The core never talks to Prefect: names are replaced before it validates the experiment.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from autoexp.blocks.apptainer import ApptainerContainer
from autoexp.blocks.local import LocalMachine
from autoexp.blocks.slurm import SlurmCluster
from autoexp.errors import BadInput

_Named = LocalMachine | SlurmCluster | ApptainerContainer

_TYPES: Mapping[str, tuple[type[_Named], ...]] = {
    "slurm": (SlurmCluster, LocalMachine),
    "container": (ApptainerContainer,),
}
"""Keys of an experiment that may name a block, and the block's types."""


Load = Callable[[str, str], _Named]


def fill_in(values: dict[str, Any], load: Load | None = None) -> dict[str, Any]:
    """Replace every `{block: NAME}` by the block's settings; keys beside it win.

    `load(key, name)` loads a block from Prefect.

    Raises BadInput when there is no such block, or when its kind differs from the one beside
    it.
    """
    named = [key for key in _TYPES if isinstance(values.get(key), dict) and "block" in values[key]]
    return {**values, **{key: _filled(key, values[key], load or load_block) for key in named}}


def _filled(key: str, value: dict[str, Any], load: Load) -> dict[str, Any]:
    own = {name: inner for name, inner in value.items() if name != "block"}
    name = value["block"]
    held = load(key, str(name)).settings.model_dump(mode="json")
    if own.get("kind", held["kind"]) != held["kind"]:
        raise BadInput(
            f"{key}.block: {name} holds settings of kind {held['kind']}, and a group file says "
            f"kind {own['kind']}; choose `{key}=block {key}.block={name}`"
        )
    return {**held, **own}


def load_block(key: str, name: str) -> _Named:
    """The block of a name; raises BadInput when Prefect has none that fits."""
    for kind in _TYPES[key]:
        try:
            loaded = kind.load(name)
        except ValidationError as error:
            raise BadInput(f"{key}.block: {name} does not fit this version: {error}") from error
        except ValueError:
            continue  # no such block of this type
        assert isinstance(loaded, kind)
        return loaded
    kinds = " or ".join(str(kind.get_block_type_slug()) for kind in _TYPES[key])
    raise BadInput(
        f"{key}.block: Prefect has no block {name!r} of type {kinds}; "
        "`prefect block ls` lists what there is, `autoexp blocks create PRESET` makes one"
    )
