"""An image is read once for as long as it is the same file."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.session.provenance import of_experiment
from autoexp.storage import image_digests
from autoexp.storage.image_digests import announcement, digest_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "autoexp" / "images.json"


def test_a_digest_is_kept_until_the_file_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tmp_path / "x.sif"
    image.write_bytes(b"one")
    first = digest_of(image)
    assert first == hashlib.sha256(b"one").hexdigest()

    reads: list[str] = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: reads.append(name) or real(file, name)
    )
    assert digest_of(image) == first and reads == []
    image.write_bytes(b"two")
    os.utime(image, ns=(1, 1))
    assert digest_of(image) == hashlib.sha256(b"two").hexdigest()
    assert len(reads) == 1


@pytest.mark.parametrize("text", ["", "[1]", "{"])
def test_what_is_kept_may_be_damaged(text: str, cache: Path, tmp_path: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(text)
    (tmp_path / "x.sif").write_bytes(b"one")
    assert digest_of(tmp_path / "x.sif") == hashlib.sha256(b"one").hexdigest()


def test_reading_a_large_image_is_announced_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_digests, "_LARGE", 2)
    image = tmp_path / "x.sif"
    image.write_bytes(b"one")
    experiment = compose("demo", ["container=apptainer", f"container.image={image}"]).experiment
    assert str(announcement(image)).startswith("reading the image (0 GB), once")
    assert json.loads(of_experiment(experiment)["image.json"])["sha256"] == digest_of(image)
    assert announcement(image) is None and announcement(tmp_path / "gone") is None


def test_of_an_image_without_a_digest_the_record_says_why(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "a directory"), (tmp_path / "no", "not a file that is seen")):
        own = ["container=apptainer", f"container.image={path}"]
        found = json.loads(of_experiment(compose("demo", own).experiment)["image.json"])
        assert found["image"] == str(path) and found["no_digest"].startswith(why)
