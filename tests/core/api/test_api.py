"""autoexp from Python: what is public, and what one reads of a session."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import autoexp
from autoexp.config.compose import compose
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import TINY, create
from tests.sources import ROOT

PUBLIC = {
    *("compose", "plan", "run", "open_session", "sessions", "Handle"),
    *("AutoexpError", "BadInput", "__version__"),
}
HANDLE = {
    *("id", "path", "status", "jobs", "is_over", "metrics", "results", "events"),
    *("report", "resume", "cancel", "wait"),
}


def test_exported_members() -> None:
    """Whatever is added or taken away here is a change that users notice."""
    assert set(autoexp.__all__) == PUBLIC and set(dir(autoexp)) >= PUBLIC
    assert all(getattr(autoexp, name) is not None for name in PUBLIC)
    assert {name for name in vars(autoexp.Handle) if name[0] != "_"} | {"path"} == HANDLE
    with pytest.raises(AttributeError, match="no attribute 'no_such'"):
        autoexp.no_such  # noqa: B018


def test_every_exported_member_is_described() -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    assert [name for name in sorted(PUBLIC | HANDLE) if f"`{name}" not in page] == []


def test_importing_autoexp_imports_nothing_else_of_it() -> None:
    code = (
        "import sys, autoexp\n"
        "own = [n for n in sys.modules if n.startswith('autoexp')]\n"
        "heavy = {'pydantic', 'hydra', 'prefect', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "assert own == ['autoexp'] and not heavy, (own, heavy)\n"
        "autoexp.compose\n"
        "assert not {'prefect', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.fixture
def handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> autoexp.Handle:
    root = tmp_path / "sessions"
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(root))
    session = Session.load(create(compose("demo", TINY), root, session_id="s1"))
    trunk, branch, _ = session.jobs.values()
    session.log_progress(trunk, (f"{i},{3 - i / 100},1e-2,0.1\n" for i in (10, 20)))
    session.log_progress(branch, ["110,1.5,1e-3,0.1\n"])
    session.change_job(trunk, iteration=20)
    return autoexp.open_session()


def test_values_are_overrides_as_plain_values() -> None:
    values = {
        "backend.args.lr": 1e-3,
        "project.description": "it's a {x} \\ ${y} = 1, 2",
        "cooldowns": [{"at": [400], "decay": {"iterations": 100, "shape": "linear"}}],
        "slurm.time_limit_min": None,
    }
    composed = autoexp.compose("demo", "backend.args.train_iters=1000", values=values)
    experiment = composed.experiment
    assert experiment.project.description == values["project.description"]
    assert experiment.cooldowns[0].at == (400,)
    assert [job.name for job in autoexp.plan(composed).jobs] == ["demo", "demo-cd400"]


def test_a_mistake_is_one_exception_with_the_key() -> None:
    with pytest.raises(autoexp.BadInput, match=r"backend\.args\.lrr: no such key"):
        autoexp.compose("demo", values={"backend.args.lrr": 1})


def test_metrics_are_columns_or_a_frame(handle: autoexp.Handle) -> None:
    columns = handle.metrics(frame="columns")
    assert columns["job"] == ["tiny", "tiny", "tiny-cd100"]
    assert columns["iteration"] == [10, 20, 110] and columns["loss"][2] == 1.5
    assert handle.metrics("tiny-cd100", frame="columns")["iteration"] == [110]
    assert handle.results(frame="columns")["job"] == ["tiny", "tiny-cd100", "tiny-cd200"]
    with pytest.raises(autoexp.AutoexpError, match="tiny-cd100"):
        handle.metrics("tiny-cd10")


@pytest.mark.parametrize("module", ["pandas", "polars"])
def test_metrics_are_a_frame_where_a_package_for_it_is_installed(
    handle: autoexp.Handle, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the name that keeps what it is given stands for the real one."""
    (tmp_path / f"{module}.py").write_text(
        "class DataFrame:\n    def __init__(self, columns):\n        self.columns = columns\n"
    )
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = handle.metrics(frame=module)  # type: ignore[arg-type]
    assert type(found).__name__ == "DataFrame" and found.columns["iteration"] == [10, 20, 110]


