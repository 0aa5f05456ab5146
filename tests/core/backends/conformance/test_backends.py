"""The same cases for every backend: what must never be taken for a checkpoint, and what is read.

A new backend adds its fixture here; docs/backends.md walks through it.
"""

import math
import shutil
from pathlib import Path

import pytest

from autoexp.backends.protocol import Progress
from autoexp.monitor.job_watch import as_logged
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.core.backends.conformance.command import MARKED, TRACKED
from tests.core.backends.conformance.huggingface import HUGGINGFACE
from tests.core.backends.conformance.huggingface import saving as huggingface_saving
from tests.core.backends.conformance.megatron import DEMO, LEGACY, MEGATRON
from tests.core.backends.conformance.story import TrainerStory
from tests.core.backends.conformance.torchtitan import TORCHTITAN

TRAINERS = (DEMO, MEGATRON, LEGACY, TORCHTITAN, HUGGINGFACE, TRACKED, MARKED)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a checkpoint."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(params=TRAINERS, ids=lambda trainer: trainer.name)
def story(request: pytest.FixtureRequest, tmp_path: Path) -> TrainerStory:
    return TrainerStory(request.param, tmp_path / "story")


def test_a_checkpoint_counts_from_its_last_write_on_and_launches_its_cooldown_once(
    story: TrainerStory,
) -> None:
    for step in story.trainer.saving(story.save_dir, 100):
        assert story.look("RUNNING")[1:] == []
        assert story.launches == 0
        step()
    assert "checkpoint/t/100" in story.look()
    assert story.launches == 1
    assert story.look() == []
    assert story.launches == 1


def test_a_save_killed_at_any_write_never_starts_a_cooldown(
    tmp_path: Path,
) -> None:
    for trainer in TRAINERS:
        for written in range(len(trainer.saving(tmp_path, 100))):
            story = TrainerStory(trainer, tmp_path / f"{trainer.name}-{written}")
            for step in trainer.saving(story.save_dir, 100)[:written]:
                step()
            story.look("RUNNING")
            keys = story.look("NODE_FAIL")
            assert not any(key.startswith("checkpoint/") for key in keys), (trainer.name, written)
            assert story.launches == 0
            assert story.trunk.checkpoints == []


def test_after_a_torn_save_the_next_attempt_saves_there_again_and_that_counts(
    story: TrainerStory,
) -> None:
    story.trainer.torn(story.save_dir, 100)
    story.look("RUNNING")
    story.look("NODE_FAIL")
    assert story.trunk.attempts[0].verdict is Verdict.CONTINUE
    story.trunk.spec.trainer.clear_torn(story.save_dir)
    story.submit()
    story.trainer.save(story.save_dir, 100)
    assert "checkpoint/t/100" in story.look("RUNNING")
    assert story.launches == 1


def test_a_save_in_the_background_counts_when_it_is_on_disk_and_not_when_it_begins(
    story: TrainerStory,
) -> None:
    *before, last = story.trainer.saving(story.save_dir, 100)
    for step in before:
        step()
    for iteration in range(110, 190, 10):  # the training goes on meanwhile
        story.log(iteration)
        story.look("RUNNING")
    assert story.launches == 0
    last()
    story.look()
    assert story.launches == 1


def test_an_empty_tracker_says_nothing(story: TrainerStory) -> None:
    if story.trainer.empty_tracker is None:
        assert story.trunk.spec.trainer.checkpoints(story.save_dir).complete == []
        return
    story.trainer.save(story.save_dir, 100)
    story.trainer.empty_tracker(story.save_dir)
    story.look("RUNNING")
    assert story.trunk.checkpoints == []
    story.trainer.save(story.save_dir, 100)
    assert "checkpoint/t/100" in story.look()


def test_a_checkpoint_that_was_deleted_meanwhile_stays_known_and_its_pinned_branch_stays(
    story: TrainerStory,
) -> None:
    story.trainer.save(story.save_dir, 100)
    story.look("RUNNING")
    story.pin()
    shutil.rmtree(story.trainer.folder(story.save_dir, 100))
    story.trainer.save(story.save_dir, 200)
    assert "checkpoint/t/200" in story.look()
    assert story.trunk.checkpoints == [100, 200]
    (pinned,) = story.branch.spec.trainer.checkpoints(story.branch_dir).complete
    assert pinned.iteration == 100
    assert pinned.path == story.trainer.folder(story.branch_dir, 100)


def test_pinning_again_after_a_kill_does_no_harm_and_leaves_a_branch_that_moved_on(
    story: TrainerStory,
) -> None:
    story.trainer.save(story.save_dir, 100)
    (story.branch_dir / ".autoexp-seed").mkdir(parents=True)  # left by a kill
    for _ in range(2):
        story.pin()
        assert story.of_the_branch() == [100]
    story.trainer.save(story.branch_dir, 150)
    shutil.rmtree(story.trainer.folder(story.branch_dir, 100))
    story.pin()
    assert story.of_the_branch() == [150]


def test_whatever_a_branch_writes_into_its_start_its_parents_checkpoint_stays_bit_for_bit(
    story: TrainerStory,
) -> None:
    trainer, branch_dir = story.branch.spec.trainer, story.branch_dir
    story.trainer.save(story.save_dir, 100)
    copied = story.pin()
    # Links are for a trainer that replaces files and changes none.
    assert (copied == 0) == (story.trainer is DEMO)
    before = contents(story.trainer.folder(story.save_dir, 100))
    assert contents(story.trainer.folder(branch_dir, 100)) == before
    assert trainer.pin_changes(branch_dir).seed == ()
    if copied == 0:
        shutil.rmtree(story.trainer.folder(branch_dir, 100))
    for name in contents(story.trainer.folder(branch_dir, 100)):
        with (story.trainer.folder(branch_dir, 100) / name).open("r+b") as opened:
            opened.write(b"another training's")
    assert contents(story.trainer.folder(story.save_dir, 100)) == before
    assert bool(trainer.pin_changes(branch_dir).seed) == bool(copied)
    assert trainer.pin_changes(branch_dir).origin == ()


