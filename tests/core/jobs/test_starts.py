"""Where an attempt begins: at its checkpoint, or it is ended and failed, and nothing counts."""

from pathlib import Path
from typing import Any

import pytest

from autoexp.backends.command.backend import CommandBackend
from autoexp.backends.huggingface.backend import HuggingFaceBackend
from autoexp.backends.megatron.formats import TRACKER
from autoexp.backends.protocol import UNDECIDED, Branch, FoundCheckpoint
from autoexp.backends.torchtitan.backend import TorchtitanBackend
from autoexp.jobs.record import JobRecord
from autoexp.jobs.starts import branch_was_seen, check, note_line, note_logged, start_was_seen
from autoexp.jobs.verdicts import judge
from autoexp.monitor.monitor import Look
from autoexp.operations import actions, retry
from autoexp.reports.curves import gains, without_seen_start
from autoexp.reports.results import rows
from autoexp.rules.events import StartedElsewhere
from autoexp.states import Kind, Verdict
from autoexp.storage import metrics_file, migrations
from tests.builders import attempt_of, spec_of
from tests.core.story import Story

BRANCH = "tiny-cd100"
MISSING = b"WARNING: could not find the metadata file /out/latest_checkpointed_iteration.txt"


@pytest.fixture
def story(session_path: Path) -> Story:
    """The trunk has saved 100, 200 and 300; the branch at 100 is seeded and runs."""
    story = Story(session_path)
    story.submit()
    for iteration in range(10, 301, 10):
        story.log(iteration)
    for iteration in (100, 200, 300):
        story.save(iteration)
    story.look(state="RUNNING")
    story.look(state="COMPLETED", exit_code=0)
    begin_branch(story)
    return story


def begin_branch(story: Story) -> None:
    job = story.job(BRANCH)
    parent = story.folder(100)
    job.spec.trainer.seed(FoundCheckpoint(100, parent), Path(job.spec.save_dir))
    story.session.change_job(job, launched=True)
    story.submit(BRANCH)
    story.look(name=BRANCH, state="RUNNING")


def say(story: Story, line: bytes, name: str = BRANCH) -> None:
    attempt = story.job(name).attempt
    assert attempt is not None
    with Path(attempt.log).open("ab") as file:
        file.write(line + b"\n")


def started_elsewhere(look: Look) -> list[StartedElsewhere]:
    return [event for event in look.events if isinstance(event, StartedElsewhere)]


# Branches


def test_a_branch_that_begins_at_its_branch_point_goes_on(story: Story) -> None:
    for iteration in (110, 120, 150):
        story.log(iteration, name=BRANCH)
    story.save(150, name=BRANCH)
    story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    assert story.job(BRANCH).verdict is Verdict.FINISHED
    assert branch_was_seen(story.job(BRANCH))
    assert [gain.job for gain in gains(story.session)] == [BRANCH]


def test_a_branch_that_begins_at_0_is_ended_at_once_and_failed_with_that_reason(
    story: Story,
) -> None:
    story.log(10, name=BRANCH)
    assert started_elsewhere(story.look()) == []  # one line alone may be garbled
    story.log(20, name=BRANCH)
    (event,) = started_elsewhere(story.look())
    job = story.job(BRANCH)
    assert "did not begin at its branch point, iteration 100" in event.reason
    assert "its log begins with iteration 10" in event.reason
    assert job.spec.save_dir in event.reason
    assert job.is_ending  # so what runs of it is cancelled
    assert job.verdict is None
    story.look(name=BRANCH, state="CANCELLED")
    assert (job.verdict, job.reason) == (Verdict.FAILED, event.reason)


def test_a_branch_that_began_at_0_and_reached_its_target_unseen_is_not_finished(
    story: Story,
) -> None:
    for iteration in range(10, 151, 10):
        story.log(iteration, name=BRANCH)
    story.save(150, name=BRANCH)
    look = story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    assert len(started_elsewhere(look)) == 1
    job = story.job(BRANCH)
    assert job.verdict is Verdict.FAILED
    assert job.checkpoints == []  # what it saved counts for nothing
    assert gains(story.session) == []
    (row,) = [row for row in rows([story.session]) if row["job"] == BRANCH]
    assert row["final_loss"] is None


