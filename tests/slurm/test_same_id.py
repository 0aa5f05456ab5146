"""Sessions of one id under several roots, on one node of the cluster."""

import secrets
from pathlib import Path

import pytest

from tests.flows.recovery.twins import run_both, twins
from tests.slurm.bench import clear_queue, slurm

pytestmark = [pytest.mark.slurm, pytest.mark.prefect]

ID = f"twin-{secrets.token_hex(2)}"


def test_two_sessions_of_one_id_on_one_node_end_undisturbed_and_share_no_output_root(
    prefect_server: None, tmp_path: Path
) -> None:
    del prefect_server
    node = slurm("sinfo", "-h", "-N", "-p", "main", "-o", "%N").split()[0]
    here = ("slurm=local_cluster", "slurm.gpus_per_node=0", f"slurm.options.nodelist={node}")
    first, second = twins(tmp_path, ID, *here)
    try:
        run_both(first, second, *here)
    finally:
        clear_queue(ID)
