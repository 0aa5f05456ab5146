"""A real torchrun of two nodes, one of which dies: the attempt goes on with the other."""

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
"""The second node dies after step 100: the others go on from their save at 80."""


def test_a_node_that_dies_takes_the_iteration_back_in_one_attempt(tmp_path: Path) -> None:
    python = torch_python("torch")
    trainer = (python, str(TRAINERS / "elastic.py"), "{save_dir}", str(STEPS), str(EVERY))
    machine = SlurmCluster.model_validate(
        {"launcher": "torchrun", "nodes": "1:2", "restarts": 3, "workers_per_node": 1}
    )
    # As it is submitted, but for srun, whose place another program takes.
    launched = with_launcher(machine, spec_of(*trainer), "elastic")
    words = launched[launched.index(python) :]
    command = [sys.executable, str(TRAINERS / "two_nodes.py"), *words]
    experiment = tmp_path / "elastic.yaml"
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
  variables: {{ELASTIC_DIES: "1:{DIES}", OMP_NUM_THREADS: "1"}}
  cooldown: {{}}
  saves: {{name: "save-{{iteration}}.json", renamed: true}}
  start_line: '^start (?P<iteration>\\d+)'
  log_line: '^step (?P<iteration>\\d+) loss (?P<loss>\\S+) rate (?P<learning_rate>\\S+)'
  args: {{train_iters: {STEPS}, save_interval: {EVERY}}}
"""
    )
    root = tmp_path / "sessions"
    answer = autoexp(
        *("run", str(experiment), "--session", "el"), root=root, timeout=600, embedded_server=True
    )
    session = Session.load(root / "el")
    (job,) = session.jobs.values()
    (attempt,) = job.attempts
    log = Path(attempt.log).read_text()
    assert answer.returncode == 0, answer.stdout + answer.stderr + log
    assert (job.verdict, job.iteration) == (Verdict.FINISHED, STEPS)
    assert attempt.started_from == 0

    # It went back to its newest save, on one node instead of two.
    assert re.findall(r"^start (\d+) world (\d)", log, re.MULTILINE) == [("0", "2"), ("80", "1")]
    steps = [int(step) for step in re.findall(r"^step (\d+) ", log, re.MULTILINE)]
    assert steps == [*range(1, DIES + 1), *range(81, STEPS + 1)]
    curve = read_curve(session.path, job.spec.name)
    assert list(curve.iterations) == sorted(set(curve.iterations))
    assert curve.iterations[-1] == STEPS
    assert set(job.checkpoints) == set(range(EVERY, STEPS + 1, EVERY))
