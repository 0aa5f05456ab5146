"""What the command line says of an image."""

import os
from pathlib import Path

import pytest

from tests.flows.commands import autoexp


def test_a_large_image_is_announced_before_it_is_read_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image, root = tmp_path / "x.sif", tmp_path / "sessions"
    image.touch()
    os.truncate(image, 10**9)  # a hole: it takes no room
    own = ("container=apptainer", f"container.image={image}", "cooldowns=[]", "--no-monitor")
    said = [autoexp("run", "demo", "--session", name, *own, root=root) for name in ("one", "two")]
    assert [answer.returncode for answer in said] == [0, 0], said
    announced = ["reading the image (1 GB), once" in answer.stderr for answer in said]
    assert announced == [True, False]
