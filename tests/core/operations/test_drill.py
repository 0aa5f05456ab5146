"""What a drill concludes from records, and what it refuses or leaves out beforehand."""

import io
import re
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from autoexp.cli.main import main
from autoexp.cli.upkeep.drill import drill_table
from autoexp.config.compose import compose
from autoexp.jobs.record import JobRecord
from autoexp.operations.drill import exercises, setting
from autoexp.operations.drill.judgement import Outcome, Records, Trial, all_held, lines
from autoexp.planning.plan import Plan, make_plan
from autoexp.reports.terminal import canvas
from autoexp.resources.local import LocalMachine
from autoexp.resources.machines import SlurmCluster
from autoexp.session.find import below
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import attempt_of, create
from tests.sources import ROOT

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def at(minute: float) -> datetime:
    return BEGAN + timedelta(minutes=minute)


def composed(*words: str, pretends: bool = False) -> Any:
    def fill_in(values: dict[str, Any]) -> dict[str, Any]:
        return setting.fill_in(values, Path("/s/drill-1"), pretends=pretends)

    return compose(setting.CONFIG, words, fill_in)


@cache
def planned() -> Plan:
    return make_plan(composed().experiment, Path("/s/drill-1"))


def records() -> Records:
    """A drill in which everything held: sick node, kills at 10, 20, 30, 40 and 50 minutes."""
    jobs = {spec.name: JobRecord(spec=spec, launched=True) for spec in planned().jobs}
    trunk = jobs["drill"]
    ends = ("NODE_FAIL", "FAILED", "CANCELLED", "COMPLETED")
    for number, (state, start) in enumerate(zip(ends, (None, 0, 200, 300), strict=True), 1):
        verdict = Verdict.FINISHED if state == "COMPLETED" else Verdict.CONTINUE
        trunk.attempts.append(
            attempt_of(f"k{number}", number=number, state=state, started_from=start)
        )
        last = trunk.attempts[-1]
        last.verdict, last.intended_at = verdict, at(10 * number - 10)
        last.ended_at = at(10 * number + 5)
    trunk.attempts[0].sick_nodes = {"n1": "a drill pretends it"}
    trunk.verdict = Verdict.FINISHED
    for point, minute in ((100, 10), (200, 20), (400, 52)):
        job = jobs[f"drill-cd{point}"]
        job.verdict = Verdict.FINISHED
        done = {"state": "COMPLETED", "verdict": Verdict.FINISHED, "started_from": point}
        asked = {"intended_at": at(minute), "submitted_at": at(minute)}
        job.attempts.append(attempt_of(f"c{point}", **done, **asked))
    keys = [attempt.key for job in jobs.values() for attempt in job.attempts]
    return Records(
        jobs=jobs,
        completed={
            **{("drill", iteration): at(iteration / 10) for iteration in (100, 200, 300)},
            ("drill", 351): at(36),
            ("drill", 400): at(51),
        },
        submitted=dict.fromkeys(keys, ("1", "1")),
        nodes={**dict.fromkeys(keys, ("n2",)), "k1": ("n1",)},
        avoided=("n1",),
        kept_every=(100,),
        gone=(("drill", 351),),
        disk_warning="checkpoints take 2 MB; 1 MB are kept only as `every: 100`",
        prefect_has_all=True,
    )


def trial(exercise: str, began: float, ended: float, **about: Any) -> Trial:
    return Trial(exercise, f"did {exercise}", at(began), at(ended), **about)


TRIALS = {
    each.exercise: each
    for each in (
        trial(setting.SICK_NODE, 0, 10, attempt=1),
        trial(setting.MONITOR, 10, 11, job="drill-cd100", attempt=2),
        trial(setting.SERVER, 19, 21, job="drill-cd200"),
        trial(setting.STEP, 25, 30, attempt=2, saved=200),
        trial(setting.JOB, 35, 40, attempt=3, saved=300),
        trial(setting.BUDGET, 50, 52, job="drill-cd400"),
        trial(setting.DISK, 0, 55),
        trial(setting.WHOLE, 0, 60),
    )
}


def seen(exercise: str, found: Records, **changes: Any) -> tuple[str, str]:
    """The result of an exercise, and the words for it."""
    (line,) = [
        line
        for line in lines([TRIALS[exercise]._replace(**changes)], {}, found)
        if line.exercise == exercise
    ]
    return line.result, line.seen


def test_a_drill_in_which_all_held_says_so_line_by_line() -> None:
    table = lines(list(TRIALS.values()), {}, records())
    assert [line.exercise for line in table] == list(setting.EXERCISES)
    assert {line.result for line in table} == {"held"}
    assert all_held(table, {})
    assert [line.seconds for line in table] == [600, 60, 120, 300, 300, 120, 3300, 3600]
    assert table[-2].seen == (
        "warned, with what would free space; 4 checkpoints that `retention.keep` keeps are there, "
        "1 that it does not keep deleted"
    )
    assert table[-1].seen == (
        "all 4 jobs finished, 3 cooldowns from exactly their checkpoints; 7 attempts, none "
        "submitted twice"
    )


