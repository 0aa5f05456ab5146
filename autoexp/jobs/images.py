"""What a job's image is shown of the host, and what a plan says of that."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import autoexp
from autoexp.errors import BadInput
from autoexp.jobs.spec import JobSpec
from autoexp.resources.containers import Apptainer, Charliecloud, Docker, Edf, NoContainer, Pyxis
from autoexp.resources.machines import SlurmCluster
from autoexp.resources.runtimes import KEPT_BY_THE_RUNTIME, Bind

_PACKAGE = Path(autoexp.__file__).parent
_OF_CH_RUN = "CH_RUNNING"


def bound_paths(spec: JobSpec) -> tuple[str, ...]:
    """What a container has to show of the host, as far as it is known: parents may come later.

    The outputs of all jobs of the session, since stages read what others have written; its own
    save directory and what it begins from, wherever they are; the trainer's sources.
    """
    if isinstance(spec.container, NoContainer):
        return ()
    root = Path(spec.output_dir).parent
    sources = [path.absolute() for path in spec.trainer.sources if path.exists()]
    found = [
        *([root] if root != Path(root.anchor) else []),
        *map(Path, (spec.save_dir, *spec.reads)),
        *(path if path.is_dir() else path.parent for path in sources),
        # The mergers are programs of autoexp's own.
        *([_PACKAGE] if any(str(_PACKAGE) in word for word in spec.command) else []),
    ]
    return tuple(dict.fromkeys(map(str, found)))


def mounts(spec: JobSpec) -> tuple[Bind, ...]:
    """What is bound into a job's image, parents before what lies in them."""
    if isinstance(spec.container, NoContainer):
        return ()
    return tuple(spec.container.mounts((spec.output_dir, *bound_paths(spec))))


def image_notes(jobs: Sequence[JobSpec]) -> list[str]:
    """Sentences for a plan: what is bound, what is not there, what does not arrive.

    Raises BadInput for an image that every process of a job would fetch by itself.
    """
    notes = (note for group in _by_container(jobs) for note in _notes(group, group[0] is jobs[0]))
    return list(dict.fromkeys(notes))


def _by_container(jobs: Sequence[JobSpec]) -> list[list[JobSpec]]:
    """The jobs with the settings of their container in common: those of the first job first."""
    groups: list[list[JobSpec]] = []
    for job in jobs:
        own = next((group for group in groups if group[0].container == job.container), None)
        if own is None:
            groups.append([job])
        else:
            own.append(job)
    return groups


def _refuse_misfit(job: JobSpec) -> None:
    """Raise BadInput for what the runtime, or the machine with it, cannot do."""
    container, machine = job.container, job.machine
    if isinstance(container, Docker) and isinstance(machine, SlurmCluster):
        if container.command is None:
            raise BadInput(
                "container.kind: a container of Docker's belongs to its daemon and not to the job: "
                "SLURM neither bounds nor ends it. Use apptainer, or insist by container.command"
            )
        return
    if isinstance(container, Apptainer) and "://" in container.image:
        if isinstance(machine, SlurmCluster):
            raise BadInput(
                f"container.image: each process of a job would fetch {container.image}: fetch it "
                f"once, `{container.kind} pull /path/to/image.sif {container.image}`, and give "
                "that file"
            )
        return
    if isinstance(container, Charliecloud):
        _refuse_unmountable(container, mounts(job))
        configured = {**job.environment, **machine.environment, **container.variables}
        if _OF_CH_RUN in (*configured, *container.passed):
            raise BadInput(f"{_OF_CH_RUN}: ch-run sets it itself, after all others; leave it out")
    if not isinstance(container, Pyxis | Edf):
        return
    if not isinstance(machine, SlurmCluster):
        raise BadInput(
            f"container.kind: {container.kind} is a plugin of SLURM, and needs a cluster"
        )
    if machine.launcher == "none":
        raise BadInput(
            f"container.kind: srun starts a command in {container.kind}: give `slurm.launcher`, "
            "srun or torchrun"
        )
    if machine.node_environment or not machine.rendezvous.is_default:
        raise BadInput(
            f"container.kind: with {container.kind} everything behind srun is inside, and nothing "
            "on the node fills in `slurm.node_environment` or follows `slurm.rendezvous`"
        )


