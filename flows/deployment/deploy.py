"""`autoexp deploy` and `worker`: starts a server where none answers, deploys, runs a worker."""

import math
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import yaml
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_PROFILES_PATH,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_API_PORT,
    Profile,
    load_profiles,
    save_profiles,
)

from autoexp.errors import AutoexpError, BadInput
from autoexp.flows.deployment import sockets
from autoexp.flows.deployment.server import (
    await_answer,
    bound_socket,
    end_with_parent,
    new_auth_string,
    start_server,
    write_private,
)
from autoexp.flows.deployment.server_checks import (
    HOST,
    answers,
    host_of,
    is_local,
    lets_in,
    port_of,
    problem,
    refuse_strangers,
)
from autoexp.reports.terminal import say
from autoexp.storage import atomic, permissions

POOL = "slurm-login"
PROFILE = "autoexp"
"""In Prefect's profiles, with the server's URL and the string that opens it."""
_SHIPPED = Path(__file__).resolve().parents[2] / "prefect.yaml"
_ENTRYPOINTS = "autoexp.flows."
_PLACES = ("AUTOEXP_CONFIGS", "AUTOEXP_SESSIONS")
_LOOKS_EVERY_S = 1.0
# Prefect's worker gives a flow that it ends half a minute.
_STOPS_WITHIN_S = 60.0


def deploy() -> None:
    """Server (where none answers), pool, blocks, deployments and automations, in one go."""
    url = _url()
    file, found = _deployments()
    auth_string = known_auth_string(url)
    refuse_strangers(url)
    if is_local(url) and not sockets.listeners(port_of(url)) and not answers(url, auth_string):
        auth_string = auth_string or new_auth_string()
        save_profile(url, auth_string)
        start_at(url, auth_string)
    _must_be_locked(url, auth_string)
    environment = _environment(url, auth_string)
    if auth_string:
        save_profile(url, auth_string)
    for pool in sorted({entry.pool for entry in found}):
        if not _succeeds("work-pool", "inspect", pool, environment=environment):
            # One that exists stays as its owner has set it.
            _prefect("work-pool", "create", pool, "--type", "process", environment=environment)
    _prefect("block", "register", "-m", "autoexp.blocks", environment=environment)
    with _with_places(file) as filled:
        words = ["--no-prompt", "deploy", "--all", "--prefect-file", str(filled)]
        _prefect(*words, environment=environment)
    _autoexp("automations", "install", environment=environment)
    _say_how_to_go_on(url, auth_string, found)


class _Deployment(NamedTuple):
    """What a file says about a deployment of one of our flows."""

    name: str
    flow: str
    pool: str


def _deployments() -> tuple[Path, list[_Deployment]]:
    """The file with the deployments, and those of our flows in it.

    `prefect.yaml` of the working directory, as `autoexp init` writes it, if it deploys our flows;
    else the one that comes with autoexp.
    """
    own = Path("prefect.yaml").absolute()
    if own.is_file() and (found := _read_deployments(own)):
        return own, found
    return _SHIPPED, _read_deployments(_SHIPPED)


def _read_deployments(file: Path) -> list[_Deployment]:
    try:
        entries = yaml.safe_load(file.read_text(encoding="utf-8"))["deployments"]
        ours = [
            entry for entry in entries if str(entry.get("entrypoint", "")).startswith(_ENTRYPOINTS)
        ]
        return [
            _Deployment(
                str(entry["name"]),
                f"autoexp-{entry['entrypoint'].rpartition('.')[2]}",
                str(entry["work_pool"]["name"]),
            )
            for entry in ours
        ]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{file}: cannot be read as a file of deployments, each with an entrypoint, a name and "
            f"a work_pool with a name ({type(error).__name__}: {error})"
        ) from error


@contextmanager
def _with_places(file: Path) -> Iterator[Path]:
    """The file of deployments, whose runs find configurations and sessions where we do."""
    places = {name: os.environ[name] for name in _PLACES if os.environ.get(name)}
    if not places:
        yield file
        return
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for entry in content["deployments"]:
        variables = dict(entry["work_pool"].get("job_variables") or {})
        absolute = {name: str(Path(place).absolute()) for name, place in places.items()}
        variables["env"] = {**(variables.get("env") or {}), **absolute}
        entry["work_pool"] = {**entry["work_pool"], "job_variables": variables}
    with tempfile.TemporaryDirectory(prefix="autoexp-deploy-") as folder:
        filled = Path(folder) / "prefect.yaml"
        filled.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        yield filled