Change = Callable[[Records], Records]


def of_attempt(job: str, number: int, **values: Any) -> Change:
    """A change of one attempt."""

    def change(found: Records) -> Records:
        attempt = found.jobs[job].attempts[number - 1]
        for name, value in values.items():
            setattr(attempt, name, value)
        return found

    return change


def of_job(job: str, **values: Any) -> Change:
    def change(found: Records) -> Records:
        for name, value in values.items():
            setattr(found.jobs[job], name, value)
        return found

    return change


@pytest.mark.parametrize(
    ("exercise", "change", "words"),
    [
        (setting.SICK_NODE, of_attempt("drill", 1, sick_nodes={}), "exactly one node"),
        (setting.SICK_NODE, of_attempt("drill", 1, verdict=Verdict.FAILED), "not given back"),
        (setting.SICK_NODE, lambda r: r._replace(avoided=()), "n1 is not in the list"),
        (setting.SICK_NODE, lambda r: r._replace(nodes={"c100": ("n1",)}), "c100 ran on n1"),
        (
            setting.MONITOR,
            lambda r: r._replace(submitted={"c100": ("7", "8", "8")}),
            "c100 was submitted 2 times: 7, 8",
        ),
        (
            setting.MONITOR,
            of_attempt("drill-cd100", 1, started_from=50),
            "began from 50, and 100 was planned",
        ),
        (setting.MONITOR, of_attempt("drill", 2, ended_at=at(10.5)), "did not run on"),
        (
            setting.SERVER,
            of_attempt("drill-cd200", 1, submitted_at=at(22)),
            "not submitted while the server was away",
        ),
        (setting.SERVER, lambda r: r._replace(prefect_has_all=False), "records .* incomplete"),
        (setting.STEP, of_attempt("drill", 3, started_from=0), "began from 0, and 200 was saved"),
        (setting.STEP, of_attempt("drill", 2, state="RUNNING"), "did not end"),
        (setting.STEP, of_attempt("drill", 2, state="COMPLETED"), "ended COMPLETED"),
        (
            setting.JOB,
            lambda r: of_job("drill", attempts=r.jobs["drill"].attempts[:3])(r),
            "no attempt followed",
        ),
        (setting.JOB, of_attempt("drill", 3, verdict=Verdict.FAILED), "CANCELLED, failed"),
        (
            setting.BUDGET,
            of_attempt("drill-cd400", 1, intended_at=at(51)),
            "submitted all the same",
        ),
        (
            setting.BUDGET,
            lambda r: r._replace(completed={("drill", 400): at(53)}),
            "no planned checkpoint was complete while the budget was full",
        ),
        (setting.DISK, lambda r: r._replace(disk_warning=""), "nothing was said"),
        (
            setting.DISK,
            lambda r: r._replace(disk_warning="checkpoints take 2 MB"),
            "does not say what would free space",
        ),
        (setting.DISK, lambda r: r._replace(gone=(("drill", 200),)), "checkpoint 200 of drill"),
        (
            setting.DISK,
            lambda r: r._replace(
                gone=(("drill-cd200", 250),), completed={("drill-cd200", 250): at(30)}
            ),
            "checkpoint 250 of drill-cd200, which",
        ),
        (setting.WHOLE, of_job("drill-cd200", verdict=None), "drill-cd200 is not finished"),
        (setting.WHOLE, of_attempt("drill-cd400", 1, started_from=None), "drill-cd400 never began"),
        (setting.WHOLE, of_attempt("drill", 4, wrong_start="began at 0"), "began at 0"),
    ],
)
def test_whatever_is_not_as_it_has_to_be_did_not_hold(
    exercise: str, change: Change, words: str
) -> None:
    result, text = seen(exercise, change(records()))
    assert result == "did not hold"
    assert re.search(words, text), text


def test_what_was_waited_for_in_vain_did_not_hold_whatever_the_records_say() -> None:
    missed = "waited 300 s for the next monitor"
    assert seen(setting.MONITOR, records(), missed=missed) == ("did not hold", missed)


def test_what_was_not_tried_is_never_held_and_counts_only_where_it_could_have_been() -> None:
    blocked = {setting.JOB: "there is no scancel"}
    tried = [each for each in TRIALS.values() if each.exercise != setting.JOB]
    table = lines(tried, blocked, records())
    (job,) = [line for line in table if line.exercise == setting.JOB]
    assert (job.result, job.did, job.seen, job.seconds) == (
        *("not tried", "", "there is no scancel"),
        None,
    )
    assert all_held(table, blocked)
    # One that the drill did not come to is another matter.
    shorter = lines(tried[:2], blocked, records(), "the drill had ended before: no answer")
    assert [line.result for line in shorter] == ["held", "held", *["not tried"] * 6]
    assert shorter[-1].seen == "the drill had ended before: no answer"
    assert not all_held(shorter, blocked)


