"""The reason of a job that died of a Python exception is the exception."""

import os
from pathlib import Path

import pytest

from autoexp.jobs.tracebacks import last_exception
from autoexp.jobs.verdicts import has_begun, start_exception
from autoexp.resources.containers import Docker, NoContainer
from tests.core.story import StoryOf, go_on, say

PLAIN = """ iteration 3/ 10 | lm loss: 2.1 |
Traceback (most recent call last):
  File "/work/train.py", line 3, in <module>
    main()
    ^^^^^^
  File "/work/train.py", line 2, in main
    raise RuntimeError("out of memory")
RuntimeError: out of memory
srun: error: n1: task 0: Exited with exit code 1
"""
CHAINED = (
    PLAIN
    + """
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/work/train.py", line 9, in <module>
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB
"""
)
OF_RANKS = "".join(f"[rank0]: {line}\n" for line in PLAIN.splitlines()[1:8])
TORCHRUN = """Traceback (most recent call last):
  File "/usr/bin/torchrun", line 8, in <module>
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
"""


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (PLAIN, "RuntimeError: out of memory"),
        (CHAINED, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB"),
        (OF_RANKS + TORCHRUN, "RuntimeError: out of memory"),
        (PLAIN.replace(": out of memory\nsrun", "\nsrun"), "RuntimeError"),
        ("no exception: at all\n", None),
        ("Traceback (most recent call last):\n  File", None),
        ("Traceback (most recent call last):\n", None),
        ("", None),
    ],
)
def test_the_last_line_of_the_last_traceback_is_the_exception(
    tmp_path: Path, text: str, found: str | None
) -> None:
    log = tmp_path / "log"
    log.write_text(text)
    assert last_exception(log) == found


def test_a_log_of_any_size_and_content_is_read_in_part_and_raises_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.truncate(1 << 32)
        file.seek(0, os.SEEK_END)
        file.write(b"\nTraceback (most recent call last):\n\xff\x00 ValueError: " + b"x" * 9000)
    assert last_exception(log) is None
    with log.open("ab") as file:
        file.write(b"\nTraceback (most recent call last):\nValueError: " + b"x" * 9000 + b"\n")
    assert last_exception(log) == ("ValueError: " + "x" * 9000)[:200]
    assert last_exception(tmp_path / "gone") is None
    assert last_exception(Path("/dev/null")) is None
    os.mkfifo(tmp_path / "pipe")
    assert last_exception(tmp_path / "pipe") is None


def test_a_job_that_died_of_an_exception_has_failed_with_it(story_of: StoryOf) -> None:
    story = story_of()
    attempt = story.job().attempt
    assert attempt is not None
    story.log(10)
    with Path(attempt.log).open("a") as file:
        file.write(PLAIN)
    story.look(state="FAILED", exit_code=1)
    assert story.job().reason == "FAILED (exit code 1): RuntimeError: out of memory"
    assert start_exception(has_begun(story.job()), attempt.log) is None


def test_a_job_that_died_before_its_first_iteration_says_so(story_of: StoryOf) -> None:
    story = story_of()
    attempt = story.job().attempt
    assert attempt is not None
    Path(attempt.log).write_text(PLAIN.partition("\n")[2])
    story.look(state="FAILED", exit_code=1)
    exception = "RuntimeError: out of memory"
    assert story.job().reason == f"FAILED (exit code 1) before its first iteration: {exception}"
    assert start_exception(has_begun(story.job()), attempt.log) == exception


def test_without_an_exception_the_last_word_of_a_containers_runtime_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("INFO:    Converting\nFATAL:   could not open image /x.sif: no such file\n")
    assert last_exception(log) == "FATAL: could not open image /x.sif: no such file"


@pytest.mark.parametrize(
    ("code", "iterations", "reason"),
    [
        (255, (), "its container did not start: FATAL: could not open image /x.sif"),
        (1, (), "FAILED (exit code 1) before its first iteration: FATAL: could not open image"),
        (255, (10,), "FAILED (exit code 255): FATAL: could not open image /x.sif"),
    ],
)
def test_a_container_that_did_not_start_is_the_reason_and_not_its_exit_code(
    code: int, iterations: tuple[int, ...], reason: str, story_of: StoryOf
) -> None:
    story = story_of()
    for iteration in iterations:
        story.log(iteration)
    say(story, "FATAL:   could not open image /x.sif: no such file")
    story.look(state="FAILED", exit_code=code)
    assert str(story.job().reason).startswith(reason)


def test_after_restarts_in_vain_the_reason_has_the_last_line_too(story_of: StoryOf) -> None:
    again = {"again": {"to": ["FAILED"], "actions": [{"restart": {}}]}}
    story = story_of(state_events=again)
    for _ in range(2):
        say(story, "FATAL:   no loop device")
        story.look(state="FAILED", exit_code=255)
        go_on(story)
        story.session.record_submission(story.job(), story.job().attempts[-1], "id")
        Path(story.job().attempts[-1].log).parent.mkdir(parents=True, exist_ok=True)
    say(story, "FATAL:   no loop device")
    story.look(state="FAILED", exit_code=255)
    go_on(story)
    reason = "restarted: rule again; 3 attempts in a row without a new iteration"
    assert story.job().reason == f"{reason}: FATAL: no loop device"


def test_what_ch_run_says_of_a_container_that_it_did_not_start_is_the_reason(
    story_of: StoryOf,
) -> None:
    story = story_of()
    say(story, "ch-run[42]: error: can't bind: source not found: /x (ch_core.c:104)")
    story.look(state="FAILED", exit_code=1)
    assert str(story.job().reason).startswith("its container did not start: ch-run: can't bind")


@pytest.mark.parametrize(
    ("container", "reason"),
    [
        (Docker(image="x"), "its container did not start: docker: Error response: no such image"),
        (NoContainer(), "FAILED (exit code 125)"),
    ],
    ids=["docker", "none"],
)
def test_what_docker_says_of_a_container_that_it_did_not_start_is_the_reason(
    container: Docker | NoContainer, reason: str, story_of: StoryOf
) -> None:
    story = story_of()
    job = story.job()
    job.spec = job.spec.model_copy(update={"container": container})
    say(story, "docker: Error response: no such image\nSee 'docker run --help'.")
    story.look(state="FAILED", exit_code=125)
    assert str(story.job().reason).startswith(reason)
