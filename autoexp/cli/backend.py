"""`autoexp backend`: checks a trainer's arguments, and what is read of its log."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.backends.progress_line import ReadLine

_SHOWN = 120  # bytes of a line


def backend_check(
    backend: Annotated[Literal["megatron"], typer.Argument(help="Whose arguments.")],
    source: Annotated[
        str, options.option("--source", metavar="DIR", text="The checkout that will run.")
    ],
    script: Annotated[
        str,
        options.option(
            "--script", metavar="FILE", text="The script in it; pretrain_gpt.py by default."
        ),
    ] = "pretrain_gpt.py",
    as_json: options.AsJson = False,
) -> int:
    """Compare a checkout's arguments with autoexp's; runs nothing.

    The exit code is 1 when they differ.

    \b
    Example:
      autoexp backend check megatron --source ~/Megatron-LM
    """
    from autoexp.backends.megatron.compatibility import compare
    from autoexp.reports.terminal import console, say_json

    found = compare(Path(source), script)
    if as_json:
        say_json(found.model_dump(mode="json"))
        return 0 if found.fits else 1
    out = console()
    kinds = (
        ("missing", "autoexp gives it, the checkout does not take it", found.missing),
        ("changed", "the checkout takes it in another way", found.changed),
        ("unknown", "only the checkout knows it; it passes through", found.unknown),
    )
    for kind, meaning, names in kinds:
        for name in names:
            out.print(f"{kind}  {name}  ({meaning})", soft_wrap=True)
    verdict = "fits" if found.fits else "does not fit"
    counts = f"{len(found.missing)} missing, {len(found.changed)} changed"
    out.print(
        f"{source}: {verdict}: {found.read} arguments, {counts}, {len(found.unknown)} unknown",
        soft_wrap=True,
    )
    return 0 if found.fits else 1


def check_log(
    log: Annotated[str, options.argument("LOGFILE", "The log to read.")],
    experiment: Annotated[
        list[str] | None,
        options.argument(
            "CONFIG|OVERRIDE", "Whose trainer reads it, such as mylab.", options.configurations
        ),
    ] = None,
    pattern: Annotated[
        str | None,
        options.option("--pattern", metavar="REGEX", text="A `log_line` to try instead."),
    ] = None,
    as_json: options.AsJson = False,
) -> int:
    """Show the iterations and losses that are read of a log.

    The exit code is 1 when no line names an iteration.

    \b
    Examples:
      autoexp backend check-log job.log mylab
      autoexp backend check-log job.log --pattern 'step (?P<iteration>\\d+) loss (?P<loss>\\S+)'
    """
    from autoexp.backends import progress_line
    from autoexp.flows.engine.compose import compose_words
    from autoexp.reports.terminal import say, say_json

    if (pattern is None) == (not experiment):
        raise BadInput("give the configuration whose trainer has written it, or a --pattern")
    if pattern is not None:
        try:
            read = progress_line.ProgressPattern(pattern).read
        except ValueError as error:
            raise BadInput(f"--pattern: {error}") from error
    else:
        read = compose_words(experiment or []).experiment.backend.progress
    if not (path := Path(log)).is_file():
        raise BadInput(f"{log}: no such file")
    found = progress_line.check_log(path, read)
    if as_json:
        say_json(
            {
                "log": log,
                "lines": found.lines,
                "read": found.read,
                "first": _plain(found.first),
                "last": _plain(found.last),
                "last_line": _text(found.last_line),
                "unread": list(found.unread),
            }
        )
        return 0 if found.read else 1
    counted = f"{log}: {found.read} of {found.lines} lines name an iteration"
    if found.first is None or found.last is None:
        end = _text(found.last_line)
        say(counted + (f"; the last one is {end!r}" if end else ""))
    else:
        say(f"{counted}\nfirst  {_read_as(found.first)}\nlast   {_read_as(found.last)}")
    for text in found.unread:
        say(f"not read: {text} is not a number")
    return 0 if found.read else 1


def _text(line: bytes) -> str:
    return line[:_SHOWN].decode(errors="backslashreplace")


def _plain(line: "ReadLine | None") -> dict[str, object] | None:
    """A progress line for tools."""
    if line is None:
        return None
    read = line.progress
    return {
        "line": _text(line.text),
        "iteration": read.iteration,
        # NaN is no JSON.
        "loss": _finite(read.loss),
        "learning_rate": _finite(read.learning_rate),
        "seconds_per_iteration": _finite(read.seconds_per_iteration),
    }


def _finite(number: float | None) -> float | None:
    return number if number is not None and math.isfinite(number) else None


def _read_as(line: "ReadLine") -> str:
    """The numbers of a progress line, and the line."""
    progress = line.progress
    numbers = {
        "loss": progress.loss,
        "learning rate": progress.learning_rate,
        "seconds per iteration": progress.seconds_per_iteration,
    }
    known = [f"{name} {value:g}" for name, value in numbers.items() if value is not None]
    text = _text(line.text).strip()
    return f"{', '.join([f'iteration {progress.iteration}', *known])}:  {text}"
