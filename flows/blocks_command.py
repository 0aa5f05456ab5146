"""`autoexp blocks create`: a Prefect block from a group file in configs/slurm/."""

import argparse

from autoexp.compose import compose
from autoexp.errors import BadInput
from autoexp.machines import SlurmCluster as SlurmSettings
from blocks import LocalMachine, SlurmCluster


def create(options: argparse.Namespace) -> int:
    """Save what a preset says, with its overrides, as a block of the preset's name."""
    composed = compose("default", [f"slurm={options.preset}", *options.override])
    settings = composed.experiment.slurm
    block: SlurmCluster | LocalMachine
    if isinstance(settings, SlurmSettings):
        block = SlurmCluster(settings=settings)
    else:
        block = LocalMachine(settings=settings)
    # A block's name has dashes where a file's name may have underscores.
    name = options.name or options.preset.replace("_", "-")
    try:
        block.save(name, overwrite=options.overwrite)
    except ValueError as error:
        raise BadInput(f"{name}: {error}; `--overwrite` replaces it") from error
    slug = block.get_block_type_slug()
    print(f"{slug}/{name}\nuse it: autoexp run demo slurm=block slurm.block={name}")
    return 0
