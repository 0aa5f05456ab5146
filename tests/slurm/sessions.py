"""Small sessions of the demo on the real cluster."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from tests.builders import create
from tests.flows.sessions import BRANCHES, SMALL, Make
from tests.slurm.bench import clear_queue


@contextmanager
def sessions_below(root: Path) -> Iterator[Make]:
    """`make(*overrides)` creates a small session of the demo on the cluster."""

    def make(*overrides: str) -> Path:
        asked = [*SMALL, "slurm=local_cluster", BRANCHES, *overrides]
        return create(compose("demo", asked), root)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOEXP_SESSIONS", str(root))
        try:
            yield make
        finally:
            for path in root.glob("[!.]*/session.json"):
                clear_queue(path.parent.name)
