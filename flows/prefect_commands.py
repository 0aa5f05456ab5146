"""The commands that change a Prefect server: deploy, blocks, automations."""

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, PREFECT_SERVER_API_PORT

from autoexp.compose import compose
from autoexp.errors import AutoexpError, BadInput
from autoexp.machines import SlurmCluster as SlurmSettings
from blocks import LocalMachine, SlurmCluster
from flows import automations
from flows.server import answers, is_local, problem

POOL = "slurm-login"
_CHECKOUT = Path(__file__).resolve().parent.parent
_PATIENCE_S = 180.0


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
    print(f"{slug}/{name}\nuse it: autoexp run demo slurm=block slurm.block={name}")
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
        print(line)
    return 0


def deploy(options: argparse.Namespace) -> int:
    """Server (where none answers), pool, blocks, deployments and automations, in one go."""
    url = PREFECT_API_URL.value() or f"http://127.0.0.1:{PREFECT_SERVER_API_PORT.value()}/api"
    environment = {**os.environ, "PREFECT_API_URL": url}
    if (wrong := problem(url)) is not None:
        if not is_local(url) or "export" in wrong:
            raise AutoexpError(f"Prefect's server at {wrong} (PREFECT_API_URL)")
        print(f"starting a Prefect server at {url.removesuffix('/api')}")
        _prefect("server", "start", "--background", environment=environment)
        _wait_for(url)
    if not _succeeds("work-pool", "inspect", POOL, environment=environment):
        # One that exists stays as its owner has set it.
        _prefect("work-pool", "create", POOL, "--type", "process", environment=environment)
    _prefect("block", "register", "-m", "blocks", environment=environment)
    _prefect("--no-prompt", "deploy", "--all", environment=environment)
    _autoexp("automations", "install", environment=environment)
    print(
        f"\ndeployed. On the login node, in {_CHECKOUT}:\n"
        f"  export PREFECT_API_URL={url}\n"
        f"  prefect worker start --pool {POOL} --type process\n"
        f"  prefect deployment run autoexp/train    or in the UI: {url.removesuffix('/api')}"
    )
    return 0


def _prefect(*arguments: str, environment: dict[str, str]) -> None:
    _run([sys.executable, "-m", "prefect", *arguments], environment)


def _succeeds(*arguments: str, environment: dict[str, str]) -> bool:
    command = [sys.executable, "-m", "prefect", *arguments]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def _autoexp(*arguments: str, environment: dict[str, str]) -> None:
    _run([sys.executable, "-m", "autoexp", *arguments], environment)


def _run(command: list[str], environment: dict[str, str]) -> None:
    answer = subprocess.run(
        command,
        cwd=_CHECKOUT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    said = " ".join(command[2:])
    if answer.returncode != 0:
        raise AutoexpError(f"`{said}` failed (exit {answer.returncode}):\n{answer.stdout[-2000:]}")
    print(f"done: {said}")


def _wait_for(url: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not answers(url):
        if time.monotonic() > deadline:
            raise AutoexpError(f"{url}: the server did not start; `prefect server start` says why")
        time.sleep(0.5)
