"""`autoexp plan` and `run --dry-run`: shows a plan; asks for confirmation of expensive ones."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoexp.cli import options
from autoexp.errors import BadInput
from autoexp.storage.places import sessions_root

if TYPE_CHECKING:
    from autoexp.config.compose import Composed
    from autoexp.planning.plan import Plan


def plan(
    experiment: options.Experiment = None,
    points: options.Subset = None,
    origin: options.Origin = None,
    as_json: options.AsJson = False,
    table: Annotated[
        bool, typer.Option("--table", help="Also a table of branch points, decays and tokens.")
    ] = False,
    commands: Annotated[
        bool, typer.Option("--commands", help="Also each job's command line.")
    ] = False,
    svg: Annotated[
        str | None,
        options.option("--svg", metavar="FILE", text="Also draw it as a timeline, for a paper."),
    ] = None,
) -> int:
    """Show what would be submitted, and submit nothing.

    \b
    Examples:
      autoexp plan demo slurm=lumi
      autoexp plan demo --table --commands
      autoexp plan study sweep=demo --json
    """
    from autoexp.reports.terminal import say, say_json
    from autoexp.session.create import plan_of

    composed = wanted(experiment or [], points, origin)
    found = plan_of(composed)
    if as_json:
        say_json(content(found, composed))
    else:
        show(found, composed, table=table, commands=commands)
    if svg:
        from autoexp.reports.plot import draw_plan

        draw_plan(found, composed.experiment.project.name, Path(svg))
        say(f"drawing: {svg}", error=as_json)
    ask_slurm(found)
    return 0


def ask_slurm(found: "Plan") -> None:
    """Raise BadInput for a plan of which SLURM, where it answers, would not take a job."""
    if all(job.machine.kind == "local" for job in found.jobs):
        return
    from autoexp.schedulers.slurm.probe import refusals

    if reasons := refusals(found.jobs):
        raise BadInput("\n  ".join([*reasons, "nothing was submitted"]))


def wanted(words: Sequence[str], points: str | None, origin: str | None = None) -> "Composed":
    """Compose the requested experiment, or some of its points; resolves `budget.measured_in`."""
    from autoexp.flows.engine.compose import compose_words
    from autoexp.planning.study import subset
    from autoexp.session.measured_speed import with_measured_speed

    return with_measured_speed(subset(compose_words(list(words), origin), points))


def show(
    found: "Plan", composed: "Composed", *, table: bool = False, commands: bool = False
) -> None:
    """Print the plan: its notes first, then the tree and what it takes."""
    from autoexp.model import now
    from autoexp.reports.plan_tree import plan_tree
    from autoexp.reports.tables import disk_line, print_commands, print_cost, print_table
    from autoexp.reports.terminal import console

    out = console()
    for note in found.notes:
        out.print(f"note: {note}")
    out.print(plan_tree(found, composed.experiment.project.name))
    print_cost(found, out)
    if found.disk is not None:
        out.print(disk_line(found.disk, now().astimezone()), soft_wrap=True)
    if table:
        out.print()
        print_table(found, out)
    if commands:
        print_commands(found, out)


def content(found: "Plan", composed: "Composed") -> dict[str, Any]:
    """The plan for tools: each job, and the hours of all."""
    hours = found.hours
    return {
        "project": composed.experiment.project.name,
        "points": [
            {"number": p.number, "name": p.experiment.project.name, "settings": p.settings}
            for p in composed.points
        ],
        "gpu_hours": hours.gpu_hours,
        "jobs_of_unknown_length": hours.unknown,
        **found.model_dump(mode="json"),
    }


def dry_run(composed: "Composed", session: str | None) -> int:
    """Show the plan and write its batch scripts, instead of submitting them."""
    from autoexp.reports.terminal import console
    from autoexp.schedulers.dry_run import write_scripts
    from autoexp.session.create import plan_of

    found = plan_of(composed, session)
    show(found, composed)
    name = session or composed.experiment.project.name
    directory = sessions_root() / f"dry-run-{name}"
    written = write_scripts(found.jobs, directory)
    console().print(f"\n{len(written)} batch scripts in {directory}", soft_wrap=True)
    return 0


# The image


def announce_image(composed: "Composed") -> None:
    """Say that the image is read for its digest, where that takes a while."""
    from autoexp.reports.terminal import say
    from autoexp.storage.image_digests import announcement

    image = composed.experiment.container.image_file
    if image is not None and (words := announcement(image)) is not None:
        say(words, error=True)


# The budget


def agree(composed: "Composed", found: "Plan", *, yes: bool) -> bool:
    """True if the plan may be submitted; above `budget.confirm_above` it asks on the terminal.

    Raises BadInput when stdin is not a terminal.
    """
    from autoexp.jobs.images import missing
    from autoexp.planning.plan import above_budget
    from autoexp.reports.plan_tree import plan_tree
    from autoexp.reports.terminal import ask, console, say

    for sentence in missing(found.jobs):
        say(f"warning: {sentence}", error=True)
    question = above_budget(composed.experiment.budget, found)
    if question is None or yes:
        return True
    if not sys.stdin.isatty():
        raise BadInput(f"{question}; `--yes` agrees to it, or raise the budget")
    console().print(plan_tree(found, composed.experiment.project.name))
    return ask(f"{question}. Go ahead? [y/N] ").strip().lower() in ("y", "yes")