def _refuse_unmountable(container: Charliecloud, binds: Sequence[Bind]) -> None:
    """Raise BadInput for what ch-run cannot mount, as far as it is seen from here."""
    image = Path(container.image)
    if image.is_file():
        raise BadInput(
            f"container.image: {image} is a file, which ch-run unmounts at its first SIGTERM, "
            f"under a trainer that saves: unpack it, `ch-convert {image} DIRECTORY`"
        )
    if odd := next((b for b in binds if ":" in b.host or ":" in b.inside), None):
        raise BadInput(f"container.binds: ch-run takes the colon in {odd.host} for its end")
    if container.makes_places or not image.is_dir():
        return
    # Of the host's own, /tmp is its TMPDIR.
    mounted = [Path(bind.inside) for bind in binds] + [Path("/tmp"), Path("/dev")]
    lacking = [
        bind.inside
        for bind in binds
        if not any(above in Path(bind.inside).parents for above in mounted)
        and not Path(f"{image}{bind.inside}").exists()
    ]
    if lacking:
        raise BadInput(
            f"container.image: ch-run mounts where the image has a place, and {image} has no "
            f"{', '.join(lacking)}: make them there, or have it make them, "
            "`container.options: [--write]`"
        )


def missing(jobs: Sequence[JobSpec]) -> list[str]:
    """The images and sources of binds that are not there, a sentence each.

    A job with a container of its own, as a stage may have, is named.
    """
    return [
        ("" if group[0] is jobs[0] else f"{group[0].name}: ") + sentence
        for group in _by_container(jobs)
        for sentence in _missing(group[0])
    ]


def _missing(job: JobSpec) -> Iterator[str]:
    container = job.container
    if isinstance(container, NoContainer):
        return
    named = [("binds", Bind.parse(text).host) for text in container.binds]
    if (image := container.image_file) is not None:
        named.insert(0, ("image", str(image)))
    for key, path in named:
        if "{" not in path and not Path(path).exists():
            yield f"container.{key}: {path} is not there, as seen from here"


def _notes(jobs: Sequence[JobSpec], is_sessions: bool) -> Iterator[str]:
    """Sentences on jobs of one container, which is the session's or that of a stage."""
    container = jobs[0].container
    if isinstance(container, NoContainer):
        return
    whose = "" if is_sessions else f"{jobs[0].name}: "
    for job in jobs:
        try:
            _refuse_misfit(job)
        except BadInput as error:
            named = whose if job is jobs[0] else f"{job.name}: "
            raise BadInput(f"{named}{error}") from error
    binds = dict.fromkeys(bind for job in jobs for bind in mounts(job))
    shown = ", ".join(bind.short for bind in binds)
    if shown:
        mounted = f"besides what {container.kind} mounts by itself: {shown}"
        yield f"in the image {container.image}, {mounted}"
    yield from (f"{whose}{sentence}" for sentence in _missing(jobs[0]))
    for name in (name for job in jobs for name in {**job.environment, **job.machine.environment}):
        if name in KEPT_BY_THE_RUNTIME:
            yield f"${name} stays outside: inside it is the image's own"
    for job in jobs:
        yield from _host_words(job)


def _host_words(job: JobSpec) -> Iterator[str]:
    """Words of a command that name a program of this environment: an image has others."""
    own = Path(sys.prefix)
    if own == Path(sys.base_prefix):
        return  # a system's Python: /usr/bin is in the image as well
    for word in job.command:
        if word != sys.executable and Path(word).is_relative_to(own):
            yield f"{job.name}: {word} lies in this environment, which the image does not show"
