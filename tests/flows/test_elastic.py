"""Launchers that start a trainer again within an attempt, for real: torchrun, and ft_launcher.

Of two nodes under torchrun one dies; under ft_launcher a process dies.
"""

import re
import sys
from pathlib import Path

import pytest

from autoexp.reports.curves import read_curve
from autoexp.resources.machines import SlurmCluster
from autoexp.schedulers.launch import with_launcher
from autoexp.session.session import Session
from autoexp.states import Verdict
from tests.builders import spec_of
from tests.flows.commands import autoexp
from tests.sources import ROOT
from tests.trainers.real import torch_python

pytestmark = [pytest.mark.prefect, pytest.mark.slow]

TRAINERS = ROOT / "tests" / "trainers"
STEPS, EVERY, DIES = 200, 40, 100
"""What dies does so after step 100: the trainer goes on from its save at 80."""


def run(
    folder: Path, python: str, machine: SlurmCluster, before: list[str], variables: str
) -> tuple[str, Session]:
    """The log of the one attempt, and the session, of a trainer under the machine's launcher."""
    trainer = (python, str(TRAINERS / "elastic.py"), "{save_dir}", str(STEPS), str(EVERY))
    # As it is submitted, but for srun, in whose place stands `before`.
    launched = with_launcher(machine, spec_of(*trainer), "elastic")
    command = [*before, *launched[launched.index(python) :]]
    experiment = folder / "elastic.yaml"
    experiment.write_text(
        f"""
defaults:
  - {{project: demo}}
  - {{slurm: local}}
  - {{container: none}}
  - {{monitoring: demo}}
  - _self_
project: {{name: elastic}}
backend:
  kind: command
  command: {command}
  variables: {variables}
  cooldown: {{}}
  saves: {{name: "save-{{iteration}}.json", renamed: true}}
  start_line: '^start (?P<iteration>\\d+)'
  log_line: '^step (?P<iteration>\\d+) loss (?P<loss>\\S+) rate (?P<learning_rate>\\S+)'
  args: {{train_iters: {STEPS}, save_interval: {EVERY}}}
"""
    )
    root = folder / "sessions"
    answer = autoexp(
        *("run", str(experiment), "--session", "el"), root=root, timeout=600, embedded_server=True
    )
    session = Session.load(root / "el")
    (job,) = session.jobs.values()
    (attempt,) = job.attempts
    log = Path(attempt.log).read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr + log
    return log, session


def check(log: str, session: Session, worlds: tuple[int, int]) -> None:
    """It went back to its newest save in one log, and is finished in that attempt."""
    (job,) = session.jobs.values()
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, STEPS)
    assert job.attempts[0].started_from == 0
    starts = re.findall(r"^start (\d+) world (\d)", log, re.MULTILINE)
    assert starts == [("0", str(worlds[0])), ("80", str(worlds[1]))]
    steps = [int(step) for step in re.findall(r"^step (\d+) ", log, re.MULTILINE)]
    assert steps == [*range(1, DIES + 1), *range(81, STEPS + 1)]
    curve = read_curve(session.path, job.spec.name)
    assert list(curve.iterations) == sorted(set(curve.iterations))
    assert curve.iterations[-1] == STEPS
    assert set(job.checkpoints) == set(range(EVERY, STEPS + 1, EVERY))


def test_a_node_that_dies_under_torchrun_takes_the_iteration_back_in_one_attempt(
    tmp_path: Path,
) -> None:
    settings = {"launcher": "torchrun", "nodes": "1:2", "restarts": 3, "workers_per_node": 1}
    machine = SlurmCluster.model_validate(settings)
    nodes = [sys.executable, str(TRAINERS / "two_nodes.py")]
    variables = f'{{ELASTIC_DIES: "1:{DIES}:agent", OMP_NUM_THREADS: "1"}}'
    check(*run(tmp_path, torch_python("torch"), machine, nodes, variables), worlds=(2, 1))


def test_a_process_that_dies_under_ft_launcher_takes_the_iteration_back_in_one_attempt(
    tmp_path: Path,
) -> None:
    python = torch_python("torch", "nvidia_resiliency_ext.fault_tolerance")
    settings = {"launcher": "ft_launcher", "restarts": 3, "workers_per_node": 1}
    machine = SlurmCluster.model_validate(settings)
    alone = f'ELASTIC_DIES: "0:{DIES}", OMP_NUM_THREADS: "1", PET_RDZV_ENDPOINT: "localhost:0"'
    check(*run(tmp_path, python, machine, [], f"{{{alone}}}"), worlds=(1, 1))
