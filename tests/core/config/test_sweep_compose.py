"""Sweeps from YAML and the command line to plans: composed once, validated point by point."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose

from autoexp.config.compose import Composed, compose, points_of
from autoexp.errors import BadInput
from autoexp.planning.plan import Plan
from autoexp.planning.study import plan_study, subset

OUT = Path("/out")
GRID = ("backend.args.lr=3e-3,1e-2,3e-2", "backend.args.global_batch_size=64,128")
TWO = "cooldowns=[{at: [1000, 1600], decay: {iterations: 200}}]"


def plan(composed: Composed) -> Plan:
    return plan_study(composed, OUT)


def refusal(*overrides: str, config: str = "demo") -> str:
    with pytest.raises(BadInput) as refused:
        plan(compose(config, overrides))
    return str(refused.value)


def names(composed: Composed) -> list[str]:
    return [point.experiment.project.name for point in composed.points]


def test_commas_on_the_command_line_are_a_sweep_with_all_cooldowns_of_each_point() -> None:
    composed = compose("demo", [*GRID, TWO])
    jobs = plan(composed).jobs
    assert len(composed.points) == 6
    assert len(jobs) == 18
    assert names(composed)[:2] == [
        "demo-lr0.003-global_batch_size64",
        "demo-lr0.003-global_batch_size128",
    ]
    cooldown = jobs[1]
    assert (cooldown.name, cooldown.parent) == (f"{jobs[0].name}-cd1000", jobs[0].name)
    assert cooldown.settings == {"backend.args.lr": 0.003, "backend.args.global_batch_size": 64}
    place = cooldown.command.index("--global-batch-size")
    assert cooldown.command[place + 1] == "64"
    assert composed.experiment.project.name == "demo"


def test_the_shipped_sweep_filters_and_names_its_points() -> None:
    composed = compose("demo", ["sweep=demo"])
    assert names(composed) == [
        *("demo-lr0.003-b128", "demo-lr0.003-b256", "demo-lr0.01-b128", "demo-lr0.01-b256"),
        "demo-lr0.03-b128",
    ]


def test_a_point_that_is_there_already_is_refused() -> None:
    said = refusal("backend.args.lr=3e-3,1e-2,3e-3")
    assert "sweep point 3 (demo-lr0.003-p3): has the settings of sweep point 1" in said
    assert "seed" in said


def test_five_hundred_points_are_composed_from_files_as_often_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    composed: list[object] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        composed.append(arguments)
        return hydra_compose(*arguments, **options)

    monkeypatch.setattr("autoexp.config.compose.hydra_compose", counted)
    jobs = plan(
        compose("demo", ["backend.args.lr=range(1,51)", "backend.args.seed=range(10)"])
    ).jobs
    # Hydra takes tens of milliseconds each time: so 500 points take under two seconds.
    assert len(composed) <= 2
    assert len(jobs) == 1500
    assert len({job.name for job in jobs}) == 1500


def test_a_point_that_is_not_valid_is_named_with_the_key_and_the_sweep() -> None:
    message = refusal("backend.args.lr=1e-2,-1", "backend.args.seed=1,2")
    assert message.splitlines()[0] == (
        "sweep point 3 (demo-lr-1-seed1): backend.args.lr: Input should be greater than 0, "
        "got -1 (sweep `backend.args.lr=-1`)"
    )
    assert "sweep point 4" in message
    assert "point 1" not in message


def test_a_misspelt_key_of_a_sweep_gets_the_nearest_name() -> None:
    message = refusal("backend.args.lrr=1,2")
    assert "sweep point 1" in message
    assert "did you mean `lr`?" in message


def test_a_cooldown_that_one_point_cannot_have_names_the_point() -> None:
    message = refusal("backend.args.train_iters=2000,800")
    assert message.startswith("sweep point 2 (demo-train_iters800): cooldowns.0: 1000: beyond")


def test_of_many_points_that_fail_a_few_are_told() -> None:
    message = refusal("backend.args.lr=range(-20,0)")
    assert "and 17 more points" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("monitoring.file_tick_s=1,2", "belongs to the session"),
        ("project.name=a,b", "belongs to the session"),
        ("slurm.max_jobs=1,2", "belongs to the session"),
        ("budget.stop_above=1,2", "belongs to the session"),
        ("slurm=local,base", "slurm.kind is slurm, and local in sweep point 1"),
        ("backend.args.lr=interval(1,2)", "give values, as in `a=1,2,3`"),
    ],
)
def test_what_all_points_share_cannot_be_swept(override: str, said: str) -> None:
    assert said in refusal(override)


def test_an_override_that_the_sweep_would_undo_is_refused() -> None:
    message = refusal("sweep=demo", "backend.args.lr=1e-3")
    assert "override `backend.args.lr=1e-3`: the sweep sets this key" in message


def test_a_sweep_on_the_command_line_replaces_that_of_the_file() -> None:
    composed = compose("demo", ["sweep=demo", "backend.args.lr=1e-3,2e-3"])
    assert names(composed) == [
        *("demo-lr0.001-b128", "demo-lr0.001-b256", "demo-lr0.002-b128", "demo-lr0.002-b256"),
    ]


def test_a_value_that_refers_to_a_swept_one_follows_it() -> None:
    composed = compose(
        "demo", ["project.description='at ${backend.args.lr}'", "backend.args.lr=1e-3,2e-3"]
    )
    said = [point.experiment.project.description for point in composed.points]
    assert said == ["at 0.001", "at 0.002"]


def test_a_swept_value_that_looks_like_an_interpolation_is_text(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    base = yaml.safe_load((Path("configs") / "demo.yaml").read_text())
    text = "\\${oc.env:HOME}"
    sweep = {"list": [{"backend.args.seed": 1, "container_note": text}]}
    path.write_text(yaml.safe_dump({**base, "sweep": sweep, "note": "${backend.args.lr}"}))
    assert "container_note: no such key" in refusal(config=str(path))


def test_group_files_can_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "backend").mkdir()
    text = "kind: demo\nargs: {train_iters: 1000, hidden_size: 64}\n"
    (tmp_path / "backend" / "small.yaml").write_text(text)
    monkeypatch.setenv("AUTOEXP_CONFIGS", str(tmp_path))
    composed = compose("demo", ["backend=demo,small", "backend.args.lr=1e-3,2e-3", "cooldowns=[]"])
    sizes = [p.experiment.backend.model_dump()["args"]["hidden_size"] for p in composed.points]
    assert sizes == [256, 256, 64, 64]
    assert names(composed)[-1] == "demo-backendsmall-lr0.002"


def test_a_key_that_only_the_sweep_gives_need_not_be_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    base = yaml.safe_load((Path("configs") / "demo.yaml").read_text())
    path.write_text(yaml.safe_dump({**base, "backend": {"args": {"seed": "???"}}}))
    assert len(compose(str(path), ["backend.args.seed=1,2"]).points) == 2
    assert "backend.args.seed" in refusal(config=str(path))


def test_the_resolved_file_makes_the_same_points_again(tmp_path: Path) -> None:
    first = compose("demo", ["sweep=demo", "sweep.name=null", "backend.args.seed=1,2"])
    path = tmp_path / "resolved.yaml"
    path.write_text(first.resolved)
    again = compose(str(path))
    assert names(again) == names(first)
    assert [p.experiment for p in again.points] == [p.experiment for p in first.points]


def test_a_subset_keeps_numbers_and_names() -> None:
    composed = compose("demo", GRID)
    some = subset(composed, "2,5-6")
    assert [point.number for point in some.points] == [2, 5, 6]
    assert names(some) == [names(composed)[place] for place in (1, 4, 5)]
    with pytest.raises(BadInput, match="there is no sweep"):
        subset(compose("demo"), "1")


def test_a_template_of_a_name_that_fits_two_points_is_refused() -> None:
    assert "one name, demo-x" in refusal("sweep.name=x", "backend.args.seed=1,2")


def test_an_experiment_that_was_filled_in_has_the_points_of_its_sweep() -> None:
    composed = compose("demo", ["sweep=demo"])
    assert points_of(composed.experiment) == composed.points
    assert points_of(compose("demo").experiment) == ()
