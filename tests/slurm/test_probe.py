"""What the real SLURM would refuse, asked with `sbatch --test-only`."""

from typing import Any

import pytest

from autoexp.schedulers.slurm.probe import refusals
from tests.builders import spec_of
from tests.slurm.bench import cluster, slurm

pytestmark = pytest.mark.slurm


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partition": "mian"}, "(slurm.partition=mian); did you mean `main`?"),
        ({"account": "nobody"}, "slurm.account=nobody"),
        ({"qos": "nosuch"}, "slurm.qos=nosuch"),
        ({"partition": "short"}, "it asks for 10 min, and partition short allows 1"),
        ({"nodes": 9, "launcher": "srun"}, "SLURM would not take it"),
    ],
    ids=str,
)
def test_slurm_says_what_it_would_refuse_and_nothing_is_submitted(
    settings: dict[str, Any], said: str
) -> None:
    (reason,) = refusals([spec_of("true", machine=cluster(**settings))])
    assert said in reason
    assert "autoexp-test" not in slurm("squeue", "-h", "-o", "%j")


def test_slurm_takes_what_it_would_take() -> None:
    assert refusals([spec_of("true", machine=cluster())]) == []
