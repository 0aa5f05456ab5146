"""Provenance of a session's results: code, packages, environment and image, and no secret.

In `provenance/` of a session: `packages.txt`, `environment.json`, `<whose>.json` and `<whose>.diff`
for the repositories of the experiment and of the trainer, `image.json`.
"""

import fnmatch
import json
import os
import subprocess
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from autoexp.config.experiment import Experiment
from autoexp.redaction import may_be_stored, without_secrets
from autoexp.resources.containers import Apptainer, Docker
from autoexp.storage.image_digests import digest_of

_PACKAGES = ("autoexp", "prefect", "submitit", "pydantic", "hydra-core", "numpy", "torch")
_TIMEOUT_S = 30.0
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


def _image(experiment: Experiment) -> dict[str, str] | None:
    """The image, with what distinguishes it from another of the same name, if that can be found."""
    container = experiment.container
    match container:
        case Apptainer():
            path = Path(container.image)
            if path.is_file():
                return {"image": str(path.absolute()), "sha256": digest_of(path)}
            why = "a directory" if path.is_dir() else "not a file that is seen from here"
            return {"image": container.image, "no_digest": why}
        case Docker():
            asked = ["docker", "image", "inspect", "--format", "{{.Id}} {{.RepoDigests}}"]
            answer = _run([*asked, container.image])
            known = {} if answer is None else {"digest": answer.strip()}
            return {"image": container.image, **known}
        case _:
            return None


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