def test_a_kill_of_the_monitor_at_any_moment_changes_nothing_of_that(
    session_path: Path, killed_at: Any
) -> None:
    story = Story(session_path)
    story.submit()
    story.save(100)
    story.look(state="RUNNING")
    begin_branch(story)
    story.log(10, name=BRANCH)
    story.log(20, name=BRANCH)

    def look_twice() -> None:
        story.open()
        story.look(name=BRANCH)
        story.look(name=BRANCH, state="COMPLETED", exit_code=0)

    # What a killed one has written stays for the next one, which is killed a step later.
    assert any(not killed_at(step, look_twice) for step in range(1, 100))
    story.open()
    story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    job = story.job(BRANCH)
    assert job.verdict is Verdict.FAILED
    assert "did not begin" in (job.reason or "")
    keys = [entry.event.key for entry in story.session.journal.entries]
    assert keys.count(f"start/{BRANCH}/a1") == 1


def test_a_branch_that_begins_at_another_checkpoint_fails(story: Story) -> None:
    story.log(210, name=BRANCH)
    story.log(220, name=BRANCH)
    (event,) = started_elsewhere(story.look())
    assert "its log begins with iteration 210" in event.reason


def test_one_lost_log_line_is_no_evidence(story: Story) -> None:
    story.log(120, name=BRANCH)
    assert started_elsewhere(story.look()) == []


def test_a_trainer_that_logs_more_seldom_than_it_was_told_began_at_its_branch_point(
    story: Story,
) -> None:
    for iteration in (160, 220):
        story.log(iteration, name=BRANCH)
    assert started_elsewhere(story.look()) == []


def test_what_the_trainer_says_decides_before_it_logs_an_iteration(story: Story) -> None:
    say(story, MISSING)
    (event,) = started_elsewhere(story.look())
    assert "its trainer says that it begins at iteration 0" in event.reason


def test_a_checkpoint_before_the_branch_point_gives_a_silent_trainer_away(story: Story) -> None:
    story.save(50, name=BRANCH)
    story.track("150", name=BRANCH)
    (event,) = started_elsewhere(story.look())
    assert "it has saved a checkpoint at iteration 50" in event.reason


def test_a_start_that_was_written_over_gives_a_silent_trainer_away(story: Story) -> None:
    start = story.folder(100, name=BRANCH)
    (start / "metadata.json").unlink()  # a link to the parent's
    (start / "metadata.json").write_text('{"iteration": 100}')
    story.save(150, name=BRANCH)
    story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    job = story.job(BRANCH)
    assert job.verdict is Verdict.FAILED
    assert "it has overwritten the checkpoint that it had to resume from: metadata.json" in (
        job.reason or ""
    )


def test_a_parents_checkpoint_that_was_changed_all_the_same_is_named(story: Story) -> None:
    (story.folder(100) / "metadata.json").write_text('{"changed": true}')  # through the link
    story.log(110, name=BRANCH)
    story.log(120, name=BRANCH)
    story.save(150, name=BRANCH)
    story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    tainted = story.job(BRANCH).tainted
    assert tainted is not None
    assert str(story.folder(100)) in tainted
    assert "metadata.json" in tainted


def test_touching_files_changes_nothing(story: Story) -> None:
    for folder in (story.folder(100), story.folder(100, name=BRANCH)):
        for file in folder.iterdir():
            file.touch()
    changes = story.job(BRANCH).spec.trainer.pin_changes(story.folder(100, name=BRANCH).parent)
    assert (changes.seed, changes.origin) == ((), ())


def test_a_branch_whose_start_nobody_saw_shows_no_gain(story: Story) -> None:
    job = story.job(BRANCH)
    story.save(150, name=BRANCH)
    story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    story.session.change_job(job, iteration=150)
    assert job.verdict is Verdict.FINISHED
    assert gains(story.session) == []
    assert without_seen_start(story.session) == [BRANCH]