@pytest.mark.parametrize(
    ("machine", "usable", "blocked"),
    [
        (SlurmCluster(gpus_per_node=4), 3, set()),
        (SlurmCluster(), 3, {setting.BUDGET}),
        (SlurmCluster(gpus_per_node=4), 1, {setting.SICK_NODE}),
        (SlurmCluster(gpus_per_node=4, nodes=2, launcher="srun"), 2, {setting.SICK_NODE}),
        (SlurmCluster(gpus_per_node=4), None, {setting.SICK_NODE}),
        (LocalMachine(), 1, {setting.SICK_NODE, setting.JOB, setting.BUDGET}),
        (LocalMachine(gpus_per_node=1), 1, {setting.SICK_NODE, setting.JOB}),
    ],
)
def test_what_a_machine_does_not_allow_is_known_before(
    machine: LocalMachine | SlurmCluster, usable: int | None, blocked: set[str]
) -> None:
    found = setting.not_possible(machine, usable)
    assert set(found) == blocked
    assert all(found.values())


SITES = sorted(path.stem for path in (ROOT / "configs" / "slurm").glob("*.yaml"))


@pytest.mark.parametrize("site", [site for site in SITES if site not in ("base", "block")])
def test_every_site_can_be_drilled_with_one_process_and_no_torch(site: str) -> None:
    found = composed(f"slurm={site}", pretends=True)
    experiment = found.experiment
    assert experiment.nodes is not None and experiment.nodes.command[-1] == "/s/drill-1/drill/sick"
    assert experiment.slurm.workers == 1 and experiment.slurm.launcher in ("none", "srun")
    assert (experiment.slurm.time_limit_min or 0) <= 20
    setting.refuse_plan(make_plan(experiment, Path("/s/drill-1")))


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["study"], "study: a drill runs the demo's training"),
        (["slurm=nowhere"], "nowhere"),
        (["backend.args.train_iters=410"], "a drill needs its own training"),
        (["cooldowns=[]"], "a drill needs its own training"),
        (["backend.args.lr=1e-3,1e-2"], "a drill needs its own training"),
        (["slurm.nodes=2"], "slurm"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(
    words: list[str],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    assert main(["drill", *words]) == 2
    assert why in capsys.readouterr().err
    assert below(tmp_path / "sessions") == []


def test_the_table_has_eighty_columns_and_all_its_words() -> None:
    table = lines(list(TRIALS.values())[:4], {setting.JOB: "there is no scancel"}, records(), "why")
    outcome = Outcome(
        session="drill-1",
        path="/s/drill-1",
        site="lumi",
        began=BEGAN,
        ended=at(60),
        all_held=False,
        lines=table,
    )
    file = io.StringIO()
    canvas(file, 80, colours=False).print(drill_table(outcome))
    printed = file.getvalue()
    assert all(len(line.rstrip()) <= 80 for line in printed.splitlines())
    assert printed.split("\n")[0].split() == ["exercise", "result", "s", "done,", "seen"]
    for line in table:
        assert re.search(rf"^{line.exercise} +{line.result} ", printed, re.MULTILINE)
    assert "did step: FAILED; attempt 3 went" in printed and "there is no scancel" in printed


def test_a_node_is_called_sick_by_the_first_check_and_by_no_check_of_another_node(
    tmp_path: Path,
) -> None:
    command = composed(pretends=True).experiment.nodes.command
    words = [*command[:-1], str(tmp_path / "with a 'quote'")]

    def check(node: str) -> tuple[int, str]:
        ended = subprocess.run(
            words, env={"SLURMD_NODENAME": node, "PATH": "/usr/bin:/bin"}, capture_output=True
        )
        return ended.returncode, ended.stdout.decode().strip()

    sick, well = (1, setting.REASON), (0, "")
    assert [check(node) for node in ("n2", "n1", "n2", "n3")] == [sick, well, sick, well]


class EndsAtOnce:
    """A monitor that ends before it has done anything."""

    exit_code, pid, prefect_has_all, last_words = 7, None, False, "no server answers"

    def __init__(self, *_: object) -> None: ...

    def start(self) -> None: ...

    prepare = stop = wait_for_server_to_end = start


def test_a_drill_without_a_monitor_says_what_was_not_reached_and_leaves_no_job_that_may_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exercises, "Monitor", EndsAtOnce)
    path = create(compose(setting.CONFIG, []), tmp_path / "sessions")
    blocked = setting.not_possible(LocalMachine(), 1)
    said: list[str] = []
    done = exercises.conduct(path, tmp_path, blocked, said.append)
    table = {
        line.exercise: line for line in lines(done.trials, blocked, done.records, done.stopped)
    }
    ended = "the monitor ended (exit code 7) before the first attempt: no server answers"
    why = f"the drill had ended before: {ended}"
    assert {line.result for line in table.values()} == {"not tried"}
    assert table[setting.MONITOR].seen == table[setting.WHOLE].seen == why
    assert not all_held(list(table.values()), blocked)
    assert Session.load(path).is_over and "cancelling its jobs" in said[-1]
    assert not list(setting.holds_below(path).iterdir())
