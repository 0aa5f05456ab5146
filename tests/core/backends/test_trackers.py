"""Tracker files that a crash has emptied or filled with NULs: no checkpoint is lost over them."""

import os
import pickle
import re
from pathlib import Path

import pytest

from autoexp.backends.checkpoints import Layout, shards_are_there
from autoexp.backends.megatron.formats import TORCH, TORCH_DIST, TRACKER
from autoexp.backends.protocol import FoundCheckpoint
from autoexp.errors import SessionError
from tests.core.backends.conformance import command, megatron
from tests.core.backends.conformance.story import TrainerStory

UNREADABLE = (b"\0\0\0", b"", b"9" * 5000, b"\xff\xfe1")


def saved(root: Path, *iterations: int) -> None:
    for iteration in iterations:
        for step in megatron.saving(root, iteration):
            step()


def spoil(tracker: Path, content: bytes) -> None:
    """As a crash of an hour ago has left it."""
    tracker.write_bytes(content)
    os.utime(tracker, (1, 1))


def found(layout: Layout, root: Path) -> list[int]:
    return [each.iteration for each in layout.scan(root).complete]


@pytest.mark.parametrize("content", UNREADABLE, ids=["nuls", "empty", "huge", "bytes"])
def test_behind_an_unreadable_tracker_checkpoints_count_that_say_themselves_that_they_are_whole(
    tmp_path: Path, content: bytes
) -> None:
    saved(tmp_path, 100, 200)
    (tmp_path / "iter_0000300").mkdir()
    spoil(tmp_path / TRACKER, content)
    assert found(TORCH_DIST, tmp_path) == [100, 200]
    assert "write 200 there" in (TORCH_DIST.scan(tmp_path).problem or "")
    # In the legacy format nothing but the tracker says that a folder is complete.
    assert found(TORCH, tmp_path) == []
    assert TRACKER in (TORCH.scan(tmp_path).problem or "")


def test_a_tracker_that_is_a_fifo_or_a_directory_is_unreadable_and_not_waited_for(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 100)
    (tmp_path / TRACKER).unlink()
    os.mkfifo(tmp_path / TRACKER)
    assert found(TORCH_DIST, tmp_path) == [100]
    (tmp_path / TRACKER).unlink()
    (tmp_path / TRACKER).mkdir()
    assert found(TORCH_DIST, tmp_path) == [100]
    (tmp_path / "iter_0000100" / "metadata.json").unlink()
    os.mkfifo(tmp_path / "iter_0000100" / "metadata.json")
    assert found(TORCH_DIST, tmp_path) == []


def test_the_tracker_of_a_converted_model_is_no_fault(tmp_path: Path) -> None:
    spoil(tmp_path / TRACKER, b"release")
    (tmp_path / "release").mkdir()
    assert TORCH_DIST.scan(tmp_path).problem is None


def test_a_tracker_that_is_empty_for_a_moment_is_being_written(tmp_path: Path) -> None:
    saved(tmp_path, 100)
    (tmp_path / TRACKER).write_bytes(b"")
    scan = TORCH_DIST.scan(tmp_path)
    assert (scan.complete, scan.unfinished, scan.problem) == ([], True, None)


@pytest.mark.parametrize("content", UNREADABLE, ids=["nuls", "empty", "huge", "bytes"])
def test_no_checkpoint_is_moved_aside_because_of_an_unreadable_tracker(
    tmp_path: Path, content: bytes
) -> None:
    story = TrainerStory(command.TRACKED, tmp_path / "story")
    for iteration in (100, 200):
        story.trainer.save(story.save_dir, iteration)
    torn = command.tracked(story.save_dir, 300)
    torn.mkdir()
    (story.save_dir / "models" / "latest.txt").write_bytes(content)
    assert story.trunk.spec.trainer.clear_torn(story.save_dir) == ["300"]
    assert command.tracked(story.save_dir, 100).exists()
    assert command.tracked(story.save_dir, 200).exists()


def test_of_saves_that_were_killed_again_and_again_three_stay_aside(tmp_path: Path) -> None:
    story = TrainerStory(command.TRACKED, tmp_path / "story")
    story.trainer.save(story.save_dir, 100)
    folder = story.save_dir / "models"
    (folder / ".autoexp-torn-mine").mkdir()
    for iteration in (200, 300, 1000, 400):
        (folder / f"{iteration}").mkdir()
        assert story.trunk.spec.trainer.clear_torn(story.save_dir) == [f"{iteration}"]
    aside = {path.name.removeprefix(".autoexp-torn-") for path in folder.glob(".autoexp-torn-*")}
    assert aside == {"300", "400", "1000", "mine"}
    assert command.tracked(story.save_dir, 100).exists()


