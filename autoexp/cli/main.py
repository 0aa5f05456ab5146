"""The command line: the table of commands, error messages and exit codes.

Each module of this package holds one group of commands. Heavy imports stand inside the commands, so
that help, completion and usage errors are fast.
"""

import codecs
import io
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, NamedTuple

import typer
from typer.main import get_command

from autoexp import __version__
from autoexp.cli import (
    backend,
    plan,
    prefect,
    requests,
    results,
    rules,
    run,
    sessions,
    status,
    submit,
)
from autoexp.cli.project import configs, init
from autoexp.cli.upkeep import checkpoints, digest, drill, goodput, nodes, track
from autoexp.errors import AutoexpError

_EPILOG = """\b
Exit codes:
  0  all jobs finished          2    bad input, nothing submitted
  1  a job failed for good      3    the session is held by another monitor
                                130  interrupted (jobs keep running)

\b
Sessions lie in $AUTOEXP_SESSIONS, else in sessions/ of the working directory.
`autoexp COMMAND --help` has examples."""

_BAD_WORDS = 2

_PLAIN = {"→": "->", "…": "...", "–": "-", "—": "-", "·": ".", "×": "x", "µ": "u"}
_PLAIN |= dict.fromkeys("━─╸╺", "-") | dict.fromkeys("│┃", "|") | dict.fromkeys("├└┌┐┘┤", "+")

CommandFunction = Callable[..., int]


class CommandGroup(NamedTuple):
    """Commands of two words."""

    text: str
    verbs: dict[str, CommandFunction]


def commands() -> dict[str, CommandFunction | CommandGroup]:
    """All commands, in the order of the help."""
    return {
        "run": run.run,
        "plan": plan.plan,
        "doctor": backend.doctor,
        "drill": drill.drill,
        "submit": submit.submit,
        "adopt": submit.adopt,
        "resume": run.resume,
        "status": status.status,
        "events": status.events,
        "explain": rules.explain,
        "tail": status.tail,
        "plot": results.plot,
        "export": results.export,
        "compare": results.compare,
        "goodput": goodput.goodput,
        "digest": digest.digest,
        "track": track.track,
        "report": results.report,
        "fit": results.fit,
        "rules": CommandGroup("Try rules on an existing log.", {"test": rules.rules_test}),
        "init": init.init,
        "config": CommandGroup(
            "List configurations, or show one as composed.",
            {"list": configs.config_list, "show": configs.config_show},
        ),
        "schema": configs.schema,
        "cancel": sessions.cancel,
        "retry": requests.retry,
        "save": requests.save,
        "branch": requests.branch,
        "budget": requests.budget,
        "checkpoints": checkpoints.checkpoints,
        "nodes": CommandGroup(
            "List, add or remove nodes that all sessions avoid.",
            {"list": nodes.nodes_list, "add": nodes.nodes_add, "remove": nodes.nodes_remove},
        ),
        "queue": requests.queue,
        "sessions": CommandGroup(
            "List, show or remove sessions.",
            {
                "list": sessions.sessions_list,
                "show": sessions.sessions_show,
                "remove": sessions.sessions_remove,
            },
        ),
        "blocks": CommandGroup(
            "Make Prefect blocks: where jobs run.", {"create": prefect.blocks_create}
        ),
        "automations": CommandGroup(
            "Install Prefect automations (recovery, notifications).",
            {"install": prefect.automations_install},
        ),
        "deploy": prefect.deploy,
        "server": CommandGroup(
            "Start or stop a group's Prefect server, on PostgreSQL.",
            {
                "start": prefect.server_start,
                "stop": prefect.server_stop,
                "status": prefect.server_status,
            },
        ),
        "worker": prefect.worker,
        "backend": CommandGroup(
            "Check a trainer's arguments, and what is read of its log.",
            {"check": backend.backend_check, "check-log": backend.check_log},
        ),
    }


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code."""
    _print_in_any_encoding()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        code: int | None = get_command(application()).main(
            list(arguments), prog_name="autoexp", standalone_mode=False
        )
    except typer.TyperException as error:
        return _refuse(error)
    except typer.Abort:
        return run.INTERRUPTED
    return code or 0


def application() -> typer.Typer:
    """All commands as typer knows them."""
    top = _group("LLM training experiments on SLURM as Prefect flows.", top=True)
    for name, command in commands().items():
        if isinstance(command, CommandGroup):
            group = _group(command.text)
            for verb, function in command.verbs.items():
                group.command(verb)(_answering(function))
            top.add_typer(group, name=name)
        else:
            top.command(name)(_answering(command))
    return top


def _group(text: str, *, top: bool = False) -> typer.Typer:
    """A group of commands; without a command it prints its help and exits with 2."""
    group = typer.Typer(
        help=text,
        epilog=_EPILOG if top else None,
        add_completion=top,
        invoke_without_command=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    group.callback()(_top if top else _without_verb)
    return group


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"autoexp {__version__}")
        raise typer.Exit


def _top(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    _without_verb(context)


def _without_verb(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(_BAD_WORDS)


def _answering(command: CommandFunction) -> CommandFunction:
    """Wrap a command: an error is printed as one line and returned as an exit code."""

    @wraps(command)
    def answered(*words: Any, **options: Any) -> int:
        from autoexp.flows.deployment.server import bypass_proxies
        from autoexp.reports import terminal
        from autoexp.storage import atomic

        sys.excepthook = terminal.say_what_broke
        try:
            bypass_proxies()
            code = command(*words, **options)
            sys.stdout.flush()
        except AutoexpError as error:
            terminal.say(f"autoexp: {error}", error=True)
            return error.exit_code
        except KeyboardInterrupt:
            return run.INTERRUPTED
        except BrokenPipeError:
            # The reader of our output has left, as `head` does: nothing more to say at the exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            terminal.say(f"autoexp: {atomic.in_words(error)}", error=True)
            return 1
        return code

    return answered


def _refuse(error: typer.TyperException) -> int:
    """Print a usage error, with the command whose help explains it; returns the exit code."""
    from autoexp.reports import terminal

    context = getattr(error, "ctx", None)
    command = "autoexp" if context is None else context.command_path
    reason = error.format_message().replace("Value error, ", "").rstrip(".")  # pydantic's beginning
    terminal.say(f"autoexp: {reason} (see `{command} --help`)", error=True)
    return error.exit_code


def _print_in_any_encoding() -> None:
    """Replace characters that the output's encoding lacks, instead of failing."""
    codecs.register_error("plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(character, "?") for character in lost), error.end


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