def test_a_branch_whose_start_was_written_over_begins_again_from_what_was_pinned(
    story: TrainerStory,
) -> None:
    branch_dir = story.branch_dir
    story.trainer.save(story.save_dir, 100)
    story.pin()
    start = story.trainer.folder(branch_dir, 100)
    pinned = contents(start)
    shutil.rmtree(start)
    for iteration in (50, 100, 150):  # a training from 0, in its place
        story.trainer.save(branch_dir, iteration)
    for name, content in contents(start).items():
        (start / name).write_bytes(b"of another training" + content)
    renamed = story.branch.spec.trainer.set_aside(branch_dir, 100)
    folders = [story.trainer.folder(branch_dir, at).name for at in (50, 150)]
    assert sorted(renamed) == sorted(folders)
    assert contents(start) == pinned
    assert story.of_the_branch() == [100]


def test_a_pinned_branch_is_not_changed_by_its_parents_later_writes(
    story: TrainerStory,
) -> None:
    story.trainer.save(story.save_dir, 100)
    story.pin()
    story.trainer.save(story.save_dir, 200)
    assert story.of_the_branch() == [100]


def test_a_resumed_training_that_logs_an_iteration_again_counts_it_once(
    story: TrainerStory,
) -> None:
    story.log(90)
    story.trainer.save(story.save_dir, 100)
    story.log(110, 2.25)
    story.look("RUNNING")
    story.look("NODE_FAIL")
    assert story.trunk.verdict is None
    story.submit()
    story.log(110, 2.75)
    story.trainer.save(story.save_dir, 200)
    keys = story.look("RUNNING")
    assert keys.count("checkpoint/t/200") == 1
    assert "checkpoint/t/100" not in keys
    assert story.trunk.loss == (2.75 if story.trainer.log_line else 2.5)
    assert story.launches == 1


def test_a_loss_that_is_no_number_is_never_shown_as_one(story: TrainerStory) -> None:
    story.log(100, math.nan)
    if story.trainer is HUGGINGFACE:
        for step in huggingface_saving(story.save_dir, 100, math.nan):
            step()
    else:
        story.trainer.save(story.save_dir, 100)
    story.look("RUNNING")
    assert story.trunk.loss is None
    if story.trainer.log_line or story.trainer is HUGGINGFACE:
        assert story.trunk.iteration == 100


def test_a_training_that_reached_its_target_is_finished(story: TrainerStory) -> None:
    story.log(300)
    story.trainer.save(story.save_dir, 300)
    story.look("RUNNING")
    story.look("COMPLETED", exit_code=0)
    assert story.trunk.verdict is Verdict.FINISHED


def test_a_training_that_stopped_early_with_exit_code_0_goes_on(story: TrainerStory) -> None:
    story.log(150)
    story.trainer.save(story.save_dir, 100)
    story.look("RUNNING")
    story.look("COMPLETED", exit_code=0)
    assert story.trunk.verdict is None
    assert story.trunk.attempts[0].verdict is Verdict.CONTINUE
    assert story.session.begin_attempt(story.trunk) is not None


def test_the_checkpoints_of_another_job_are_not_this_ones(story: TrainerStory) -> None:
    elsewhere = story.save_dir.parent.parent / "other" / "checkpoints"
    story.trainer.save(elsewhere, 100)
    inside = story.save_dir / "backup" / "other"
    story.trainer.save(inside, 100)
    linked = story.trainer.folder(story.save_dir, 200)
    linked.parent.mkdir(parents=True, exist_ok=True)
    linked.symlink_to(story.trainer.folder(elsewhere, 100))
    keys = story.look("RUNNING")
    assert not [key for key in keys if key.startswith("checkpoint/")]


def test_looking_again_reads_nothing_while_nothing_moves(story: TrainerStory) -> None:
    story.trainer.save(story.save_dir, 100)
    scan = story.trunk.spec.trainer.checkpoints(story.save_dir)
    assert not scan.unfinished
    watched = story.trunk.spec.trainer.watched(story.save_dir)
    assert len(watched) <= 2
    assert all(path.exists() for path in watched)


def test_both_command_lines_name_their_own_directory_and_never_the_others(
    story: TrainerStory,
) -> None:
    trunk, branch = story.trunk.spec, story.branch.spec
    for spec, other in ((trunk, branch), (branch, trunk)):
        assert any(spec.save_dir in word for word in spec.command)
        assert not any(other.output_dir + "/" in word for word in spec.command)


def test_a_record_of_the_backend_reads_back_as_it_was(story: TrainerStory) -> None:
    again = Session.load(story.session.path)
    assert again.jobs["t"].spec == story.trunk.spec


def test_each_number_that_is_read_is_one_that_the_backend_says_it_logs(story: TrainerStory) -> None:
    """Else a plan says of a rule that it never fires, and it does."""
    trainer, save_dir = story.trunk.spec.trainer, Path(story.trunk.spec.save_dir)
    if story.trainer.log_line is None:
        story.trainer.save(save_dir, 100)
        read = trainer.checkpoints(save_dir).progress[-1]
    else:
        line = trainer.progress(story.trainer.log_line(100, 2.5).encode())
        assert isinstance(line, Progress)
        read = line
    numbers = as_logged(read)._asdict()
    found = {name for name, value in numbers.items() if value is not None} - {"iteration"}
    assert "loss" in found
    assert found - trainer.logged == set()
