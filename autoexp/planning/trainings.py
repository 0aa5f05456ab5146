"""A training, its cooldowns and its baselines as jobs."""

import itertools
from pathlib import Path
from typing import NamedTuple

from autoexp.config.cooldowns import Baseline, Variant
from autoexp.config.experiment import CheckpointSource, Experiment
from autoexp.config.quantities import Quantity
from autoexp.errors import BadInput
from autoexp.jobs.budget import estimate
from autoexp.jobs.spec import JobSpec, pace
from autoexp.planning.cooldowns import (
    all_cooldowns,
    cooldown_jobs,
    decay_of,
    differing,
    iterations_of,
    job_of,
    saving_at_branch_points,
    with_backend,
)
from autoexp.planning.cost import Cost, cost_of
from autoexp.resources.containers import NoContainer
from autoexp.states import Kind


class Training(NamedTuple):
    """The jobs of one training, itself first, unless its cooldowns start from elsewhere.

    Baselines come last.
    """

    jobs: tuple[JobSpec, ...]
    notes: tuple[str, ...]
    cost: Cost


def training(experiment: Experiment, output_root: Path, save_dir: Path | None = None) -> Training:
    """Work out the jobs of an experiment's training that writes below `output_root`.

    ``save_dir` is where the trunk saves, if it is to resume from another directory.

    Raises BadInput with every impossible cooldown and baseline, and the reason.
    """
    written, experiment = experiment, saving_at_branch_points(experiment)
    asked = written.trainer.extra_saves
    trainer = experiment.trainer
    refused = [f"backend: {problem}" for problem in _problems(experiment)]
    if _runs_on_the_host(experiment):
        missing = [path for path in trainer.sources if not path.exists()]
        refused += [f"backend: {path}: no such file" for path in missing]
    output_dir = output_root / experiment.project.name
    trunk = job_of(experiment, output_dir, Kind.TRAIN, None, save_dir)
    jobs = [] if experiment.start else [trunk]
    start = experiment.start if experiment.start and Path(experiment.start.path).exists() else None
    notes = [_note_on(start)] if start else []
    if told := [str(at) for at in trainer.extra_saves if at not in asked]:
        every = f"besides every {trainer.save_interval}"
        notes.append(f"the training is told to save at {', '.join(told)}, {every}: branch points")
    for place, cooldown, entry in all_cooldowns(experiment):
        found = cooldown_jobs(cooldown, experiment, output_root, {job.name for job in jobs})
        conditions = {"start_when": entry.when, "start_within_s": entry.within} if entry else {}
        jobs += [job.model_copy(update=conditions) for job in found.jobs]
        notes += [f"{place}: {note}" for note in found.notes]
        refused += [f"{place}: {reason}" for reason in found.refused]
    baselines: list[JobSpec] = []
    for index, baseline in enumerate(experiment.baselines):
        place = f"baselines.{index}"
        if experiment.start is not None:
            refused.append(f"{place}: there is a checkpoint to start from, and no training beside")
            continue
        taken = {job.name for job in (*jobs, *baselines)}
        own, reasons = _baselines(baseline, written, output_root, taken)
        baselines += own
        refused += [f"{place}: {reason}" for reason in reasons]
    if refused:
        raise BadInput("\n".join(refused))
    copies = not trainer.pins_by_links or (start is not None and _is_elsewhere(start, output_root))
    size = _size(Path(start.path)) if start and copies else None
    cost = cost_of([*jobs, *baselines], copies=copies, size=size)
    estimated = tuple(_with_estimate(job, trunk, experiment) for job in (*jobs, *baselines))
    return Training(estimated, tuple(notes), cost)


def _runs_on_the_host(experiment: Experiment) -> bool:
    """True if the trainer's sources are the host's: else they may lie in the image alone."""
    words = getattr(experiment.slurm, "srun_arguments", ())
    is_inside = any(word.startswith(("--container-image", "--environment")) for word in words)
    return isinstance(experiment.container, NoContainer) and not is_inside


