"""What packages bring by entry points, and those that cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoexp.extensions import entry_points
from autoexp.rules.conditions import CONDITIONS
from tests.packages import install
from tests.sources import ROOT

RULE = (
    "+monitoring.checkpoint_events.told={at: [100], actions: [{notify: {message: 'at "
    "{checkpoint_iteration}'}, when: [{any_of: [{quota_left: 'quota-{job.name}'}]}]}]}"
)


def printed(folder: Path, code: str) -> "subprocess.CompletedProcess[str]":
    """What Python prints in a process that has the package."""
    path = os.pathsep.join((str(folder), str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": path, "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def composed(*overrides: str, then: str) -> str:
    return f"import autoexp\nc = autoexp.compose('demo', *{overrides!r})\n{then}"


def test_rules_and_machines_of_a_package_are_composed_and_described(tmp_path: Path) -> None:
    install(tmp_path)
    code = composed(
        RULE,
        "slurm.kind=desk",
        "backend.kind=mine",
        then="""
from autoexp.rules.describe import describe_action
from autoexp.schedulers.registry import scheduler_for
rule = c.experiment.monitoring.checkpoint_events["told"]
print(rule.model_dump(exclude_unset=True)["actions"])
print(describe_action(rule.actions[0].action), type(scheduler_for(c.experiment)).__name__)
again = type(c.experiment).model_validate_json(c.experiment.model_dump_json())
print(again == c.experiment)
""",
    )
    answer = printed(tmp_path, code)
    assert answer.returncode == 0, answer.stderr
    assert answer.stderr == ""
    first, second, third = answer.stdout.splitlines()
    assert "'message': 'at {checkpoint_iteration}'" in first and "quota_left" in first
    assert (second, third) == ("notify DeskScheduler", "True")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (RULE.replace("{message: '", "{mesage: '"), "mesage"),
        (RULE.replace("quota_left", "quota_lef"), "did you mean `quota_left`?"),
        (RULE.replace("{checkpoint_iteration}", "{iteratoin}"), "iteratoin"),
    ],
)
def test_mistakes_in_them_are_named_as_in_ours(tmp_path: Path, override: str, said: str) -> None:
    install(tmp_path)
    answer = printed(tmp_path, composed(override, then=""))
    assert "BadInput" in answer.stderr and said in answer.stderr


def test_each_that_cannot_be_used_is_a_warning_with_what_is_wrong_and_stops_nobody(
    tmp_path: Path,
) -> None:
    entries = {
        "autoexp.conditions": "gone = no_such_module:X\nquota_left = my_condition:QuotaLeft",
        "autoexp.actions": "odd = my_condition:QuotaLeft\n"
        "base = autoexp.extensions.bases:OwnAction",
        "autoexp.schedulers": "nothing = my_machine:Nothing",
        "autoexp.backends": "again = autoexp.backends.demo:DemoBackend",
    }
    install(tmp_path, entries)
    answer = printed(tmp_path, composed("cooldowns=[]", then="print(c.experiment.project.name)"))
    assert answer.stdout == "demo\n", answer.stderr
    for said in (
        "autoexp.conditions: gone = no_such_module:X: cannot be imported (ModuleNotFoundError",
        "autoexp.actions: odd = my_condition:QuotaLeft: is no subclass of autoexp.extensions.b",
        "autoexp.actions: base = autoexp.extensions.bases:OwnAction: lacks `run`",
        "autoexp.schedulers: nothing = my_machine:Nothing: cannot be imported (AttributeError",
        "autoexp.backends: again = autoexp.backends.demo:DemoBackend: there is one called `demo`",
    ):
        assert said in answer.stderr
    assert "quota_left" not in answer.stderr


def test_groups_are_described() -> None:
    page = (ROOT / "docs" / "extending.md").read_text()
    groups = (
        entry_points.BACKENDS,
        entry_points.CONDITIONS,
        entry_points.ACTIONS,
        entry_points.SCHEDULERS,
    )
    assert [group for group in groups if f'"{group}"' not in page] == []


def test_conditions_are_those_of_the_pages_where_no_package_brings_any() -> None:
    assert {model.__module__ for model in CONDITIONS} == {"autoexp.rules.conditions"}


def test_on_a_terminal_each_is_one_line(tmp_path: Path) -> None:
    install(tmp_path, {"autoexp.actions": "gone = no_such_module:X"})
    code = "from autoexp.cli.main import main; main(['config', 'show', 'demo'])"
    answer = printed(tmp_path, code)
    (said,) = answer.stderr.splitlines()
    assert said.startswith("warning: autoexp.actions: gone = no_such_module:X: cannot be imported")
    assert "train_iters: 2000" in answer.stdout
