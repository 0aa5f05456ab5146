"""Which torchtitan a checkout is, by its source."""

from pathlib import Path

import pytest

from autoexp.backends.torchtitan.compatibility import compare
from autoexp.config.compose import compose
from autoexp.errors import BadInput
from autoexp.planning.plan import make_plan
from autoexp.schedulers.launch import with_launcher

OWN = ("backend=torchtitan", "project.name=p", "cooldowns=[]")


def old(tmp_path: Path) -> Path:
    """A checkout of 0.2, with a field more and many fewer."""
    file = tmp_path / "torchtitan" / "config" / "job_config.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "@dataclass\nclass Training:\n    steps: int = 1\n    new_field: int = 2\n"
        "@dataclass\nclass JobConfig:\n    training: Training = field(default_factory=Training)\n"
    )
    return tmp_path


def new(tmp_path: Path) -> Path:
    file = tmp_path / "torchtitan" / "config" / "manager.py"
    file.parent.mkdir(parents=True)
    file.write_text('"""--module selects the module, --config its function."""\n')
    return tmp_path


def test_a_checkout_of_02_is_compared_by_the_fields_of_its_sections(tmp_path: Path) -> None:
    found = compare(old(tmp_path))
    assert (found.speaks, found.backend, found.fits) == ("0.2", "torchtitan", False)
    assert found.unknown == ("training.new_field",)
    assert "training.seq_len" in found.missing
    assert "training.steps" not in found.missing


def test_a_checkout_since_february_2026_is_known_by_what_it_requires(tmp_path: Path) -> None:
    found = compare(new(tmp_path))
    assert (found.backend, found.fits) == ("torchtitan_main", True)
    with pytest.raises(BadInput, match="choose `backend=torchtitan_main`"):
        make_plan(compose(None, [*OWN, f"backend.source={tmp_path}"]).experiment, Path("/out"))


def test_what_is_no_torchtitan_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no torchtitan"):
        compare(tmp_path)


def test_it_runs_in_its_checkout_whose_paths_its_preset_names(tmp_path: Path) -> None:
    experiment = compose(None, [*OWN, f"backend.source={old(tmp_path)}"]).experiment
    trunk = make_plan(experiment, Path("/out")).trunk
    assert with_launcher(trunk.machine, trunk, "key")[:2] == ("env", f"--chdir={tmp_path}")
    with pytest.raises(BadInput, match="tokenizer is a path of torchtitan's checkout: give"):
        make_plan(compose(None, [*OWN]).experiment, Path("/out"))


def test_the_presets_of_described_trainers_plan_a_cooldown(tmp_path: Path) -> None:
    for preset in ("schedules_and_scaling", "torchtitan_main"):
        words = [f"backend={preset}", f"backend.source={tmp_path}", "project.name=p"]
        cooldown = "cooldowns=[{at: [1000], decay: {iterations: 250}}]"
        plan = make_plan(compose(None, [*words, cooldown]).experiment, Path("/out"))
        (branch,) = plan.cooldowns
        names = ("decay_ratio=", "fract-decay=")
        (ratio,) = (word for word in branch.command if any(name in word for name in names))
        assert round(float(ratio.partition("=")[2]) * 1250) == 250