def _baselines(
    entry: Baseline, experiment: Experiment, output_root: Path, taken: set[str]
) -> tuple[list[JobSpec], list[str]]:
    """The jobs of an entry of `baselines`, and the reasons why others cannot be."""
    found: list[JobSpec] = []
    refused: list[str] = []
    try:
        variants = entry.variants()
    except (BadInput, ValueError) as error:
        return [], [str(error)]
    trunk = experiment.trainer.train_iters
    for variant, total in itertools.product(variants, entry.totals or (trunk,)):
        try:
            own = with_backend(experiment, variant.backend)
            job = _baseline(variant, total, own, experiment, output_root)
        except (BadInput, ValueError) as error:
            named = variant.name or variant.decay.shape
            refused.append(f"{named}, {total}: {error}")
            continue
        if job.name in taken:
            refused.append(f"a second job named {job.name}; give this baseline a `name`")
        taken.add(job.name)
        found.append(job)
    return found, refused


def _baseline(
    variant: Variant, total: int | Quantity, own: Experiment, trunk: Experiment, root: Path
) -> JobSpec:
    """A run from scratch of some length; raises BadInput, or ValueError, where it cannot be."""
    changed = differing(trunk, own)
    if own.trainer.train_iters != trunk.trainer.train_iters:
        raise BadInput("its length is `totals`, and no setting of its backend")
    workers, decay = own.slurm.workers, variant.decay
    if problems := own.trainer.problems(workers) if changed else []:
        raise BadInput("; ".join(problems))
    batches = own.trainer.batches(workers)
    end = total.iterations(batches) if isinstance(total, Quantity) else total
    if decay.iterations is not None:
        length = decay.iterations
    elif decay.tokens is not None:
        asked = Quantity(amount=decay.tokens, unit="tokens")
        length = iterations_of(asked, 0, own, "a decay")
    elif decay.fraction is not None:
        length = max(1, round(decay.fraction * end))
    else:
        length = end - own.trainer.warmup
    if not 0 < length <= end - own.trainer.warmup:
        raise BadInput(
            f"of its {end} iterations {own.trainer.warmup} are the warm-up: no room for a decay "
            f"over {max(0, length)}"
        )
    planned = decay_of(
        decay, own, iteration=0, stable_iterations=end - length, decay_iterations=length
    )
    if reasons := own.trainer.refusals(planned):
        raise BadInput("; ".join(reasons))
    name = f"{own.project.name}-base{end}-{variant.name or decay.shape}"
    job = job_of(own, root / name, Kind.BASELINE, planned)
    return job.model_copy(update={"parent": own.project.name, "changes": changed})


def _problems(experiment: Experiment) -> list[str]:
    """What keeps the trainer from running on each number of processes that a job may have."""
    trainer, worlds = experiment.trainer, experiment.slurm.worlds
    found = dict.fromkeys(problem for workers in worlds for problem in trainer.problems(workers))
    if len({trainer.batches(workers) for workers in worlds}) > 1:
        changes = (
            "an iteration has other samples on fewer processes, so its lengths would change as "
            "nodes fail: give `slurm.nodes` one number"
        )
        return [*found, changes]
    return list(found)


def _with_estimate(job: JobSpec, trunk: JobSpec, experiment: Experiment) -> JobSpec:
    planned = estimate(job, experiment.budget, pace=pace(job, trunk))
    return job.model_copy(update={"planned": planned})


def _is_elsewhere(start: CheckpointSource, output_root: Path) -> bool:
    """True if it lies on another filesystem than the outputs, which excludes hard links."""
    there = next(path for path in (output_root, *output_root.parents) if path.exists())
    return there.stat().st_dev != Path(start.path).stat().st_dev


def _size(path: Path) -> int:
    """Bytes of a checkpoint's files."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _note_on(start: CheckpointSource) -> str:
    named = start.session is not None
    where = f"{start.session}:{start.job}@{start.iteration}" if named else "a checkpoint"
    return f"starts from {where} ({start.path})"
