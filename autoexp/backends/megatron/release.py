"""Writes the names of arguments that releases of Megatron-LM take: `make megatron-names`.

    python -m autoexp.backends.megatron.release REPOSITORY RELEASE...

A repository, bare or not, with the releases as tags: their source is read, nothing of it is run.
"""

import io
import subprocess
import sys
import tarfile
import tempfile
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from autoexp.backends.megatron.source_reader import names_in

TARGET = Path(__file__).with_name("release_names.py")
_SCRIPT = "pretrain_gpt.py"
_FILE = '''"""Names of arguments in releases of Megatron-LM: written by `make megatron-names`."""

RELEASES = (
{releases})

_NAMES = """
{names}
"""

NAMES = frozenset(_NAMES.split())
'''


def names_of(repository: Path, release: str) -> frozenset[str]:
    """Names of all arguments of a release, which is a tag; raises CalledProcessError without it."""
    command = ["git", "-C", str(repository), "archive", f"refs/tags/{release}", "megatron", _SCRIPT]
    archive = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(fileobj=io.BytesIO(archive)) as files,
    ):
        files.extractall(folder, filter="data")
        return names_in(Path(folder), _SCRIPT)


def written(releases: Sequence[str], names: Iterable[str]) -> str:
    """The module that holds them."""
    lines = textwrap.wrap(" ".join(sorted(names)), 100, break_long_words=False)
    quoted = "".join(f'    "{release}",\n' for release in releases)
    return _FILE.format(releases=quoted, names="\n".join(lines))


def main(repository: Path, releases: Sequence[str], target: Path = TARGET) -> None:
    """Write the names that any of the releases takes."""
    found = [names_of(repository, release) for release in releases]
    target.write_text(written(releases, frozenset().union(*found)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
