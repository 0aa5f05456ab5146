"""Provenance of a session's results: code, packages, environment and image, and no secret.

In `provenance/` of a session: `packages.txt`, `environment.json`, `<whose>.json` and `<whose>.diff`
for the repositories of the experiment and of the trainer, `image.json`, and `images.jsonl`, a line
for each file that attempts found as their image.
"""

import fnmatch
import json
import os
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.config.experiment import Experiment
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.redaction import may_be_stored, without_secrets
from autoexp.resources.containers import Docker, NoContainer
from autoexp.rules.events import ImageChanged
from autoexp.session.session import Session
from autoexp.storage import atomic
from autoexp.storage.image_digests import Identity, digest_of, kept_digest

_PACKAGES = ("autoexp", "prefect", "submitit", "pydantic", "hydra-core", "numpy", "torch")
_TIMEOUT_S = 30.0
_IMAGES = Path("provenance", "images.jsonl")
_LONGEST_DIFF = 20_000_000

# Variables that decide how a training runs; names that look like secrets are left out of these.
_VARIABLES = (
    *("CUDA_*", "ROCR_*", "HIP_*", "HSA_*", "NCCL_*", "RCCL_*", "FI_*", "UCX_*", "OMP_*", "MKL_*"),
    *("TORCH*", "PYTORCH_*", "TRITON_*", "MIOPEN_*", "NVTE_*", "HF_HOME", "HF_DATASETS_OFFLINE"),
    *("PYTHONPATH", "VIRTUAL_ENV", "CONDA_DEFAULT_ENV", "LOADEDMODULES", "LD_LIBRARY_PATH", "PATH"),
    *("SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_ACCOUNT", "SLURM_PARTITION", "SLURM_QOS"),
    *("AUTOEXP_*", "MEGATRON_LM", "HOSTNAME", "USER", "LANG", "LC_ALL", "TZ"),
)


class Provenance(NamedTuple):
    """The provenance recorded when the session was created."""

    versions: dict[str, str]
    git: dict[str, str]
    files: dict[str, str]
    """Names and texts of the files in `provenance/`."""


def provenance() -> Provenance:
    """Package versions, the environment and the git state of the working directory."""
    git = _git(Path.cwd())
    packages = sorted({f"{x.name}=={x.version}" for x in metadata.distributions()})
    files = {
        "packages.txt": "".join(f"{line}\n" for line in packages),
        "environment.json": _json(stored_environment(os.environ.items())),
        **_repository("experiment", Path.cwd(), git),
    }
    return Provenance(_versions(), git, files)


def of_experiment(experiment: Experiment) -> dict[str, str]:
    """Files about the experiment's sources: the trainer's repository and the image."""
    files: dict[str, str] = {}
    for source in experiment.trainer.sources[:1]:
        directory = source if source.is_dir() else source.parent
        files |= _repository("trainer", directory, _git(directory))
    image = _image(experiment)
    return files if image is None else {**files, "image.json": _json(image)}


def stored_environment(variables: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Variables on the list, except those that look like secrets by their names."""
    return {
        name: without_secrets(value)
        for name, value in sorted(variables)
        if any(fnmatch.fnmatchcase(name, known) for known in _VARIABLES) and may_be_stored(name)
    }


def _repository(whose: str, directory: Path, git: dict[str, str]) -> dict[str, str]:
    if not git:
        return {}
    files = {f"{whose}.json": _json({"directory": str(directory), **git})}
    diff = _run(["git", "-C", str(directory), "diff", "--no-ext-diff", "HEAD"])
    if diff and len(diff) > _LONGEST_DIFF:
        diff = f"{diff[:_LONGEST_DIFF]}\n[cut here: {len(diff)} characters]\n"
    return {**files, f"{whose}.diff": without_secrets(diff)} if diff else files


def note_image(session: Session, job: JobRecord, attempt: Attempt) -> ImageChanged | None:
    """Record the file that an attempt is given as its image, where it is a new one.

    Returns the event if an earlier attempt was given another file. What a kill leaves undone is
    done when it is called again.
    """
    image = job.spec.container.image_file
    try:
        found = Identity.of(image) if image is not None and image.is_file() else None
    except OSError:
        found = None
    if image is None or found is None:
        return None  # the runtime will say so, if the nodes do not see it either
    before = _image_before(session.path / _IMAGES, image)
    if before == found:
        return None
    event = ImageChanged(job=job.spec.name, attempt=attempt.number, image=str(image))
    if before is not None:
        session.record([event])
    known = kept_digest(image, found)
    digest = {"no_digest": "not read again"} if known is None else {"sha256": known}
    line = {"attempt": attempt.key, "image": str(image), **found._asdict(), **digest}
    with session.writing():
        text = json.dumps(line, ensure_ascii=False)
        atomic.append_once(session.path / _IMAGES, text, by_umask=False)
    return None if before is None else event


def _image_before(file: Path, image: Path) -> Identity | None:
    """The file that the last attempt in this image was given; None: there was none."""
    if not file.exists():
        return None
    for line in reversed(atomic.read(file).splitlines()):
        with suppress(ValueError, TypeError, KeyError):  # cut by a full disk
            seen = json.loads(line)
            if seen["image"] == str(image):
                return Identity(*(int(seen[name]) for name in Identity._fields))
    return None


def _image(experiment: Experiment) -> dict[str, str] | None:
    """The image, with what distinguishes it from another of the same name, if that can be found."""
    container = experiment.container
    if isinstance(container, NoContainer):
        return None
    named = {"image": container.image}
    if isinstance(container, Docker):
        asked = ["image", "inspect", "--format", "{{.Id}} {{.RepoDigests}}", container.image]
        answer = _run([container.program, *asked])
        if answer is None:
            return {**named, "no_digest": f"{container.program} knows no such image here"}
        return {**named, "digest": answer.strip()}
    path = container.image_file
    if path is None:
        return {**named, "no_digest": "a name, which the runtime looks up where a job runs"}
    if path.is_file():
        return {"image": str(path.absolute()), "sha256": digest_of(path)}
    why = "a directory" if path.is_dir() else "not a file that is seen from here"
    return {**named, "no_digest": why}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(directory: Path) -> dict[str, str]:
    """Commit, branch and uncommitted changes; empty outside a repository."""
    commands = {
        "commit": ["rev-parse", "HEAD"],
        "branch": ["rev-parse", "--abbrev-ref", "HEAD"],
        "uncommitted": ["status", "--porcelain", "--untracked-files=no"],
    }
    found = {}
    for name, arguments in commands.items():
        answer = _run(["git", "-C", str(directory), *arguments])
        if answer is None:
            return {}
        found[name] = answer.strip()
    return found


def _run(command: list[str]) -> str | None:
    """Output of a command; None when it fails, hangs or is missing."""
    try:
        answer = subprocess.run(
            command, capture_output=True, timeout=_TIMEOUT_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.decode(errors="replace")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
