"""The commands about a Prefect server: server, deploy, worker, blocks, automations."""

import asyncio
from typing import Annotated

import typer

from autoexp.cli import options
from autoexp.errors import BadInput


def blocks_create(
    preset: Annotated[
        str, options.argument("PRESET", "A file of configs/slurm/, such as lumi.", options.clusters)
    ],
    overrides: Annotated[
        list[str] | None, options.argument("OVERRIDE", "Such as slurm.nodes=4.")
    ] = None,
    name: Annotated[
        str | None,
        options.option("--name", metavar="NAME", text="The block's name; the preset's by default."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a block of that name.")
    ] = False,
) -> int:
    """Make a block from a file in configs/slurm/.

    \b
    Example:
      autoexp blocks create lumi slurm.account=project_123
    """
    from autoexp.blocks import LocalMachine, SlurmCluster
    from autoexp.config.compose import compose
    from autoexp.reports.terminal import say
    from autoexp.resources.machines import SlurmCluster as SlurmSettings

    settings = compose("default", [f"slurm={preset}", *(overrides or [])]).experiment.slurm
    block: SlurmCluster | LocalMachine
    if isinstance(settings, SlurmSettings):
        block = SlurmCluster(settings=settings)
    else:
        block = LocalMachine(settings=settings)
    # A block's name has dashes where a file's name may have underscores.
    saved = name or preset.replace("_", "-")
    try:
        block.save(saved, overwrite=overwrite)
    except ValueError as error:
        raise BadInput(f"{saved}: {error}; `--overwrite` replaces it") from error
    slug = block.get_block_type_slug()
    say(f"{slug}/{saved}\nuse it: autoexp run demo slurm=block slurm.block={saved}")
    return 0


def seconds(word: str) -> float:
    """A number of seconds, from half a minute to a day."""
    number = float(word)
    if not 30 <= number <= 86400:
        raise ValueError(f"{word}: from 30 seconds to a day")
    return number


def automations_install(
    silence: Annotated[
        float,
        typer.Option(
            "--silence",
            metavar="SECONDS",
            parser=seconds,
            help="Seconds without a heartbeat until a session counts as crashed (default 1080).",
            show_default=False,
        ),
    ] = 1080.0,
    notify: Annotated[
        str | None,
        options.option(
            "--notify",
            metavar="TYPE/NAME",
            text="Also notify through this block, such as slack-webhook/us.",
        ),
    ] = None,
) -> int:
    """Create the automations, or bring them up to date.

    \b
    Example:
      autoexp automations install --notify slack-webhook/my-team
    """
    from prefect.exceptions import ObjectNotFound

    from autoexp.flows.deployment import automations
    from autoexp.reports.terminal import say

    wanted = automations.recovery(silence)
    if notify:
        try:
            block = asyncio.run(automations.notification_block(notify))
        except ObjectNotFound as error:
            raise BadInput(
                f"{notify}: no such block; give TYPE/NAME of a notification block, "
                "such as slack-webhook/my-team: `prefect block ls` lists them"
            ) from error
        wanted += automations.notifications(block)
    for line in asyncio.run(automations.install(wanted)):
        say(line)
    return 0


def deploy() -> int:
    """Deploy to a Prefect server; start one where none answers.

    Makes the work pool, registers blocks, deploys the flows and installs the automations. It can
    be repeated.

    \b
    Example:
      autoexp deploy
    """
    from autoexp.flows.deployment import deploy as deployment

    deployment.deploy()
    return 0


def worker(
    pool: Annotated[
        str, options.option("--pool", metavar="POOL", text="Whose runs it starts (slurm-login).")
    ] = "slurm-login",
) -> int:
    """Start Prefect's worker, for a server of your own.

    \b
    Example:
      autoexp worker
    """
    from autoexp.flows.deployment import deploy as deployment

    return deployment.worker(pool)


def server_start() -> int:
    """Start a Prefect server on PostgreSQL, for a group.

    Both run as you, behind a login that `autoexp deploy` and `autoexp worker` find by themselves.
    What is up stays up.

    \b
    Example:
      autoexp server start
    """
    from autoexp.flows.deployment import group_server

    group_server.start()
    return 0


def server_stop() -> int:
    """Stop the server and its PostgreSQL; the database's files stay.

    \b
    Example:
      autoexp server stop
    """
    from autoexp.flows.deployment import group_server

    group_server.stop()
    return 0


def server_status() -> int:
    """Show what of the server is up; exit code 0 if all of it answers.

    \b
    Example:
      autoexp server status
    """
    from autoexp.flows.deployment import group_server

    return 0 if group_server.status() else 1
