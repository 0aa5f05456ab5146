"""`autoexp backend` and `doctor`: check a trainer's arguments, its log, and the cluster."""

import math
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoexp.cli import options
from autoexp.errors import BadInput

if TYPE_CHECKING:
    from autoexp.backends.progress_line import ReadLine
    from autoexp.operations.doctor.host import Finding

_SHOWN = 120  # bytes of a line


def backend_check(
    backend: Annotated[Literal["megatron", "torchtitan"], typer.Argument(help="Whose arguments.")],
    source: Annotated[
        str, options.option("--source", metavar="DIR", text="The checkout that will run.")
    ],
    script: Annotated[
        str,
        options.option(
            "--script", metavar="FILE", text="Megatron's script; pretrain_gpt.py by default."
        ),
    ] = "pretrain_gpt.py",
    as_json: options.AsJson = False,
) -> int:
    """Compare a checkout's arguments with autoexp's; runs nothing.

    The exit code is 1 when they differ.

    \b
    Examples:
      autoexp backend check megatron --source ~/Megatron-LM
      autoexp backend check torchtitan --source ~/torchtitan
    """
    from autoexp.backends.megatron import compatibility as megatron
    from autoexp.backends.torchtitan import compatibility as torchtitan
    from autoexp.reports.terminal import console, say_json

    own = torchtitan.compare(Path(source)) if backend == "torchtitan" else None
    found = own or megatron.compare(Path(source), script)
    if as_json:
        say_json(found.model_dump(mode="json"))
        return 0 if found.fits else 1
    out = console()
    passes = "it is refused" if own else "it passes through"
    kinds = (
        ("missing", "autoexp gives it, the checkout does not take it", found.missing),
        ("changed", "the checkout takes it in another way", getattr(found, "changed", ())),
        ("meaning", "it is taken, and is not what it was", getattr(found, "meanings", ())),
        ("unknown", f"only the checkout knows it; {passes}", found.unknown),
    )
    for kind, meaning, names in kinds:
        for name in names:
            out.print(f"{kind}  {name}  ({meaning})", soft_wrap=True)
    verdict = "fits" if found.fits else "does not fit"
    counts = ", ".join(f"{len(names)} {kind}" for kind, _, names in kinds if kind != "meaning")
    if own is not None:
        out.print(f"{source}: torchtitan {own.speaks}", soft_wrap=True)
    else:
        counts = f"{megatron.compare(Path(source), script).read} arguments, {counts}"
    out.print(f"{source}: {verdict}: {counts}", soft_wrap=True)
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


def _prefect() -> "Finding":
    """Whether the server answers to which a session would report, if it does not bring its own."""
    from autoexp.errors import AutoexpError
    from autoexp.flows.deployment.server import configured_url
    from autoexp.flows.deployment.server_checks import require_answer
    from autoexp.operations.doctor.host import Finding

    try:
        url = configured_url()
        if url is None:
            return Finding("prefect", "ok", "no server is set: sessions bring one of their own")
        require_answer(url)
    except AutoexpError as error:
        return Finding("prefect", "to mend", str(error))
    return Finding("prefect", "ok", f"{url} answers")


def doctor(
    experiment: options.Experiment = None,
    job: Annotated[
        bool,
        typer.Option("--job", help="Also submit a job of three minutes, which reports and ends."),
    ] = False,
    as_json: options.AsJson = False,
) -> int:
    """Check this host and its cluster for an experiment; submits nothing unless it is told to.

    Account, partition, QOS, limits and the batch script are asked of SLURM. With --job, a job with
    the experiment's resources says which processes begin, what they see, and if a warning reaches
    them. The exit code is 1 when something is to be mended.

    \b
    Examples:
      autoexp doctor slurm=lumi
      autoexp doctor slurm=lumi slurm.nodes=2 --job
      autoexp doctor study slurm=jupiter container=jupiter container.image=/e/images/train.sif
    """
    from autoexp.cli.plan import wanted
    from autoexp.operations.doctor.host import examine
    from autoexp.operations.doctor.job import examine_job
    from autoexp.reports.terminal import console, say_json
    from autoexp.session.create import plan_of
    from autoexp.storage.places import sessions_root

    words = list(experiment or [])
    composed = wanted(words if any("=" not in word for word in words) else ["demo", *words], None)
    trunk = plan_of(composed).trunk
    out, root = console(), sessions_root()
    found = chain(examine(composed.experiment, trunk, root), [_prefect()])
    if job:

        def notify(words: str) -> None:
            if not as_json:
                out.print(words, soft_wrap=True)

        found = chain(found, examine_job(composed.experiment, trunk, root, notify))
    if as_json:
        lines = [finding._asdict() for finding in found]
        say_json(lines)
        return int(any(line["verdict"] == "to mend" for line in lines))
    mending = False
    for finding in found:
        mending |= finding.verdict == "to mend"
        out.print(f"{finding.verdict:<10}{finding.what:<15} {finding.text}", soft_wrap=True)
    return int(mending)