def test_a_branch_that_is_run_again_begins_at_its_branch_point(story: Story) -> None:
    for iteration in (50, 100, 150):
        story.log(iteration, name=BRANCH)
    story.save(50, name=BRANCH)
    story.save(150, name=BRANCH)
    story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    job = story.job(BRANCH)
    retry.retry(story.session, (BRANCH,), "somebody")
    assert job.may_be_replaced
    assert job.restart is not None
    assert job.restart.roll_back_to == 100
    job.spec.trainer.set_aside(Path(job.spec.save_dir), 100)
    scan = job.spec.trainer.checkpoints(Path(job.spec.save_dir))
    assert [found.iteration for found in scan.complete] == [100]
    assert (Path(job.spec.save_dir) / TRACKER).read_text() == "100"

    actions.replaced(story.session, job, {})
    story.submit(BRANCH)
    for iteration in (110, 120, 150):
        story.log(iteration, name=BRANCH)
    story.look(name=BRANCH, state="RUNNING")
    assert job.attempts[1].first_iteration == 100
    assert branch_was_seen(job)


# Restarted trainings


def restart(story: Story) -> None:
    """The trunk's first attempt, at 200 checkpoints, dies; the second one runs."""
    story.submit()
    for iteration in range(10, 251, 10):
        story.log(iteration)
    story.save(100)
    story.save(200)
    story.look(state="RUNNING")
    story.look(state="NODE_FAIL")
    story.submit()
    story.look(state="RUNNING")


def test_a_training_that_goes_on_from_its_last_checkpoint_goes_on(session_path: Path) -> None:
    story = Story(session_path)
    restart(story)
    story.log(210)
    assert started_elsewhere(story.look()) == []
    attempt = story.job().attempts[1]
    assert start_was_seen(story.job(), attempt)


@pytest.mark.parametrize("first", [10, 110, 200])
def test_a_restarted_training_that_begins_before_its_last_checkpoint_fails(
    session_path: Path, first: int
) -> None:
    story = Story(session_path)
    restart(story)
    story.log(first)
    story.log(first + 10)
    (event,) = started_elsewhere(story.look())
    assert event.reason.startswith("did not begin at its last checkpoint, iteration 200: ")
    for iteration in range(first + 20, 301, 10):
        story.log(iteration)
    story.save(300)
    story.look(state="COMPLETED", exit_code=0)
    assert story.job().verdict is Verdict.FAILED
    assert 300 not in story.job().checkpoints


def test_a_checkpoint_that_somebody_removed_is_not_asked_for(session_path: Path) -> None:
    story = Story(session_path)
    restart(story)
    story.folder(200).rename(story.folder(200).with_name("bad"))
    story.track("100")
    story.log(110)
    assert started_elsewhere(story.look()) == []


def test_a_training_that_skips_to_a_checkpoint_of_its_own_is_left_alone(
    session_path: Path,
) -> None:
    """Megatron's non-persistent checkpoints lie elsewhere, and are newer."""
    story = Story(session_path)
    restart(story)
    story.log(250)
    assert started_elsewhere(story.look()) == []


def test_a_requeued_attempt_that_begins_again_at_0_fails(session_path: Path) -> None:
    story = Story(session_path)
    story.submit()
    for iteration in range(10, 251, 10):
        story.log(iteration)
    story.save(100)
    story.save(200)
    story.look(state="RUNNING")
    story.log(110)  # the save of 200 may have been torn
    assert started_elsewhere(story.look()) == []
    for iteration in range(120, 241, 10):
        story.log(iteration)
    story.look()
    story.log(10)
    assert started_elsewhere(story.look()) == []  # one line alone may be garbled
    story.log(20)
    (event,) = started_elsewhere(story.look())
    assert "its log goes back to iteration 10" in event.reason


def test_a_launcher_that_starts_the_trainer_again_within_an_attempt_is_no_other_start(
    session_path: Path,
) -> None:
    story = Story(session_path)
    story.submit()
    for iteration in range(10, 171, 10):
        story.log(iteration)
    story.save(100)
    story.look(state="RUNNING")
    for again in range(3):
        story.log(110)
        for iteration in range(120, 171 + 10 * again, 10):
            story.log(iteration)
        assert started_elsewhere(story.look()) == []
    job = story.job()
    assert len(job.attempts) == 1
    assert job.iteration == 190
    found = metrics_file.read(session_path, "tiny")
    assert [row.iteration for row in found] == list(range(10, 191, 10))


