"""Where a session's results come from: versions and the state of the code."""

import subprocess
from importlib import metadata
from pathlib import Path

_PACKAGES = ("autoexp", "prefect", "submitit", "pydantic", "hydra-core", "numpy", "torch")


def provenance() -> dict[str, dict[str, str]]:
    """Package versions and the git state of the working directory."""
    return {"versions": _versions(), "git": _git(Path.cwd())}


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(directory: Path) -> dict[str, str]:
    """Commit, branch and whether anything is uncommitted; empty outside a repository."""
    commands = {
        "commit": ["rev-parse", "HEAD"],
        "branch": ["rev-parse", "--abbrev-ref", "HEAD"],
        "uncommitted": ["status", "--porcelain", "--untracked-files=no"],
    }
    found = {}
    for name, arguments in commands.items():
        try:
            answer = subprocess.run(
                ["git", "-C", str(directory), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
                check=True,
            )
        except (OSError, subprocess.SubprocessError):
            return {}
        found[name] = answer.stdout.strip()
    return found
