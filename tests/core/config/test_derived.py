"""Helper values and settings that follow from others: worked out, shown, and nothing else."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from autoexp.config.compose import Composed, compose, points_of
from autoexp.errors import BadInput
from autoexp.planning.study import plan_study
from autoexp.reports.plan_tree import as_text
from autoexp.session.from_session import Origin, compose_from
from autoexp.session.session import Session
from tests.builders import TINY, create

OUT = Path("/out")
WIDTHS = {
    "width": 128,
    "backend.args.hidden_size": "width",
    "backend.args.embedding_size": "hidden_size // 8",
    "backend.args.lr": "1e-2 * (256 / width) ** 0.5",
}


def composed(tmp_path: Path, derived: Any, *overrides: str, **more: Any) -> Composed:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"defaults": ["demo", "_self_"], "derived": derived, **more}))
    return compose(str(file), overrides)


def refusal(tmp_path: Path, derived: Any, *overrides: str, **more: Any) -> str:
    with pytest.raises(BadInput) as refused:
        composed(tmp_path, derived, *overrides, **more)
    return str(refused.value)


def args(of: Composed) -> dict[str, Any]:
    found: dict[str, Any] = of.experiment.backend.model_dump()["args"]
    return found


def test_a_setting_follows_from_helper_values_and_from_other_settings(tmp_path: Path) -> None:
    found = args(composed(tmp_path, WIDTHS))
    assert (found["hidden_size"], found["embedding_size"]) == (128, 16)
    assert found["lr"] == pytest.approx(1e-2 * 2**0.5)


def test_expressions_know_defaults_whole_keys_and_other_sections(tmp_path: Path) -> None:
    derived = {
        "backend.args.hidden_size": "4 * seq_length",
        "backend.args.save_interval": "backend.args.train_iters // 10",
        "backend.args.log_interval": "int_nodes + 1 if slurm.kind == 'local' else 2",
        "int_nodes": 4,
    }
    found = args(composed(tmp_path, derived, "backend.args.train_iters=3000"))
    assert (found["hidden_size"], found["save_interval"], found["log_interval"]) == (48, 300, 5)


def test_a_length_follows_from_the_number_of_parameters(tmp_path: Path) -> None:
    derived = WIDTHS | {"backend.args.train_iters": "20 * parameters // tokens_per_iteration"}
    found = composed(tmp_path, derived).experiment
    parameters, batches = found.trainer.parameter_count(), found.trainer.batches(1)
    assert parameters is not None
    assert batches is not None
    assert found.trainer.train_iters == 20 * parameters // 256
    wider = composed(tmp_path, derived, "derived.width=256").experiment
    assert wider.trainer.train_iters > found.trainer.train_iters


def test_a_key_that_has_to_be_given_may_be_derived(tmp_path: Path) -> None:
    more = {"backend": {"args": {"lr": "???"}}}
    assert args(composed(tmp_path, {"backend.args.lr": "1 / 128"}, **more))["lr"] == 1 / 128


def test_points_of_a_sweep_derive_by_their_own_values_and_show_them(tmp_path: Path) -> None:
    found = composed(tmp_path, WIDTHS, "derived.width=64,256")
    assert [point.settings["backend.args.hidden_size"] for point in found.points] == [64, 256]
    assert [point.settings["backend.args.lr"] for point in found.points] == [0.02, 0.01]
    assert [point.experiment.project.name for point in found.points] == [
        "demo-width64",
        "demo-width256",
    ]
    assert "backend.args.lr=0.02" in as_text(plan_study(found, OUT), found)
    again = points_of(found.experiment)
    assert [point.experiment.backend for point in again] == [
        point.experiment.backend for point in found.points
    ]


def test_filters_and_names_of_a_sweep_know_what_is_derived(tmp_path: Path) -> None:
    sweep = {
        "grid": {"derived.width": [64, 128, 256]},
        "filter": "backend.args.lr < 0.02",
        "name": "w{width}-e{backend.args.embedding_size}",
    }
    found = composed(tmp_path, WIDTHS, sweep=sweep)
    names = [point.experiment.project.name for point in found.points]
    assert names == ["demo-w128-e16", "demo-w256-e32"]


def test_a_plan_shows_what_was_derived_and_how(tmp_path: Path) -> None:
    notes = plan_study(composed(tmp_path, WIDTHS), OUT).notes
    assert "backend.args.embedding_size = 16, derived: hidden_size // 8" in notes
    assert not any(note.startswith("width") for note in notes)


def test_a_plan_of_a_sweep_notes_what_is_derived_alike_and_shows_the_rest_by_point(
    tmp_path: Path,
) -> None:
    found = composed(tmp_path, WIDTHS, "backend.args.weight_decay=0.1,0.2")
    assert "backend.args.hidden_size = 128, derived: width" in plan_study(found, OUT).notes
    assert yaml.safe_load(found.resolved)["backend"]["args"]["hidden_size"] == 128
    found = composed(tmp_path, WIDTHS, "derived.width=64,128")
    assert not any("derived" in note for note in plan_study(found, OUT).notes)


def test_a_sweep_may_set_what_the_file_leaves_open(tmp_path: Path) -> None:
    more = {"backend": {"args": {"seq_length": "???"}}}
    derived = {"backend.args.hidden_size": "8 * seq_length"}
    found = composed(tmp_path, derived, "backend.args.seq_length=8,16", **more)
    assert [point.settings["backend.args.hidden_size"] for point in found.points] == [64, 128]


def test_a_configuration_shows_the_formula_beside_the_value(tmp_path: Path) -> None:
    found = composed(tmp_path, WIDTHS)
    assert found.origins is not None
    assert found.origins.of(("backend", "args", "lr")) == f"derived: `{WIDTHS['backend.args.lr']}`"
    assert yaml.safe_load(found.resolved)["backend"]["args"]["hidden_size"] == 128


def test_a_session_that_is_run_again_derives_again(tmp_path: Path) -> None:
    own = composed(tmp_path, WIDTHS, *TINY)
    session = Session.load(create(own, tmp_path / "sessions", session_id="s1"))
    again = compose_from(session, Origin("s1"), ["derived.width=64"])
    assert args(again)["hidden_size"] == 64
    with pytest.raises(BadInput, match=r"`derived` sets this key; give `derived\.backend"):
        compose_from(session, Origin("s1"), ["backend.args.lr=1e-3"])
    alone = compose_from(session, Origin("s1", "tiny"), ["backend.args.hidden_size=64"])
    assert (args(alone)["hidden_size"], args(alone)["embedding_size"]) == (64, 16)


@pytest.mark.parametrize(
    "formula",
    [
        "__import__('os').system('id')",
        "open('/etc/passwd')",
        "(1).__class__",
        "[x for x in (1, 2)]",
        "lambda: 1",
        "width[0]",
        "f'{width}'",
        "width := 3",
    ],
)
def test_nothing_but_arithmetic_is_evaluated(tmp_path: Path, formula: str) -> None:
    found = refusal(tmp_path, {"width": 64, "backend.args.hidden_size": formula})
    assert found.startswith("derived.backend.args.hidden_size:")
    assert "mine.yaml" in found


@pytest.mark.parametrize(
    ("derived", "reason"),
    [
        ({"backend.args.lr": "widht * 2", "width": 3}, "nothing is called `widht`; did you mean"),
        ({"a": "b + 1", "b": "a + 1"}, "follows from itself: a -> b -> a"),
        ({"a": "1 / 0"}, "division by zero"),
        ({"a": "1e308 * 10"}, "no finite number"),
        ({"a": "'x' * 3"}, "is not a number"),
        ({"a": [1, 2]}, "neither a number nor an expression"),
        ({"slurm.nodes": "2"}, "only keys of `backend.` and helper values can be derived"),
        ({"monitoring.file_tick_s": "2"}, "only keys of `backend.` and helper values"),
        ({"parameters": "2"}, "is no name for a helper value"),
        ({"hidden-size": "2"}, "is no name for a helper value"),
        ({"lr": "2"}, "is a key of the backend too, `backend.args.lr`: choose another"),
        ({"backend.args.hidden_size": "7 / 2"}, "valid integer"),
        ({"backend.args.hiden_size": "7"}, "no such key; did you mean `hidden_size`"),
        ({"backend.args.hidden_size": "parameters // 100"}, "change with what follows from them"),
    ],
)
def test_what_has_no_value_is_refused(tmp_path: Path, derived: Any, reason: str) -> None:
    assert reason in refusal(tmp_path, derived)


def test_numbers_do_not_grow_without_bounds(tmp_path: Path) -> None:
    squares = {f"a{n + 1}": f"a{n} * a{n}" for n in range(60)}
    assert "no finite number below" in refusal(tmp_path, {"a0": 10**9, **squares})


def test_what_the_backend_does_not_count_is_refused(tmp_path: Path) -> None:
    found = refusal(
        tmp_path,
        {"backend.args.lr": "1e-3 * parameters"},
        "backend=nanogpt",
        "backend.source=/src",
        "backend.args.train_iters=100",
    )
    assert "`parameters`: the backend does not know it" in found


def test_an_override_or_a_sweep_of_a_derived_key_is_refused(tmp_path: Path) -> None:
    found = refusal(tmp_path, WIDTHS, "backend.args.lr=1e-3")
    assert "`derived` sets this key; give `derived.backend.args.lr`" in found
    changed = composed(tmp_path, WIDTHS, "derived.backend.args.lr=2e-3")
    assert args(changed)["lr"] == 2e-3
    found = refusal(tmp_path, WIDTHS, "backend.args.lr=1e-3,2e-3")
    assert "`derived` sets this key; sweep what it follows from" in found


def test_a_point_without_a_value_is_named(tmp_path: Path) -> None:
    found = refusal(tmp_path, {"width": 1, "a": "1 / width"}, "derived.width=1,0")
    assert "sweep point 2 (demo-width0)" in found
    assert "division by zero" in found