def test_an_attempt_that_ran_unseen_behind_another_may_have_saved_what_is_found(
    session_path: Path,
) -> None:
    story = Story(session_path)
    story.submit()
    story.log(90)
    story.save(100)
    story.look(state="RUNNING")
    job = story.job()
    key = story.session.meta.key("tiny", 2)
    log = Path(job.attempts[0].log).parent.with_name(key) / "job.log"
    of_queue = {"state": "PENDING", "job_id": "id2", "after": "id1", "first_iteration": 0}
    ahead = attempt_of(key, str(log), number=2, **of_queue)
    story.session.change_job(job, attempts=[*job.attempts, ahead])
    # Nobody looks while the second one takes over, and saves two more.
    story.save(200)
    story.save(250)
    log.parent.mkdir()
    story.look(state="TIMEOUT")
    assert job.attempt is not None
    assert job.attempt.number == 2
    story.log(110)
    assert started_elsewhere(story.look()) == []
    assert job.attempt.first_logged == (110,)


def test_a_training_with_nothing_to_go_on_from_begins_wherever_it_does(session_path: Path) -> None:
    story = Story(session_path)
    story.submit()
    story.look(state="RUNNING")
    story.log(5010)
    assert started_elsewhere(story.look()) == []


# What each backend's log says


def record(backend: Any, *, begin: int, at: int = 200) -> JobRecord:
    branch = Branch(iteration=at, decay_iterations=60, shape="linear", min_lr=0.0)
    spec = spec_of("x", backend=backend, kind=Kind.COOLDOWN, branch=branch, target_iteration=260)
    return JobRecord(spec=spec, attempts=[attempt_of(first_iteration=begin, state="RUNNING")])


HF = HuggingFaceBackend.model_validate(
    {"script": "/train.py", "args": {"max_steps": 300, "save_steps": 100, "learning_rate": 1e-3}}
)
TITAN = TorchtitanBackend.model_validate(
    {
        "args": {
            "training": {"steps": 300},
            "optimizer": {"lr": 1e-3},
            "checkpoint": {"interval": 100},
        }
    }
)
LOSS = b"{'loss': '4.012', 'grad_norm': '1.026', 'learning_rate': '0.00225', 'epoch': '0.016'}"


@pytest.mark.parametrize(
    "said",
    [
        b"  Resuming training from checkpoint with epoch 0 and global step 200",  # Transformers 5
        b"[INFO|trainer.py:2519] >>   Continuing training from global step 200",  # 4
    ],
)
def test_the_trainer_of_hugging_face_says_what_it_resumes_from(said: bytes) -> None:
    job = record(HF, begin=200)
    for line in (b"***** Running training *****", said, LOSS):
        note_line(job, job.attempts[0], line)
    check(job, job.attempts[0])
    assert job.attempts[0].started_from == 200
    assert job.attempts[0].wrong_start is None
    assert branch_was_seen(job)


def test_the_trainer_of_hugging_face_that_logs_without_resuming_began_at_0() -> None:
    job = record(HF, begin=200)
    note_line(job, job.attempts[0], b"[transformers] ***** Running training *****")
    check(job, job.attempts[0])
    assert job.attempts[0].started_from == UNDECIDED
    assert job.attempts[0].wrong_start is None
    assert not branch_was_seen(job)
    note_line(job, job.attempts[0], b" 4%|4 | 10/260 [00:00<00:06]\r" + LOSS)
    check(job, job.attempts[0])
    assert "begins at iteration 0" in (job.attempts[0].wrong_start or "")


def test_a_log_of_hugging_face_without_the_trainers_own_lines_says_nothing() -> None:
    job = record(HF, begin=200)
    note_line(job, job.attempts[0], LOSS)
    assert job.attempts[0].started_from is None
    assert not branch_was_seen(job)