def test_where_only_the_tracker_tells_nothing_is_moved_aside_while_it_is_unreadable(
    tmp_path: Path,
) -> None:
    saved(tmp_path, 100, 200)
    (tmp_path / TRACKER).write_bytes(b"\0\0\0")
    assert TORCH.clear_torn(tmp_path) == []


def test_rolling_back_mends_the_tracker(tmp_path: Path) -> None:
    saved(tmp_path, 100, 200, 300)
    (tmp_path / TRACKER).write_bytes(b"\0\0\0")
    with pytest.raises(SessionError, match="no complete checkpoint"):
        TORCH.set_aside(tmp_path, 200)  # of none of them is known that it is whole
    assert TORCH_DIST.set_aside(tmp_path, 200) == ["iter_0000300"]
    assert (TORCH_DIST.tracked(tmp_path), found(TORCH_DIST, tmp_path)) == (200, [100, 200])


def test_a_branch_that_has_moved_on_is_not_begun_again_over_an_unreadable_tracker(
    tmp_path: Path,
) -> None:
    saved(tmp_path / "parent", 100)
    start, branch = FoundCheckpoint(100, tmp_path / "parent" / "iter_0000100"), tmp_path / "branch"
    TORCH_DIST.seed(start, branch)
    spoil(branch / TRACKER, b"\0\0\0")
    TORCH_DIST.seed(start, branch)
    assert TORCH_DIST.tracked(branch) == 100
    saved(branch, 120)
    spoil(branch / TRACKER, b"\0\0\0")
    TORCH_DIST.seed(start, branch)
    assert found(TORCH_DIST, branch) == [100, 120]
    assert (branch / TRACKER).read_bytes() == b"\0\0\0"


def test_an_unreadable_tracker_is_a_warning_and_its_checkpoints_start_cooldowns(
    tmp_path: Path,
) -> None:
    story = TrainerStory(megatron.DEMO, tmp_path / "story")
    story.trainer.save(story.save_dir, 100)
    spoil(story.save_dir / TRACKER, b"\0\0\0")
    assert "checkpoint/t/100" in story.look("RUNNING")
    assert story.launches == 1
    assert story.trunk.warning is not None
    assert "names no iteration; write 100 there" in story.trunk.warning
    story.trunk.warning = None
    story.look()
    assert story.trunk.warning is None  # said once


# The index of a distributed checkpoint


def sharded(path: Path, *shards: str, named: tuple[str, ...]) -> Layout:
    """A checkpoint whose index is a pickle of the names, as torch writes it."""
    path.mkdir(parents=True)
    (path / ".metadata").write_bytes(pickle.dumps({name: {"path": name} for name in named}))
    for shard in shards:
        (path / shard).write_text("x")
    return Layout(re.compile(r"step-(?P<iteration>\d+)"), must_exist=("*",), index=".metadata")


BOTH = ("__0_0.distcp", "__1_0.distcp")


@pytest.mark.parametrize(
    ("shards", "named", "whole"),
    [
        (BOTH, BOTH, True),
        (BOTH[:1], BOTH, False),
        ((), BOTH, None),  # they lie elsewhere: cannot be told
        (BOTH, (), None),
    ],
)
def test_a_checkpoint_without_a_shard_that_its_index_names_is_torn(
    tmp_path: Path, shards: tuple[str, ...], named: tuple[str, ...], whole: bool | None
) -> None:
    layout = sharded(tmp_path / "step-10", *shards, named=named)
    assert shards_are_there(tmp_path / "step-10", ".metadata") is whole
    found = [x.iteration for x in layout.scan(tmp_path).complete]
    assert found == ([] if whole is False else [10])
    if whole is False:  # once it is there, it counts
        (tmp_path / "step-10" / BOTH[1]).write_text("x")
        assert [x.iteration for x in layout.scan(tmp_path).complete] == [10]


def test_an_index_is_never_loaded(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harmed",)  # type: ignore[return-value]

    layout = sharded(tmp_path / "step-10", *BOTH, named=BOTH)
    (tmp_path / "step-10" / ".metadata").write_bytes(pickle.dumps([Harm(), *BOTH]))
    assert len(layout.scan(tmp_path).complete) == 1
    assert not (tmp_path / "harmed").exists()
