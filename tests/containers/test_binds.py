"""What a process in the image sees of the host's directories."""

from pathlib import Path

import pytest

from tests.containers.boxes import Image, box

TOUCHES = """
import json, os, pathlib, sys
root = pathlib.Path(os.getcwd()).parent
(pathlib.Path(os.getcwd()) / "of-the-job").touch()
print(json.dumps(sorted(path.name for path in root.iterdir())))
"""


def test_a_job_sees_what_the_others_of_its_session_have_written(
    image: Image, tmp_path: Path
) -> None:
    (tmp_path / "output" / "sibling").mkdir(parents=True)
    options = ("--no-mount", "tmp,home,cwd")  # as on a site, where sessions lie elsewhere
    made = box(tmp_path, TOUCHES, *image.overrides(*options))
    assert made.run() == ["boxed", "sibling"]
    assert (tmp_path / "output" / "boxed" / "of-the-job").exists()


@pytest.mark.parametrize("name", ["with space", "a,b", "a:b", 'a"b', "a,b:c"])
def test_a_session_may_lie_in_a_directory_of_any_name(
    name: str, image: Image, tmp_path: Path
) -> None:
    options = ("--no-mount", "tmp,home,cwd")
    made = box(tmp_path / name, TOUCHES, *image.overrides(*options))
    assert made.run() == ["boxed"]
