"""The command line: what to type, and which function answers. Heavy imports wait until needed."""

import argparse
import codecs
import importlib
import io
import os
import sys
from collections.abc import Sequence

from autoexp import __version__
from autoexp.errors import AutoexpError
from autoexp.storage import atomic


def add_experiment(command: argparse.ArgumentParser) -> None:
    """Which experiment: a configuration and overrides."""
    command.add_argument(
        "experiment",
        nargs="*",
        metavar="CONFIG|OVERRIDE",
        help="a configuration's name or YAML file, and overrides such as backend.args.lr=1e-3",
    )


def add_points(command: argparse.ArgumentParser) -> None:
    """Which experiment, and which points of its sweep."""
    add_experiment(command)
    command.add_argument(
        "--subset", metavar="NUMBERS", help="some points of a sweep, such as 3,5-7"
    )


def add_origin(command: argparse.ArgumentParser) -> None:
    """An older session to start from."""
    command.add_argument(
        "--from",
        dest="origin",
        metavar="SESSION[:JOB[@ITERATION]]",
        help="again as a session was, or a cooldown of it, or cooldowns from a checkpoint of it",
    )


def add_agreement(command: argparse.ArgumentParser) -> None:
    """Agreeing beforehand to what the plan costs."""
    command.add_argument(
        "--yes",
        "-y",
        action="store_true",
        help="skip the confirmation of a plan above budget.confirm_above",
    )


def add_session(command: argparse.ArgumentParser) -> None:
    """Which session."""
    command.add_argument("session", metavar="SESSION", nargs="?", help="the newest by default")


def lines(word: str) -> int:
    """A number of lines."""
    number = int(word)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{number} lines: 0 or more")
    return number


def hours(word: str) -> float | None:
    """GPU hours, or `none`."""
    if word == "none":
        return None
    hours = float(word)
    if not 0 < hours < float("inf"):
        raise argparse.ArgumentTypeError(f"{word} GPU hours: above 0")
    return hours


_EPILOG = """exit codes:
  0  all jobs finished          2    bad input, nothing submitted
  1  a job failed for good      3    the session is held by another monitor
                                130  interrupted (jobs keep running)
Sessions lie in $AUTOEXP_SESSIONS, else in sessions/ of the working directory."""

_PLAIN = {"→": "->", "…": "...", "–": "-", "—": "-", "·": ".", "×": "x", "µ": "u"}
_PLAIN |= dict.fromkeys("━─╸╺", "-") | dict.fromkeys("│┃", "|") | dict.fromkeys("├└┌┐┘┤", "+")


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    _print_in_any_encoding()
    options = parse(arguments)
    # Prefect and Hydra take seconds to import: `--help` and bad options answer before that.
    terminal = importlib.import_module("autoexp.reports.terminal")
    sys.excepthook = terminal.say_what_broke
    importlib.import_module("autoexp.flows.deployment.server").bypass_proxies()
    module = importlib.import_module(f"autoexp.cli.{options.module}")
    try:
        code: int = getattr(module, options.function)(options)
        sys.stdout.flush()
    except AutoexpError as error:
        terminal.say(f"autoexp: {error}", error=True)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left, as `head` does: nothing more to say at the exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        terminal.say(f"autoexp: {atomic.in_words(error)}", error=True)
        return 1
    return code


