"""Plots a score over the checkpoints: the trunk's line, and the points of its branches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter

from autoexp import sinks
from autoexp.jobs.spec import JobSpec
from autoexp.reports.plot import (
    MERGED,
    TRUNK,
    Options,
    Subject,
    format_of,
    hue,
    legend,
    places,
    save,
)
from autoexp.science.trajectory import Cell, Trajectory


class Scored(NamedTuple):
    """A session with one of its scores."""

    session: Subject
    trajectory: Trajectory


class _Look(NamedTuple):
    """How the points of one job are drawn."""

    colour: str
    opacity: float
    marker: str
    style: str
    size: float


def draw_scores(
    scored: Sequence[Scored], path: Path | None = None, options: Options | None = None
) -> Path:
    """Draw scores into a file, `score.png` in the first session unless `path` is given.

    Raises BadInput for a format that is not known, and where tokens are asked for and unknown.
    """
    options = options or Options()
    kind = format_of(path)
    figure = Figure(figsize=(10, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    entries: list[Line2D] = []
    branches = 0
    for number, each in enumerate(scored):
        points = each.trajectory.points
        for spec in each.session.jobs:
            if spec.name not in points:
                continue
            look = _look(spec, number, branches, len(scored))
            branches += spec.decay is not None
            _draw(axes, spec, each.session, points, look, options)
            title = f"{each.session.id} {spec.title}" if len(scored) > 1 else spec.title
            entries.append(
                Line2D([], [], color=look.colour, alpha=look.opacity, ls=look.style,
                       marker=look.marker, ms=look.size, label=sinks.picture(title))
            )  # fmt: skip
    _dress(axes, scored, options)
    legend(axes, entries)
    target = path or scored[0].session.path / "score.png"
    save(figure, target, kind, by_umask=path is not None)
    return target


def _look(spec: JobSpec, session: int, branch: int, sessions: int) -> _Look:
    """Trainings are lines, branches and baselines have a hue each; of merges there is a star."""
    if spec.merge is not None:
        return _Look(MERGED, 1.0, "*", "", 11)
    if spec.decay is None:
        colour, opacity = (TRUNK, 1.0) if sessions == 1 else hue(session)
        return _Look(colour, opacity, "o", "-", 5)
    return _Look(*hue(branch), "s" if spec.baseline is not None else "D", "--", 6)


def _draw(
    axes: Axes,
    spec: JobSpec,
    session: Subject,
    points: Mapping[str, list[Cell]],
    look: _Look,
    options: Options,
) -> None:
    own = points[spec.name]
    at = places(spec, session, [cell.iteration for cell in own], options)
    values = [float(cell.value or 0.0) for cell in own]
    errors = [cell.error or 0.0 for cell in own]
    begin = _begin(spec, points)
    if begin is not None and begin.value is not None:  # from its parent's score, where it branched
        start = places(spec, session, [begin.iteration], options)
        axes.plot([*start, at[0]], [begin.value, values[0]], color=look.colour, ls=":", lw=1.2,
                  alpha=look.opacity, zorder=1)  # fmt: skip
    axes.errorbar(
        at,
        values,
        yerr=errors if any(errors) else None,
        color=look.colour,
        alpha=look.opacity,
        ls=look.style,
        marker=look.marker,
        ms=look.size,
        capsize=2.5,
        elinewidth=1.0,
        lw=1.4,
    )


def _begin(spec: JobSpec, points: Mapping[str, list[Cell]]) -> Cell | None:
    """The parent's point at the branch point, if it was evaluated there."""
    if spec.branch is None or spec.parent is None:
        return None
    at = spec.branch.iteration
    return next((cell for cell in points.get(spec.parent, ()) if cell.iteration == at), None)


def _dress(axes: Axes, scored: Sequence[Scored], options: Options) -> None:
    axes.set_ylabel(sinks.picture(scored[0].trajectory.score))
    axes.set_xlabel("tokens" if options.tokens else "iteration")
    if options.tokens:
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if options.title:
        names = ", ".join(each.session.id for each in scored)
        axes.set_title(sinks.picture(names), loc="left")
