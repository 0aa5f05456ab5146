"""The loss as a law of size and data: L(N, D) = E + A / N^alpha + B / D^beta.

Approach 3 of Hoffmann et al. (arXiv 2203.15556): the Huber loss of log L, minimized from several
starts; intervals by fitting resampled runs again. SciPy is loaded by `fit` alone.
"""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoexp.errors import BadInput

DELTA = 1e-3
"""Of the Huber loss, as in the paper: an error of log L beyond it counts linearly."""
RESAMPLED = 200
"""Fits that the intervals are of."""
COVERED = 0.9
"""Share of them that lies within an interval."""
LEAST = 6
"""Runs: one more than the law has constants."""
_SEED = 20220329
_STARTS = tuple(product((0.2, 0.5, 1.0), (0.2, 0.5, 1.0), (-1.0, 0.0, 1.0)))
"""Of alpha, beta and log E; those of log A and log B follow from the runs."""
_MOST_EXPONENT = 4.0

Floats = NDArray[np.float64]


class Run(NamedTuple):
    """One model at the end of its training."""

    name: str
    parameters: float
    tokens: float
    loss: float
    """Nats per token."""


class Law(NamedTuple):
    """The constants of a law."""

    e: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """The loss of a model of this size on this many tokens."""
        by_size = self.a * math.pow(parameters, -self.alpha)
        return self.e + by_size + self.b * math.pow(tokens, -self.beta)


class Interval(NamedTuple):
    """A value, and where 90 % of the resampled fits have it."""

    value: float
    low: float
    high: float


class Fit(NamedTuple):
    """A law, its intervals, and how far the runs lie from it."""

    runs: tuple[Run, ...]
    law: Law
    resampled: tuple[Law, ...]

    @property
    def intervals(self) -> dict[str, Interval]:
        """The constants by name: E, A, B, alpha, beta."""
        names = ("E", "A", "B", "alpha", "beta")
        columns = zip(*self.resampled, strict=True)
        return {
            name: _interval(value, list(column))
            for name, value, column in zip(names, self.law, columns, strict=True)
        }

    @property
    def residuals(self) -> list[float]:
        """Logged loss minus that of the law, as shares of the latter."""
        planned = [self.law.loss(run.parameters, run.tokens) for run in self.runs]
        return [run.loss / loss - 1 for run, loss in zip(self.runs, planned, strict=True)]

    def predict(self, parameters: float, tokens: float) -> Interval:
        """The loss of another model."""
        value = self.law.loss(parameters, tokens)
        return _interval(value, [law.loss(parameters, tokens) for law in self.resampled])


def fit(runs: Sequence[Run], resampled: int = RESAMPLED) -> Fit:
    """Fit the law; raises BadInput where the runs cannot tell its constants, or without SciPy."""
    _refuse_too_few(runs)
    points = np.log([[run.parameters, run.tokens, run.loss] for run in runs])
    starts = [_start(points, *start) for start in _STARTS]
    best = min((_minimized(start, points) for start in starts), key=lambda found: found[1])[0]
    dice = np.random.default_rng(_SEED)
    others = []
    for _ in range(resampled):
        chosen = points[_varied(dice, points)]
        others.append(_law(_minimized(best, chosen)[0]))
    return Fit(tuple(runs), _law(best), tuple(others))


def _refuse_too_few(runs: Sequence[Run]) -> None:
    sizes, budgets = ({run[n] for run in runs} for n in (1, 2))
    if len(runs) < LEAST:
        raise BadInput(f"{len(runs)} branches: a law of five constants needs {LEAST} at least")
    if len(sizes) < 3:
        raise BadInput(f"{len(sizes)} model sizes: alpha and A cannot be told from fewer than 3")
    if len(budgets) < 3:
        raise BadInput(f"{len(budgets)} numbers of tokens: beta and B need 3 at least")


def _start(points: Floats, alpha: float, beta: float, log_e: float) -> Floats:
    """A start at which each term is of the size of what is left of the loss."""
    middle = points.mean(axis=0)
    left = middle[2] - 1
    return np.array([left + alpha * middle[0], left + beta * middle[1], log_e, alpha, beta])


def _minimized(start: Floats, points: Floats) -> tuple[Floats, float]:
    """The constants (log A, log B, log E, alpha, beta) with the least Huber loss, and that."""
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise BadInput("`fit` needs SciPy: pip install 'autoexp[fit]'") from error
    free = (-30.0, 30.0)
    bounds = [free, free, (-10.0, 10.0), (0.0, _MOST_EXPONENT), (0.0, _MOST_EXPONENT)]
    # The loss is tiny near its minimum: in units of the Huber loss's corner.
    found: Any = minimize(
        _huber, start, args=(points,), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxiter": 2000, "maxfun": 4000, "ftol": 1e-13, "gtol": 1e-9},
    )  # fmt: skip
    return np.asarray(found.x, dtype=np.float64), float(found.fun)


def _huber(constants: Floats, points: Floats) -> tuple[float, Floats]:
    """The Huber loss of log L summed over runs, in units of its corner, and its gradient."""
    log_a, log_b, log_e, alpha, beta = constants
    log_n, log_d, log_l = points.T
    terms = np.stack([log_a - alpha * log_n, log_b - beta * log_d, np.full_like(log_n, log_e)])
    most = terms.max(axis=0)
    shares = np.exp(terms - most)
    total = shares.sum(axis=0)
    shares /= total
    error = (most + np.log(total) - log_l) / DELTA
    within = np.abs(error) <= 1
    loss = np.where(within, error**2 / 2, np.abs(error) - 0.5).sum()
    slope = np.where(within, error, np.sign(error)) / DELTA
    by_term = shares * slope
    gradient = [*by_term.sum(axis=1), -(by_term[0] * log_n).sum(), -(by_term[1] * log_d).sum()]
    return float(loss), np.array(gradient)


def _law(constants: Floats) -> Law:
    log_a, log_b, log_e, alpha, beta = map(float, constants)
    return Law(math.exp(log_e), math.exp(log_a), math.exp(log_b), alpha, beta)


def _varied(dice: np.random.Generator, points: Floats) -> NDArray[np.int64]:
    """As many runs, drawn with replacement, of which at least three sizes and budgets are left."""
    while True:
        chosen = dice.integers(0, len(points), len(points))
        if all(len(np.unique(points[chosen, column])) >= 3 for column in (0, 1)):
            return chosen


def _interval(value: float, found: Sequence[float]) -> Interval:
    outside = (1 - COVERED) / 2
    low, high = np.quantile(found, [outside, 1 - outside])
    return Interval(value, min(value, float(low)), max(value, float(high)))
