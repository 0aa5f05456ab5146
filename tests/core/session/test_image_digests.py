"""An image is read once for as long as it is the same file."""

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from autoexp.config.compose import compose
from autoexp.rules.events import ImageChanged
from autoexp.session.provenance import note_image, of_experiment
from autoexp.session.session import Session
from autoexp.storage import image_digests
from autoexp.storage.image_digests import announcement, digest_of
from tests.builders import TINY, create
from tests.core.monitor.driver import Driver
from tests.fakes.scheduler import FakeScheduler
from tests.killing import KilledAt


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


def recorded(kind: str, image: str, *overrides: str) -> dict[str, str]:
    """What a session's record says of its image."""
    own = [f"container={kind}", f"container.image='{image}'", *overrides]
    found: dict[str, str] = json.loads(of_experiment(compose("demo", own).experiment)["image.json"])
    return found


@pytest.mark.parametrize("kind", ["apptainer", "pyxis", "edf"])
def test_the_record_has_the_digest_of_whatever_is_a_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(b"one")
    assert recorded(kind, f"{tmp_path}/image")["sha256"] == hashlib.sha256(b"one").hexdigest()


def test_of_an_image_without_a_digest_the_record_says_why(tmp_path: Path) -> None:
    images = (
        ("apptainer", str(tmp_path), "a directory"),
        ("apptainer", f"{tmp_path}/no", "not a file that is seen"),
        ("apptainer", "docker://python:3.12", "a name, which the runtime looks up"),
        ("pyxis", "nvcr.io#nvidia/pytorch:25.08-py3", "a name, which the runtime looks up"),
        ("edf", "ngc", "a name, which the runtime looks up"),
    )
    for kind, image, why in images:
        found = recorded(kind, image)
        assert found["image"] == image and found["no_digest"].startswith(why)


def test_docker_is_asked_for_the_digest_by_the_name_that_it_has_here(tmp_path: Path) -> None:
    program = tmp_path / "podman-hpc"
    program.write_text('#!/bin/sh\necho "$1 $2 $5"\n')
    program.chmod(0o755)
    command = f"container.command={program}"
    assert recorded("docker", "train:1", command)["digest"] == "image inspect train:1"
    program.write_text("#!/bin/sh\nexit 1\n")
    assert "knows no such image" in recorded("docker", "train:1", command)["no_digest"]


def of_image(image: Path, root: Path) -> Path:
    """A tiny session whose trainings run in an image."""
    own = ("container=apptainer", f"container.image={image}", "container.gpus=none")
    return create(compose("demo", [*TINY, *own]), root, session_id="s1")


def lines_of(session: Path) -> list[dict[str, Any]]:
    text = (session / "provenance" / "images.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def changes_in(session: Path) -> list[ImageChanged]:
    events = (entry.event for entry in Session.load(session).journal.entries)
    return [event for event in events if isinstance(event, ImageChanged)]


def test_an_attempt_that_is_given_another_image_is_an_event_a_line_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = tmp_path / "x.sif"
    image.write_bytes(b"one")
    digest = digest_of(image)
    session, scheduler = of_image(image, tmp_path / "sessions"), FakeScheduler()
    driver = Driver(session, scheduler)

    def next_attempt() -> None:
        for job in scheduler.jobs.values():
            job.state = "NODE_FAIL"
        driver.round()
        driver.round()

    driver.round()
    assert changes_in(session) == []
    assert [line["sha256"] for line in lines_of(session)] == [digest]

    image.write_bytes(b"two")
    next_attempt()
    next_attempt()
    assert len(scheduler.jobs) == 3
    assert [(event.job, event.attempt) for event in changes_in(session)] == [("tiny", 2)]
    first, second = lines_of(session)
    assert second["attempt"] == driver.session.jobs["tiny"].attempts[1].key
    assert second["no_digest"] == "not read again" and second["mtime_ns"] != first["mtime_ns"]
    said = [record for record in caplog.records if "another file than before" in record.message]
    assert [record.levelname for record in said] == ["WARNING"]


def test_a_change_of_the_image_is_recorded_once_whatever_is_killed(
    tmp_path: Path, killed_at: KilledAt
) -> None:
    image = tmp_path / "x.sif"
    image.write_bytes(b"one")
    path = of_image(image, tmp_path / "sessions")
    session = Session.load(path)
    attempt = session.begin_attempt(session.jobs["tiny"])
    assert attempt is not None

    def note() -> None:
        own = Session.load(path)
        note_image(own, own.jobs["tiny"], own.jobs["tiny"].attempts[-1])

    note()
    image.write_bytes(b"two")
    kills = 0
    for step in itertools.count(1):
        if not killed_at(step, note):
            break
        kills += 1
    note()
    assert kills >= 2 and len(changes_in(path)) == 1 and len(lines_of(path)) == 2