def _say_how_to_go_on(url: str, auth_string: str | None, found: Sequence[_Deployment]) -> None:
    address = url.removesuffix("/api")
    pools = sorted({entry.pool for entry in found} - {POOL})
    other = "".join(f" --pool {pool}" for pool in pools[:1])
    use = f"export PREFECT_PROFILE={PROFILE}" if auth_string else f"export PREFECT_API_URL={url}"
    say(
        f"\ndeployed. Runs work in {Path.cwd()}. On the login node:\n"
        f"  {use}\n"
        f"  autoexp worker{other}\n"
        f"  prefect deployment run {found[0].flow}/{found[0].name}    or in the UI: {address}"
    )
    if auth_string:
        say(f"the UI's login, and the server's, is in {profiles_path()} (for you alone)")
        if sys.stdout.isatty() and is_local(url):
            say(f"opens it at once: {address}/#{auth_string}")


def worker(pool: str) -> int:
    """Start Prefect's worker, for a server of our own alone, for as long as it is ours.

    A worker runs what it is given by whoever answers at the server's address, and has to send the
    string there. On a machine of many users that may be somebody else, once the server is gone.
    """
    url = _url()
    auth_string = known_auth_string(url)
    refuse_strangers(url)
    if (wrong := problem(url, auth_string)) is not None:
        raise AutoexpError(f"Prefect's server at {wrong}; `autoexp deploy` starts one")
    _must_be_locked(url, auth_string)
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
    process = subprocess.Popen(
        [*command, "--type", "process"],
        env=_environment(url, auth_string),
        # A terminal's Ctrl-C comes through us, once: of a second one Prefect's worker dies at once.
        process_group=0,
        preexec_fn=_be_a_worker,
    )
    stops_by = math.inf

    def pass_on(number: int, _frame: FrameType | None) -> None:
        nonlocal stops_by
        stops_by = min(stops_by, time.monotonic() + _STOPS_WITHIN_S)
        process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, pass_on)
    signal.signal(signal.SIGTSTP, lambda *_: _pause(process))
    while (code := _ended(process)) is None:
        if time.monotonic() > stops_by:
            say(f"the worker did not stop within {_STOPS_WITHIN_S:.0f} s, and was killed")
            process.kill()
        try:
            refuse_strangers(url)
        except AutoexpError:
            process.kill()
            process.wait()
            raise
    return code if code >= 0 else 128 - code


def _pause(process: "subprocess.Popen[bytes]") -> None:
    """Stop both until Ctrl-Z is undone: no worker goes on that is not watched."""
    process.send_signal(signal.SIGSTOP)
    signal.raise_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGCONT)


def _be_a_worker() -> None:
    """Prepare the process of Prefect's worker."""
    # Without this watch over it there is no worker; flows that run go on without one.
    end_with_parent(signal.SIGKILL)
    # Prefect's worker stops by it, and a script ignores it for what it starts in the background.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _environment(url: str, auth_string: str | None) -> dict[str, str]:
    """Environment variables for Prefect's own commands."""
    login = {"PREFECT_API_AUTH_STRING": auth_string} if auth_string else {}
    return {**os.environ, "PREFECT_API_URL": url, **login}


def _ended(process: "subprocess.Popen[bytes]") -> int | None:
    """Wait a second for a process to end; its exit code, or None.

    Python's own waiting with a time limit wakes up twenty times a second, for days.
    """
    if process.poll() is None:
        try:
            descriptor = os.pidfd_open(process.pid)
        except OSError:  # a kernel before Linux 5.3
            time.sleep(_LOOKS_EVERY_S)
        else:
            with atomic.closed_after(descriptor):
                select.select([descriptor], [], [], _LOOKS_EVERY_S)
    return process.poll()


