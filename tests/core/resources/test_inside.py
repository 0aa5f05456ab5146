"""The environment of a container's runtime, as it is made on the node."""

from typing import Any

from autoexp.resources.containers import Apptainer
from autoexp.resources.inside import for_runtime


def made(environ: dict[str, str], *names: str, **container: Any) -> dict[str, str]:
    settings = Apptainer.model_validate({"image": "/i.sif", **container})
    environment = settings.environment()
    spec = {"inside": settings.handing(names)._asdict(), "environment": environment}
    return for_runtime(spec, {**environ, **environment})


def test_what_the_job_needs_is_set_inside_by_both_prefixes() -> None:
    environ = {"RANK": "1", "SLURM_PROCID": "1", "MINE": "x", "OF_THE_HOST": "x", "PATH": "/bin"}
    found = made(environ, "MINE", "PATH")
    for prefix in ("APPTAINERENV_", "SINGULARITYENV_"):
        names = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
        assert names == {"RANK", "SLURM_PROCID", "MINE", "PYTHONNOUSERSITE"}
    assert environ.items() <= found.items()


def test_what_is_set_inside_alone_counts_above_the_jobs_own() -> None:
    found = made({"NCCL_DEBUG": "WARN"}, "NCCL_DEBUG", variables={"NCCL_DEBUG": "INFO"})
    assert found["APPTAINERENV_NCCL_DEBUG"] == "INFO"
    assert found["NCCL_DEBUG"] == "WARN"


def test_the_hosts_python_is_left_out_unless_it_is_named() -> None:
    environ = {"PYTHONPATH": "/host", "PYTHONHOME": "/host"}
    assert not {"PYTHONPATH", "PYTHONHOME"} & made(environ).keys()
    found = made(environ, **{"pass": ["PYTHONPATH"]})
    assert found["APPTAINERENV_PYTHONPATH"] == "/host"
    assert "PYTHONHOME" not in found


def test_one_odd_value_does_not_cost_the_job_the_others() -> None:
    found = made({"SLURM_JOB_COMMENT": "a\x81b", "RANK": "0"})
    assert "APPTAINERENV_SLURM_JOB_COMMENT" not in found
    assert found["APPTAINERENV_RANK"] == "0"
