"""Texts arrive as they are written, whatever YAML 1.1 would make of them; others are refused."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from autoexp.backends.command.backend import CommandBackend
from autoexp.config.compose import Composed, compose
from autoexp.errors import BadInput
from autoexp.jobs.backend_changes import changed_backend
from autoexp.operations.launch import Launching
from autoexp.planning.plan import make_plan
from autoexp.planning.rule_checks import compose_launched
from autoexp.resources.machines import SlurmCluster
from autoexp.rules.actions import Launch, Restart
from autoexp.rules.events import Published
from autoexp.scalars import marked_override, marked_yaml, unmarked
from autoexp.schedulers.local import LocalScheduler
from autoexp.session.action_records import ActionRecord

SURPRISES = (
    *("yes", "no", "on", "off", "Off", "true", "True", "FALSE", "010", "0xfe", "0b11", "08"),
    *("11:12:00", "1:30", "1_000", "12345e6", "1e-4", "1.10", "1.", "-0", "+5", ".5", ".inf"),
    *("2026-11-28", "99999999999999999999", "1.0E+3", "-.inf", ".nan", "1:30.5"),
)


def composed(folder: Path, text: str, *overrides: str) -> Composed:
    file = folder / "own.yaml"
    file.write_text(f"defaults: [demo, _self_]\n{text}")
    return compose(str(file), overrides)


def variables_of(found: Composed) -> dict[str, str]:
    return found.experiment.trainer.environment()


COMMAND = """
project: {name: own}
cooldowns: []
backend:
  kind: command
  command: [train, "{save_dir}"]
  saves: {name: "{iteration}", renamed: true}
  log_line: 'step (?P<iteration>[0-9]+)'
  args: {train_iters: 10, save_interval: 5}