def command(**changes: Any) -> CommandBackend:
    return CommandBackend.model_validate(
        {
            "command": ["train"],
            "saves": {"name": "{iteration}", "must_exist": ["w"]},
            "log_line": r"iter (?P<iteration>\d+): (?P<loss>\S+)",
            "args": {"train_iters": 400, "save_interval": 100},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("logged", "seen"),
    [
        ((210, 220), True),
        ((200, 210), True),  # a trainer that counts from 0
        ((210,), False),  # who knows how often it logs
        ((250, 500), False),  # one that began at 0 would log this too
    ],
)
def test_a_trainer_of_ones_own_is_seen_to_begin_by_its_first_lines(
    logged: tuple[int, ...], seen: bool
) -> None:
    job = record(command(), begin=200)
    for iteration in logged:
        note_logged(job, job.attempts[0], iteration)
        job.iteration = iteration
        check(job, job.attempts[0])
    assert job.attempts[0].wrong_start is None
    assert branch_was_seen(job) == seen


def test_a_trainer_of_ones_own_that_begins_at_0_fails() -> None:
    job = record(command(), begin=200)
    for iteration in (0, 10):
        note_logged(job, job.attempts[0], iteration)
        job.iteration = iteration
    check(job, job.attempts[0])
    assert job.attempts[0].wrong_start is not None


@pytest.mark.parametrize("garbled", [3, 1, 90, 1110, 290, 99999])
def test_a_garbled_line_before_the_first_real_one_blames_no_branch(
    story: Story, garbled: int
) -> None:
    story.log(garbled, name=BRANCH)
    for iteration in (110, 120, 150):
        story.log(iteration, name=BRANCH)
        assert started_elsewhere(story.look()) == []
    story.save(150, name=BRANCH)
    look = story.look(name=BRANCH, state="COMPLETED", exit_code=0)
    assert started_elsewhere(look) == []
    assert story.job(BRANCH).verdict is Verdict.FINISHED


@pytest.mark.parametrize("garbled", [3, 20, 1110])
def test_a_garbled_line_among_others_blames_no_attempt(story: Story, garbled: int) -> None:
    for iteration in (110, 120, garbled, 130, 140, garbled, garbled, 150):
        story.log(iteration, name=BRANCH)
        assert started_elsewhere(story.look()) == []


def test_a_single_line_of_an_attempt_that_crashed_is_no_evidence_and_of_one_that_ended_well_it_is(
    story: Story,
) -> None:
    story.log(10, name=BRANCH)
    assert started_elsewhere(story.look(name=BRANCH, state="NODE_FAIL")) == []
    story.submit(BRANCH)
    story.log(10, name=BRANCH)
    story.save(150, name=BRANCH)
    assert len(started_elsewhere(story.look(name=BRANCH, state="COMPLETED", exit_code=0))) == 1


def test_a_start_line_says_where_a_trainer_of_ones_own_begins() -> None:
    backend = command(start_line=r"resumed at (?P<iteration>\d+)")
    job = record(backend, begin=200)
    note_line(job, job.attempts[0], b"resumed at 200")
    assert branch_was_seen(job)
    job = record(backend, begin=200)
    note_line(job, job.attempts[0], b"resumed at 100")
    check(job, job.attempts[0])
    assert "begins at iteration 100" in (job.attempts[0].wrong_start or "")


def test_torchtitan_says_with_which_step_it_starts() -> None:
    trainer = record(TITAN, begin=200).spec.trainer
    line = b"\x1b[34m[titan] 2026 - root - INFO\x1b[0m - Training starts at step 201"
    assert trainer.read_start(line, None) == 200
    assert trainer.read_start(b"Training starts at step 1", None) == 0


def test_a_verdict_is_never_finished_after_a_wrong_start() -> None:
    job = record(command(), begin=200)
    attempt = job.attempts[0]
    attempt.state, attempt.wrong_start = "COMPLETED", "did not begin"
    job.checkpoints = [260]
    assert judge(job, attempt, most_without_progress=3) == (Verdict.FAILED, "did not begin")


def test_records_of_before_still_load(tmp_path: Path) -> None:
    job = record(command(), begin=200)
    content = job.model_dump(mode="json")
    new = ("earliest_start", "started_from", "first_logged", "fell_back", "saved", "wrong_start")
    for name in new:
        del content["attempts"][0][name]
    path = tmp_path / "jobs" / "j.json"
    path.parent.mkdir()
    path.write_text(JobRecord.model_validate(content).model_dump_json())
    assert migrations.read(path, JobRecord).attempts[0].first_logged == ()
    assert not branch_was_seen(JobRecord.model_validate(content))
