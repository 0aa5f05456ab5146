"""`autoexp plan` and `run --dry-run`: what would be submitted; and who agrees to its price."""

import argparse
import sys
from pathlib import Path
from typing import Any

from autoexp.config.compose import Composed
from autoexp.errors import BadInput
from autoexp.flows.engine.compose import compose_words
from autoexp.jobs.budget import total
from autoexp.planning.approval import above_budget
from autoexp.planning.plan import Plan
from autoexp.planning.study import subset
from autoexp.reports.plan_tree import _draw, plan_tree
from autoexp.reports.tables import print_copies, print_plan
from autoexp.reports.terminal import ask, console, say_json
from autoexp.session.create import plan_of
from autoexp.session.measured_speed import with_measured_speed
from autoexp.storage.places import sessions_root

_FEW = 12
"""Jobs whose command lines are shown."""


def plan(options: argparse.Namespace) -> int:
    """Show what would be submitted."""
    composed = wanted(options)
    found = plan_of(composed)
    if options.json:
        say_json(as_json(found, composed))
        return 0
    show(found, composed)
    if options.svg:
        _draw(found, composed, Path(options.svg))
    return 0


def wanted(options: argparse.Namespace) -> Composed:
    """The experiment that was asked for, or some of its points, with the speed measured before."""
    origin = getattr(options, "origin", None)
    composed = subset(compose_words(options.experiment, origin), options.subset)
    return with_measured_speed(composed)


def show(found: Plan, composed: Composed) -> None:
    """The tree, and for a few jobs their details and command lines."""
    out = console()
    out.print(plan_tree(found, composed.experiment.project.name))
    if len(found.jobs) <= _FEW:
        out.print()
        print_plan(found, out)
    else:
        print_copies(found, out)
        for note in found.notes:
            out.print(f"note: {note}")


def as_json(found: Plan, composed: Composed) -> dict[str, Any]:
    """The plan for tools: each job, and the hours of all."""
    hours = total(found.jobs)
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


def dry_run(options: argparse.Namespace) -> int:
    """Show the plan and write its batch scripts, instead of submitting them."""
    # Takes submitit, which writes them, and which no other plan needs.
    from autoexp.schedulers.dry_run import write_scripts

    composed = wanted(options)
    found = plan_of(composed, options.session)
    show(found, composed)
    name = options.session or composed.experiment.project.name
    directory = sessions_root() / f"dry-run-{name}"
    written = write_scripts(found.jobs, directory)
    console().print(f"\n{len(written)} batch scripts in {directory}", soft_wrap=True)
    return 0


# The budget


def agree(composed: Composed, found: Plan, *, yes: bool) -> bool:
    """Whether the plan may go ahead: asks on a terminal above `budget.confirm_above`.

    Raises BadInput where there is nobody to ask.
    """
    question = above_budget(composed, found)
    if question is None or yes:
        return True
    if not sys.stdin.isatty():
        raise BadInput(f"{question}; `--yes` agrees to it, or raise the budget")
    console().print(plan_tree(found, composed.experiment.project.name))
    return ask(f"{question}. Go ahead? [y/N] ").strip().lower() in ("y", "yes")