def test_a_handle_reads_what_is_new(handle: autoexp.Handle) -> None:
    assert (handle.id, handle.is_over, handle.status.state) == ("s1", False, "stopped")
    assert repr(handle) == "<autoexp session s1: stopped>" and autoexp.sessions() == ["s1"]
    session = Session.load(handle.path)
    for job in session.jobs.values():
        session.change_job(job, verdict=Verdict.FINISHED)
    assert handle.is_over and handle.wait().state == "finished"
    assert handle.jobs["tiny"].verdict == "finished" and handle.events() == []
    assert handle.report(handle.path.parent / "page.html").read_text().startswith("<!doctype")


def test_waiting_for_what_nobody_watches_says_what_to_do(handle: autoexp.Handle) -> None:
    with pytest.raises(autoexp.AutoexpError, match=r"no monitor is running; `resume\(\)`"):
        handle.wait(timeout_s=60)


def test_a_session_that_nobody_watches_is_cancelled_at_once(handle: autoexp.Handle) -> None:
    with pytest.raises(autoexp.AutoexpError, match="tiny-cd100"):
        handle.cancel("tiny-cd10")
    handle.cancel()
    assert {job.verdict for job in handle.jobs.values()} == {"failed"}


def test_an_expensive_plan_has_to_be_confirmed(tmp_path: Path) -> None:
    composed = autoexp.compose(
        "demo",
        *("slurm.gpus_per_node=8", "budget.seconds_per_iteration=9", "budget.confirm_above=1"),
    )
    with pytest.raises(autoexp.BadInput, match="confirmed=True"):
        autoexp.run(composed)


OWN = """
from typing import Literal
from autoexp.backends.demo import DemoBackend

class Mine(DemoBackend):
    kind: Literal["mine"] = "mine"
    def trunk_command(self, save_dir):
        return ("my-trainer", str(self.train_iters))
"""


def plugin(folder: Path, *entries: str) -> None:
    """A package with a trainer, as pip installs it."""
    (folder / "my_trainer.py").write_text(OWN)
    info = folder / "my_trainer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-trainer\nVersion: 1.0\n")
    lines = "".join(f"{entry}\n" for entry in entries)
    (info / "entry_points.txt").write_text(f"[autoexp.backends]\n{lines}")


def planned_with(folder: Path) -> "subprocess.CompletedProcess[str]":
    code = (
        "import autoexp, sys\n"
        "c = autoexp.compose('demo', 'backend.kind=mine', 'cooldowns=[]')\n"
        "print(autoexp.plan(c).jobs[0].command)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"{folder}:{ROOT}", "PATH": ""},
        cwd=folder,
        capture_output=True,
        text=True,
    )


def test_a_package_brings_a_trainer_of_its_own(tmp_path: Path) -> None:
    plugin(tmp_path, "mine = my_trainer:Mine")
    answer = planned_with(tmp_path)
    assert answer.stdout == "('my-trainer', '2000')\n", answer.stderr


def test_a_trainer_that_cannot_be_used_is_a_warning_and_stops_nobody(tmp_path: Path) -> None:
    plugin(tmp_path, "gone = no_such_module:X", "odd = my_trainer:OWN", "mine = my_trainer:Mine")
    answer = planned_with(tmp_path)
    assert answer.stdout == "('my-trainer', '2000')\n", answer.stderr
    assert "gone = no_such_module:X: cannot be imported" in answer.stderr
    assert "odd = my_trainer:OWN" in answer.stderr


def test_the_version_is_the_one_that_is_installed() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", autoexp.__version__)
    assert importlib.metadata.version("autoexp") == autoexp.__version__
