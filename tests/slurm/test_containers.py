"""Trainers that srun and torchrun start inside a real image."""

import json
import shutil
from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.resources.containers import Apptainer, Container
from autoexp.states import Kind
from tests.containers.boxes import MISSING, SETS_OF_OPTIONS, Image, image_of_this_machine, runs_here
from tests.slurm.bench import Bench

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(not runs_here(), reason=MISSING)]

SEEN = (
    "import json, os; print(json.dumps({name: os.environ.get(name) for name in "
    "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'SLURM_PROCID', 'AUTOEXP_KEY', 'PET_RDZV_ENDPOINT', "
    "'OMP')}))"
)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """An image whose programs are this machine's."""
    return image_of_this_machine(tmp_path_factory.mktemp("image") / "root")


@pytest.mark.parametrize("options", SETS_OF_OPTIONS, ids=" ".join)
def test_each_of_two_ranks_knows_its_own_number_whatever_the_options_are(
    options: tuple[str, ...], bench: Bench, image: Image
) -> None:
    settings = {"launcher": "srun", "tasks_per_node": 2}
    seen = _seen(bench, image, options, **settings)
    assert [found["RANK"] for found in seen] == ["0", "1"]
    assert [found["SLURM_PROCID"] for found in seen] == ["0", "1"]
    assert {found["WORLD_SIZE"] for found in seen} == {"2"}
    assert {found["AUTOEXP_KEY"] for found in seen} == {bench.attempt("box").key}


@pytest.mark.parametrize("options", SETS_OF_OPTIONS, ids=" ".join)
def test_the_agents_on_two_nodes_are_told_the_same_endpoint(
    options: tuple[str, ...], bench: Bench, image: Image, tmp_path: Path
) -> None:
    # torchrun's stand-in: `python -m torch.distributed.run` prints what it sees.
    module = tmp_path / "fake" / "torch" / "distributed"
    module.mkdir(parents=True)
    (module / "run.py").write_text(SEEN)
    (module / "__init__.py").touch()
    (module.parent / "__init__.py").touch()
    own = {"binds": (str(tmp_path),), "variables": {"PYTHONPATH": str(tmp_path / "fake")}}
    settings = {"launcher": "torchrun", "nodes": 2}
    seen = _seen(bench, image, options, own=own, **settings)
    endpoints = [found["PET_RDZV_ENDPOINT"] for found in seen]
    assert len(endpoints) == 2 and len(set(endpoints)) == 1
    assert endpoints[0] is not None


@pytest.mark.skipif(shutil.which("ch-run") is None, reason="there is no ch-run here")
def test_each_of_two_ranks_in_ch_run_knows_its_own_number(bench: Bench, image: Image) -> None:
    container = compose("demo", image.in_ch_run("--set-env")).experiment.container
    container = container.model_copy(update={"variables": {"OMP": "$mine"}})
    seen = _printed(bench, container, launcher="srun", tasks_per_node=1, nodes=2)
    assert [(found["RANK"], found["LOCAL_RANK"]) for found in seen] == [("0", "0"), ("1", "0")]
    assert [found["SLURM_PROCID"] for found in seen] == ["0", "1"]
    assert {found["WORLD_SIZE"] for found in seen} == {"2"}
    assert {found["AUTOEXP_KEY"] for found in seen} == {bench.attempt("box").key}
    assert {found["OMP"] for found in seen} == {"$mine"}


def _seen(
    bench: Bench,
    image: Image,
    options: tuple[str, ...],
    own: dict[str, object] | None = None,
    **settings: object,
) -> list[dict[str, str]]:
    """What each process of a training in the image prints."""
    words = {"binds": (), "variables": {}} | (own or {})
    container = Apptainer.model_validate(
        {
            "image": str(image.path),
            "options": options,
            **words,
            "binds": [*image.binds, *words["binds"]],  # type: ignore[misc]
        }
    )
    return _printed(bench, container, **settings)


def _printed(bench: Bench, container: Container, **settings: object) -> list[dict[str, str]]:
    job = bench.add("box", ("python3", "-c", SEEN), kind=Kind.TRAIN, **settings)
    job.spec = job.spec.model_copy(update={"container": container})
    bench.session.save_job(job)
    bench.begin("box")
    bench.send("box", fresh=True)
    bench.wait("COMPLETED", "box")
    lines = (line for line in bench.log("box").splitlines() if line.startswith("{"))
    return sorted(map(json.loads, lines), key=lambda found: found["RANK"] or "")
