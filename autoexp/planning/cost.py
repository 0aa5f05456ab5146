"""The cost of a plan, compared with separate runs for the same models."""

from collections.abc import Sequence

from autoexp.jobs.spec import JobSpec
from autoexp.model import FrozenModel


class Cost(FrozenModel):
    """Iterations and tokens of a plan; tokens are None where unknown."""

    iterations: int
    """Of all trainings and all decays."""
    tokens: int | None
    models: int
    """Models that cooldowns yield, if they are compared with separate runs."""
    separate_iterations: int
    """Of one run from scratch for each of these models."""
    separate_tokens: int | None
    baseline_iterations: int = 0
    """Of the baselines, beside all others."""
    copied_checkpoints: int = 0
    """Number of branch starts that are copies: for trainers that may write in place."""
    copied_bytes: int | None = 0
    """Bytes of these copies, where no blocks are shared; None for a future checkpoint."""


def cost_of(jobs: Sequence[JobSpec], *, copies: bool, size: int | None = None) -> Cost:
    """The cost of a trunk and its branches; without a trunk, of the branches alone.

    Baselines are counted apart: they are runs from scratch. `copies` says that each branch begins
    with a copy of a checkpoint; `size` is its bytes.
    """
    baselines = sum(job.target_iteration or 0 for job in jobs if job.baseline)
    jobs = [job for job in jobs if not job.baseline]
    own = [(job.branch.iteration if job.branch else 0, job.target_iteration or 0) for job in jobs]
    ends = [job.target_iteration or 0 for job in jobs if job.branch]
    models = [job for job in jobs if job.branch]
    return Cost(
        iterations=sum(end - start for start, end in own),
        tokens=_sum([_tokens(job) for job in jobs]),
        models=len(ends),
        separate_iterations=sum(ends),
        separate_tokens=_sum([job.tokens_at(job.target_iteration or 0) for job in models]),
        baseline_iterations=baselines,
        copied_checkpoints=len(ends) if copies else 0,
        copied_bytes=None if copies and ends and size is None else len(ends) * (size or 0) * copies,
    )


def together(costs: Sequence[Cost]) -> Cost:
    """The cost of several plans."""
    return Cost(
        iterations=sum(cost.iterations for cost in costs),
        tokens=_sum([cost.tokens for cost in costs]),
        models=sum(cost.models for cost in costs),
        separate_iterations=sum(cost.separate_iterations for cost in costs),
        separate_tokens=_sum([cost.separate_tokens for cost in costs]),
        baseline_iterations=sum(cost.baseline_iterations for cost in costs),
        copied_checkpoints=sum(cost.copied_checkpoints for cost in costs),
        copied_bytes=_sum([cost.copied_bytes for cost in costs]),
    )


def alone(cost: Cost) -> Cost:
    """The cost without a comparison: where trainings build on trainings, none is from scratch."""
    return cost.model_copy(update={"models": 0, "separate_iterations": 0, "separate_tokens": None})


def _sum(amounts: Sequence[int | None]) -> int | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None


def _tokens(job: JobSpec) -> int | None:
    """Tokens of a job's own iterations."""
    end = job.tokens_at(job.target_iteration or 0)
    start = job.tokens_at(job.branch.iteration) if job.branch else 0
    return None if end is None or start is None else end - start
