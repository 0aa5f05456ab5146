"""Curves of a session for a browser: as few points as it draws at once, none of them invented."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoexp import sinks
from autoexp.jobs.spec import JobSpec, root_of, tokens_of_curve
from autoexp.reports.curves import Curve, read_curve
from autoexp.session.session import Session

_MOST_CURVES = 120
_MOST_POINTS = 60_000
"""Points of all curves together: a browser draws them in a tenth of a second."""
_DIGITS = 6


def series(session: Session) -> dict[str, Any]:
    """The curves as plain values: of each job its name, its parent, and points by iteration."""
    logged = [job.spec for job in session.jobs.values() if job.iteration]
    shown = logged[:_MOST_CURVES]
    most = _MOST_POINTS // max(1, len(shown))
    specs = {name: job.spec for name, job in session.jobs.items()}
    curves = [_of_job(session.path, spec, specs, most) for spec in shown]
    return {
        "curves": [curve for curve in curves if curve["iterations"]],
        "left_out": len(logged) - len(shown),
    }


def _of_job(
    session: Path, spec: JobSpec, specs: Mapping[str, JobSpec], most: int
) -> dict[str, Any]:
    curve = read_curve(session, spec.name)
    hued = spec.decay is not None and spec.parent is not None
    if spec.branch is not None:
        curve = curve.behind(spec.branch.iteration)
    if spec.branch is not None and spec.parent is not None and curve.iterations:
        curve = curve.joined_to(read_curve(session, spec.parent))
    curve = thinned(curve, most)
    return {
        "name": sinks.line(spec.name),
        "title": sinks.line(_title(spec)),
        "root": sinks.line(root_of(spec, specs).name),
        "branches": hued,
        "iterations": curve.iterations,
        "losses": [_short(value) for value in curve.losses],
        "rates": [_short(value) for value in curve.learning_rates],
        "tokens": _tokens(spec, specs, curve.iterations),
    }


def _title(spec: JobSpec) -> str:
    """Its name below its training's, as `@1000` for a cooldown that has no name of its own."""
    if spec.baseline is not None:
        return spec.title
    if spec.branch is None or spec.parent is None:
        return spec.name
    named, at = spec.name.removeprefix(f"{spec.parent}-"), spec.branch.iteration
    return f"@{at}" if named == f"cd{at}" else f"{named} @{at}"


def _tokens(
    spec: JobSpec, specs: Mapping[str, JobSpec], iterations: Sequence[int]
) -> int | list[int] | None:
    """Tokens of an iteration where all have as many, else up to each point; None if unknown."""
    found = tokens_of_curve(spec, specs, iterations)
    if not found:
        return None
    each, left = divmod(found[-1], iterations[-1])
    is_even = not left and all(t == i * each for t, i in zip(found, iterations, strict=True))
    return each if is_even else found


def thinned(curve: Curve, most: int) -> Curve:
    """At most so many points: of each piece its first one, its lowest and its highest loss.

    A spike of one iteration stays what it is.
    """
    count = len(curve.iterations)
    if count <= most:
        return curve
    pieces = max(1, most // 3)
    kept = {0, count - 1}
    for piece in range(pieces):
        first, behind = piece * count // pieces, (piece + 1) * count // pieces
        places = range(first, behind)
        loss: Callable[[int], float] = curve.losses.__getitem__
        kept |= {first, min(places, key=loss), max(places, key=loss)}
    chosen = sorted(kept)
    return Curve(
        [curve.iterations[i] for i in chosen],
        [curve.losses[i] for i in chosen],
        [curve.learning_rates[i] for i in chosen],
    )


def _short(value: float) -> float | None:
    """A number with as many digits as a picture shows; None for one that is not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
