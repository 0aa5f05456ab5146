"""The commands about a Prefect server: deploy, worker, blocks, automations."""

import argparse
import asyncio

from prefect.exceptions import ObjectNotFound

from autoexp.blocks import LocalMachine, SlurmCluster
from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.flows.deployment import automations
from autoexp.flows.deployment import deploy as deployment
from autoexp.reports.terminal import say
from autoexp.resources.machines import SlurmCluster as SlurmSettings


def blocks_create(options: argparse.Namespace) -> int:
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
    say(f"{slug}/{name}\nuse it: autoexp run demo slurm=block slurm.block={name}")
    return 0


def automations_install(options: argparse.Namespace) -> int:
    """Install the automations, or bring them up to date."""
    wanted = automations.recovery(options.silence)
    if options.notify:
        try:
            block = asyncio.run(automations.notification_block(options.notify))
        except ObjectNotFound as error:
            raise BadInput(
                f"{options.notify}: no such block; give TYPE/NAME of a notification block, "
                "such as slack-webhook/my-team: `prefect block ls` lists them"
            ) from error
        wanted += automations.notifications(block)
    for line in asyncio.run(automations.install(wanted)):
        say(line)
    return 0


def deploy(_: argparse.Namespace) -> int:
    """Server (where none answers), pool, blocks, deployments and automations, in one go."""
    deployment.deploy()
    return 0


def worker(options: argparse.Namespace) -> int:
    """Start Prefect's worker, for a server of our own alone, for as long as it is ours."""
    return deployment.worker(options.pool)