def _print_in_any_encoding() -> None:
    """Have nothing fail for a character that a terminal or a file has no code for."""
    codecs.register_error("plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lost), error.end


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the words; overrides may stand before and behind options."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    # argparse takes the first run of positional words only, and calls the others unknown.
    unknown = [word for word in rest if word.startswith("-") or "experiment" not in options]
    if unknown:
        top.error(f"unrecognized arguments: {' '.join(unknown)}; see `autoexp --help`")
    if rest:
        options.experiment += rest
    return options


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(
        prog="autoexp",
        description="LLM training experiments on SLURM as Prefect flows.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.set_defaults(module="status")
    top.add_argument("--version", action="version", version=f"autoexp {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    _add_starting(commands)
    _add_looking(commands)
    _add_rules(commands)
    _add_changing(commands)
    _add_prefect(commands)
    _add_backend(commands)
    return top


def _add_starting(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = commands.add_parser("run", help="start a session: submit the training and watch it")
    add_points(run)
    add_origin(run)
    run.add_argument("--session", metavar="ID", help="the new session's id; made up by default")
    run.add_argument("--no-monitor", action="store_true", help="only register it, as `submit` does")
    run.add_argument(
        "--dry-run", action="store_true", help="show the plan and write its batch scripts, no more"
    )
    add_agreement(run)
    run.set_defaults(module="run", function="run")

    plan = commands.add_parser("plan", help="show what would be submitted, and submit nothing")
    add_points(plan)
    add_origin(plan)
    plan.add_argument("--json", action="store_true", help="for tools")
    plan.add_argument("--svg", metavar="FILE", help="also draw the tree, for a paper or a wiki")
    plan.set_defaults(module="plan", function="plan")

    submit = commands.add_parser("submit", help="register a job in a session, and return at once")
    add_points(submit)
    submit.add_argument("--session", metavar="ID", required=True, help="which session")
    add_agreement(submit)
    submit.set_defaults(module="submit", function="submit")

    adopt = commands.add_parser("adopt", help="take a job that was started by hand into a session")
    adopt.add_argument("session", metavar="SESSION")
    add_experiment(adopt)
    adopt.add_argument("--job-id", required=True, help="its SLURM job id")
    adopt.add_argument("--backend", required=True, help="which trainer it runs")
    adopt.add_argument("--save-dir", required=True, help="where its checkpoints land")
    adopt.add_argument("--log", help="its log; SLURM's StdOut by default")
    adopt.set_defaults(module="submit", function="adopt")

    resume = commands.add_parser("resume", help="take a session up again where it stands")
    add_session(resume)
    resume.set_defaults(module="run", function="resume")


def _add_looking(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    status = commands.add_parser("status", help="jobs, iterations, losses of a session")
    add_session(status)
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="the contract in docs/commands.md")
    how.add_argument("--watch", action="store_true", help="keep showing it until it is over")
    status.set_defaults(function="status")

    events = commands.add_parser("events", help="what happened, in order")
    add_session(events)
    events.add_argument("--json", action="store_true", help="one JSON object per line")
    events.add_argument("--follow", "-f", action="store_true", help="keep printing new ones")
    events.set_defaults(function="events_")

    explain = commands.add_parser("explain", help="explain why a job is in its current state")
    explain.add_argument("session", metavar="SESSION")
    explain.add_argument("job", metavar="JOB")
    explain.set_defaults(module="rules", function="explain")

    tail = commands.add_parser("tail", help="the last lines of a job's log")
    add_session(tail)
    tail.add_argument("job", nargs="?", help="the training by default")
    tail.add_argument("--lines", "-n", type=lines, default=20, help="how many (20)")
    tail.add_argument("--follow", "-f", action="store_true", help="go on as it is written")
    tail.set_defaults(function="tail")

    plot = commands.add_parser("plot", help="draw loss curves, of several sessions together")
    plot.add_argument("sessions", metavar="SESSION", nargs="*", help="the newest by default")
    plot.add_argument("--output", "-o", metavar="PNG", help="plot.png in the session by default")
    plot.set_defaults(module="results", function="plot")

    export = commands.add_parser("export", help="a row per job: settings, losses, scores, hours")
    export.add_argument("sessions", metavar="SESSION", nargs="+")
    export.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        action="append",
        default=[],
        help="a .csv or .parquet file, may be given several times; CSV on the terminal by default",
    )
    export.add_argument("--tensorboard", metavar="DIR", help="loss curves as event files")
    export.set_defaults(module="results", function="export")

    compare = commands.add_parser("compare", help="settings that differ, and final losses")
    compare.add_argument("sessions", metavar="SESSION", nargs="+")
    compare.set_defaults(module="results", function="compare")


def _add_backend(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    backend = commands.add_parser("backend", help="check that a trainer takes what autoexp gives")
    verbs = backend.add_subparsers(metavar="VERB", required=True)
    check = verbs.add_parser("check", help="read a checkout's arguments and compare; runs nothing")
    check.add_argument("backend", choices=("megatron",), help="whose arguments")
    check.add_argument("--source", metavar="DIR", required=True, help="the checkout that will run")
    check.add_argument("--script", default="pretrain_gpt.py", help="the script in it")
    check.add_argument("--json", action="store_true", help="for tools")
    check.set_defaults(module="backend", function="check")


def _add_rules(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    rules = commands.add_parser("rules", help="try rules on an existing log")
    verbs = rules.add_subparsers(metavar="VERB", required=True)
    test = verbs.add_parser("test", help="what a preset would have done; no session, no cluster")
    test.add_argument("preset", metavar="PRESET", help="a file of configs/monitoring, by name")
    test.add_argument("log", metavar="LOGFILE")
    test.add_argument(
        "experiment", nargs="*", metavar="CONFIG|OVERRIDE", help="such as backend=megatron"
    )
    test.add_argument(
        "--kind", choices=("train", "cooldown"), default="train", help="whose log it is (train)"
    )
    test.set_defaults(module="rules", function="rules_test")


def _add_changing(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    cancel = commands.add_parser("cancel", help="cancel jobs, pending or running")
    cancel.add_argument("session", metavar="SESSION")
    cancel.add_argument("jobs", metavar="JOB", nargs="*", help="all of the session's by default")
    cancel.set_defaults(module="sessions", function="cancel")

    retry = commands.add_parser("retry", help="run failed jobs again, from their last checkpoints")
    retry.add_argument("session", metavar="SESSION")
    retry.add_argument("jobs", metavar="JOB", nargs="*", help="all that failed by default")
    retry.set_defaults(module="requests", function="retry")

    budget = commands.add_parser("budget", help="GPU hours planned and spent; change the limit")
    add_session(budget)
    budget.add_argument(
        "--stop-above",
        type=hours,
        metavar="HOURS",
        default=argparse.SUPPRESS,
        help="GPU hours above which no new job is submitted; `none` removes the limit",
    )
    budget.set_defaults(module="requests", function="budget")

    queue = commands.add_parser("queue", help="actions: list, show, retry, drop")
    queue.add_argument("session", metavar="SESSION")
    queue.add_argument("verb", nargs="?", choices=("list", "show", "retry", "drop"), default="list")
    queue.add_argument("key", nargs="?", metavar="KEY", help="the action, as `list` shows it")
    queue.add_argument("--json", action="store_true", help="for tools")
    queue.add_argument("--follow", "-f", action="store_true", help="keep printing new ones")
    queue.set_defaults(module="requests", function="queue")

    sessions = commands.add_parser("sessions", help="list, show or remove sessions")
    verbs = sessions.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="all sessions, the newest last")
    listing.add_argument("--json", action="store_true", help="for tools")
    listing.set_defaults(module="sessions", function="sessions_list")
    show = verbs.add_parser("show", help="what a session is about and where its files are")
    add_session(show)
    show.set_defaults(module="sessions", function="sessions_show")
    remove = verbs.add_parser("remove", help="delete a session's directory, output included")
    remove.add_argument("session", metavar="SESSION")
    remove.add_argument("--cancel", action="store_true", help="cancel its jobs first")
    remove.set_defaults(module="sessions", function="sessions_remove")


def _add_prefect(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    blocks = commands.add_parser("blocks", help="Prefect blocks: where jobs run")
    verbs = blocks.add_subparsers(metavar="VERB", required=True)
    create = verbs.add_parser("create", help="make a block from a file in configs/slurm/")
    create.add_argument("preset", metavar="PRESET", help="such as lumi")
    create.add_argument("override", nargs="*", metavar="OVERRIDE", help="such as slurm.nodes=4")
    create.add_argument("--name", help="the block's name; the preset's by default")
    create.add_argument("--overwrite", action="store_true", help="replace a block of that name")
    create.set_defaults(module="prefect", function="blocks_create")

    automations = commands.add_parser(
        "automations", help="install Prefect automations (crash recovery, notifications)"
    )
    verbs = automations.add_subparsers(metavar="VERB", required=True)
    install = verbs.add_parser("install", help="create them, or bring them up to date")
    install.add_argument(
        "--silence",
        type=_seconds,
        default=360.0,
        metavar="SECONDS",
        help="without a heartbeat until a session counts as crashed (360, three heartbeats)",
    )
    install.add_argument(
        "--notify", metavar="TYPE/NAME", help="also notify through this block: slack-webhook/us"
    )
    install.set_defaults(module="prefect", function="automations_install")

    deploy = commands.add_parser("deploy", help="server, work pool, deployments, automations")
    deploy.set_defaults(module="prefect", function="deploy")

    worker = commands.add_parser("worker", help="Prefect's worker, for a server of your own")
    worker.add_argument("--pool", default="slurm-login", help="whose runs it starts (slurm-login)")
    worker.set_defaults(module="prefect", function="worker")


def _seconds(word: str) -> float:
    number = float(word)
    if not 30 <= number <= 86400:
        raise argparse.ArgumentTypeError(f"{word}: from 30 seconds to a day")
    return number


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