"""
BARE = "defaults: [{slurm: local}, _self_]\n"


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    (tmp_path / "trainer.yaml").write_text(f"{BARE}{COMMAND}")
    return tmp_path / "trainer.yaml"


@pytest.mark.parametrize("scalar", SURPRISES)
def test_a_variable_is_what_is_written(tmp_path: Path, trainer: Path, scalar: str) -> None:
    file = tmp_path / "surprise.yaml"
    file.write_text(f"{BARE}{COMMAND}  variables: {{X: {scalar}, '{scalar}': a}}\n")
    found = compose(str(file))
    assert variables_of(found)["X"] == scalar
    assert compose(str(trainer), [f"+backend.variables.X={scalar}"]).experiment == (
        compose(str(trainer), [f'backend.variables={{X: "{scalar}"}}']).experiment
    )
    # Made again of what was written down, it is the same.
    for number, text in enumerate((found.resolved, found.unresolved)):
        again = tmp_path / f"again{number}.yaml"
        again.write_text(text)
        assert compose(str(again)).experiment == found.experiment


def test_every_key_is_a_text(tmp_path: Path, trainer: Path) -> None:
    del trainer
    file = tmp_path / "keys.yaml"
    file.write_text(f"{BARE}{COMMAND}  variables: {{on: 1, 010: 2, null: 3, 1e3: 4}}\n")
    assert {**variables_of(compose(str(file)))}.keys() >= {"on", "010", "null", "1e3"}


def test_times_of_sbatch_arrive_as_they_are_written(tmp_path: Path) -> None:
    text = "slurm: {kind: slurm, options: {time-min: 1:30:00, begin: 16:00, nice: 5, hold: true}}\n"
    (tmp_path / "own.yaml").write_text(f"defaults: [{{backend: demo}}, _self_]\n{text}")
    found = compose(str(tmp_path / "own.yaml"), ["project.name=p", "cooldowns=[]"])
    machine = found.experiment.slurm
    assert isinstance(machine, SlurmCluster)
    assert machine.options == {"time-min": "1:30:00", "begin": "16:00", "nice": 5, "hold": True}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("slurm.time_limit_min", "11:12:00"),
        ("monitoring.file_tick_s", "1:30"),
        ("backend.args.train_iters", "0x10"),
        ("budget.startup_s", "off"),
        ("slurm.max_jobs", "true"),
        ("monitoring.inactivity_events.quiet.after", "1:30:00"),
    ],
)
def test_what_is_no_number_is_refused_with_its_line(tmp_path: Path, key: str, value: str) -> None:
    *path, last = key.split(".")
    lines = ["# one", *(f"{'  ' * n}{part}:" for n, part in enumerate(path))]
    text = "\n".join([*lines, f"{'  ' * len(path)}{last}: {value}\n"])
    with pytest.raises(BadInput, match=rf"{key}: .*'{value}' .*own.yaml, line {len(lines) + 2}"):
        composed(tmp_path, text)
    with pytest.raises(BadInput, match=rf"{key}: .*'{value}' .*override `{key}={value}`"):
        composed(tmp_path, "", f"{key}={value}")


def test_a_word_that_may_be_a_switch_or_a_text_is_refused(tmp_path: Path, trainer: Path) -> None:
    own = COMMAND.replace("[train,", '[train, --x, "{x}",').replace("5}", "5, x: off}")
    (tmp_path / "own.yaml").write_text(f"{BARE}{own}")
    trainer.write_text(f"{BARE}{own}".replace("off", '"a"'))
    with pytest.raises(BadInput, match=r"backend.args.x: is `off` a switch or a text\?.*line 10"):
        compose(str(tmp_path / "own.yaml"))
    with pytest.raises(BadInput, match=r"switch or a text.*override"):
        compose(str(trainer), ["backend.args.x=yes"])
    with pytest.raises(BadInput, match=r"backend.args.x: is `on` a switch or a text"):
        compose(str(trainer), ["backend.args.x=on,off"])


def test_numbers_and_switches_stay_what_they_are(tmp_path: Path) -> None:
    text = "backend: {args: {train_iters: 2e3, lr: 1_0e-3, seed: 1_000}}\nslurm: {requeue: yes}\n"
    (tmp_path / "own.yaml").write_text(
        f"defaults: [demo, {{override slurm: lumi}}, _self_]\n{text}"
    )
    found = compose(str(tmp_path / "own.yaml"), ["slurm.account=a", "slurm.partition=p"])
    arguments = found.experiment.trainer.trunk_command(Path("/s"))
    assert found.experiment.trainer.train_iters == 2000
    assert "0.01" in arguments and "1000" in arguments
    assert isinstance(found.experiment.slurm, SlurmCluster) and found.experiment.slurm.requeue


def test_points_of_a_sweep_have_texts_as_they_are_written(tmp_path: Path, trainer: Path) -> None:
    del tmp_path
    found = compose(str(trainer), ["backend.variables.X=1e3,1.10,010"])
    values = [point.experiment.trainer.environment()["X"] for point in found.points]
    assert values == ["1e3", "1.10", "010"]
    found = compose(str(trainer), ["+sweep.grid={backend.args.train_iters: [1e3, 20]}"])
    assert [p.experiment.trainer.train_iters for p in found.points] == [1000, 20]


def test_a_training_of_a_stage_has_texts_as_they_are_written(trainer: Path) -> None:
    stage = "stages={more: {train: {backend.variables.X: 12345e6}}}"
    plan = make_plan(compose(str(trainer), [stage]).experiment, Path("/out"))
    assert plan.jobs[1].environment["X"] == "12345e6"


def test_an_empty_variable_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(f"{BARE}{COMMAND}  variables: {{X: }}\n")
    with pytest.raises(BadInput, match="`X` has no value"):
        compose(str(tmp_path / "own.yaml"))


@pytest.mark.parametrize(
    "text", ["a: &x 1\nb: *x\n", "a: !!str 1\n", 'a: "1"\n', "a: [1, {b: 2}]\n", "é: é\nb: 1 # é\n"]
)
def test_marking_changes_nothing_else_of_a_file(text: str) -> None:
    assert unmarked(marked_yaml(text)).replace('"', "") == text.replace('"', "")


@pytest.mark.parametrize("text", ["a: [", "a: 1\n---\nb: 1\n", "", "a: !x 1\n", "\t"])
def test_what_cannot_be_read_is_left_to_the_reader(text: str) -> None:
    assert unmarked(marked_yaml(text)).replace('"', "") == text


def marks(lines: Sequence[str]) -> list[str]:
    return [
        marked_override(line).replace("\U0010fffc", "<").replace("\U0010fffd", ">")
        for line in lines
    ]


def test_scalars_of_overrides_are_marked_but_those_of_functions() -> None:
    lines = ["a=1e3", "a=[1,x 1,{b: off}]", "a=range(1,9)", "a=1,b", "~a", "a=", "a='1'", "a=[1"]
    assert marks(lines) == [
        *('a="<1e3>"', 'a=["<1>",x 1,{b: "<off>"}]', "a=range(1,9)", 'a="<1>",b'),
        *("~a", "a=", "a='1'", "a=[1"),
    ]


def test_an_override_of_bytes_that_are_no_letters_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        compose("demo", ["project.description=\udcff"])


RULES = """
monitoring:
  log_events:
    again:
      pattern: x
      actions:
        - restart: {backend: {variables: {COMMIT: 12345e6}, args: {train_iters: 1e4, lr: 1e-4}}}
        - launch:
            config: own
            name: other
            set: {backend.variables.COMMIT: 12345e6, backend.args.train_iters: 1e4}
        - launch:
            command: ["true"]
            name: third
            set: {slurm.time_limit_min: 1e1}
"""


def test_changes_of_rules_arrive_as_written_however_often_they_were_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.yaml").write_text(f"{BARE}{COMMAND}{RULES}")
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path))
    found = compose("own").experiment
    again = type(found).model_validate_json(found.model_dump_json())
    assert again == found
    rule = again.monitoring.log_events["again"]
    assert rule is not None
    restart, launch, command = (step.action for step in rule.actions)
    assert isinstance(restart, Restart)
    backend = changed_backend(again.backend, restart.backend)
    assert isinstance(backend, CommandBackend)
    assert backend.variables == {"COMMIT": "12345e6"}
    assert (backend.args.train_iters, backend.args.lr) == (10000, 1e-4)
    assert isinstance(launch, Launch)
    launched = compose_launched(launch, "other", {}).experiment
    assert launched.trainer.environment()["COMMIT"] == "12345e6"
    assert launched.trainer.train_iters == 10000
    assert isinstance(command, Launch)
    told = Published(job="own", name="go", action="r/e/0")
    asked = ActionRecord(key="r/e2/0", rule="r", event=told, action=command)
    launching = Launching(asked, command, {}, again, tmp_path, "s")
    (job,) = launching.run(LocalScheduler())
    assert job.machine.time_limit_min == 10