def _url() -> str:
    return PREFECT_API_URL.value() or f"http://{HOST}:{PREFECT_SERVER_API_PORT.value()}/api"


def known_auth_string(url: str) -> str | None:
    """The server's authentication string: from Prefect's settings, else from an earlier deploy."""
    if known := PREFECT_API_AUTH_STRING.value():
        return str(known)
    settings = load_profiles(include_defaults=False).profiles_by_name.get(PROFILE)
    if settings is None or settings.settings.get(PREFECT_API_URL) != url:
        return None
    return str(settings.settings.get(PREFECT_API_AUTH_STRING) or "") or None


def profiles_path() -> Path:
    """Where Prefect keeps its profiles, and with them the login."""
    return Path(PREFECT_PROFILES_PATH.value())


def save_profile(url: str, auth_string: str) -> None:
    """Save the server's URL and authentication string as a Prefect profile."""
    profiles, path = load_profiles(), profiles_path()
    settings: dict[Any, Any] = {PREFECT_API_URL: url, PREFECT_API_AUTH_STRING: auth_string}
    if is_local(url):
        # For a server that is started by hand: `prefect server start` has the same lock.
        settings[PREFECT_SERVER_API_AUTH_STRING] = auth_string
        settings[PREFECT_SERVER_API_PORT] = port_of(url)
    if PROFILE in profiles.names:
        profiles.remove_profile(PROFILE)
    profiles.add_profile(Profile(name=PROFILE, settings=settings, source=path))
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.chmod(0o600)
    save_profiles(profiles)


def _must_be_locked(url: str, auth_string: str | None) -> None:
    """Raise AutoexpError for a server without authentication, or that rejects ours."""
    try:
        lets_everybody_in = lets_in(url)
        takes_ours = lets_everybody_in or not is_local(url) or lets_in(url, auth_string)
    except OSError as error:
        raise AutoexpError(
            f"Prefect's server at {url} does not say whether it lets everybody in ({error}); look "
            "at it, then run the same again"
        ) from error
    if lets_everybody_in:
        owner = ""
        if is_local(url):
            uids = sockets.listeners(port_of(url))
            owner = f" (of {', '.join(map(permissions.user, sorted(uids)))})" if uids else ""
        raise AutoexpError(
            f"Prefect's server at {url}{owner} takes orders from everybody who reaches it, and "
            "with them commands that a worker runs as you. Stop it (`prefect server stop`), then "
            "`autoexp deploy` starts one with a lock; docs/server.md says how a group has one"
        )
    if not takes_ours:
        wrong = problem(url, auth_string) or f"{url} does not take our string"
        raise AutoexpError(
            f"Prefect's server at {wrong} (PREFECT_API_URL, PREFECT_API_AUTH_STRING or the profile "
            f"`{PROFILE}` in {profiles_path()})"
        )


def start_at(url: str, auth_string: str, more: Mapping[str, str] | None = None) -> None:
    """Start a server that outlives this process, with `more` variables; return once it answers.

    Raises AutoexpError when the port is taken, or the server ends.
    """
    say(f"starting a Prefect server at {url.removesuffix('/api')}, which takes some seconds …")
    home = Path(PREFECT_HOME.value())
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = home / "autoexp-server.log"
    try:
        bound = bound_socket(port_of(url), host_of(url))
    except OSError as error:
        raise AutoexpError(f"{url}: {error.strerror}; choose another port") from error
    with bound:
        process = start_server(bound, auth_string, log, more)
    # Where `prefect server stop` looks for it; that of a server that is gone is replaced.
    pid_file = home / "server.pid"
    write_private(pid_file, str(process.pid))
    try:
        await_answer(lambda: _how_it_ended(process), url, auth_string, f"{url}: the server", log)
    except AutoexpError:
        if process.poll() is not None:
            pid_file.unlink(missing_ok=True)
        raise


def _how_it_ended(process: "subprocess.Popen[bytes]") -> str | None:
    code = process.poll()
    return None if code is None else f" (exit {code})"


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
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    words = " ".join(command[2:])
    if answer.returncode != 0:
        raise AutoexpError(f"`{words}` failed (exit {answer.returncode}):\n{answer.stdout[-2000:]}")
    say(f"done: {words}")
