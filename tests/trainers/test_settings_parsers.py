"""Settings files that presets make, against the parsers of nanotron, axolotl and litgpt."""

from pathlib import Path

import pytest

from autoexp.config.compose import compose
from autoexp.jobs.spec import JobSpec
from autoexp.planning.plan import make_plan
from autoexp.schedulers.launch import payload_spec
from tests.sources import ROOT
from tests.trainers.real import PARSERS, clone_at, read_by, refuse_other_rates, torch_python

EXAMPLE = "examples/config_tiny_llama.yaml"
# What it does not know it would ignore.
AXOLOTL = """
import json, sys, yaml
sys.path.insert(0, sys.argv[1] + "/src")
from axolotl.utils.schemas.config import AxolotlInputConfig
for text in json.load(sys.stdin):
    given = yaml.safe_load(text)
    read = AxolotlInputConfig(**given)
    unknown = sorted(set(given) - set(AxolotlInputConfig.model_fields))
    names = ("max_steps", "save_total_limit", "lr_scheduler", "lr_scheduler_kwargs")
    print(json.dumps([unknown, *(getattr(read, name) for name in names)]))
"""


def planned(
    preset: str, template: Path, *overrides: str, shape: str = "minus_sqrt"
) -> list[JobSpec]:
    lengths = (
        "backend.args.train_iters=400",
        "backend.args.save_interval=100",
        "backend.args.lr_warmup_iters=50",
    )
    cooldown = f"cooldowns=[{{at: [200], decay: {{iterations: 80, shape: {shape}}}}}]"
    words = (f"backend={preset}", "project.name=p", f"backend.settings.template={template}")
    experiment = compose(None, [*words, *lengths, *overrides, cooldown]).experiment
    return list(make_plan(experiment, Path("/out")).jobs)


def settings(job: JobSpec, *, resumes: bool = False) -> str:
    """The file that a job's command names, at its first start or at a later one."""
    given = payload_spec(job.machine, job, "key")
    command = (given.resumed or given.command) if resumes else given.command
    (text,) = (given.files[word] for word in command if word in given.files)
    return text


def test_nanotron_reads_what_a_plan_writes_and_its_rates_are_the_planned_ones(
    tmp_path: Path,
) -> None:
    checkout = clone_at("AUTOEXP_TEST_NANOTRON", tmp_path, "src", EXAMPLE)
    jobs = planned("nanotron", checkout / EXAMPLE, f"backend.source={checkout}")
    python = torch_python("torch", "transformers", "dacite")
    texts = [settings(jobs[0]), settings(jobs[0], resumes=True), settings(jobs[1], resumes=True)]
    first, again, cooled = read_by(
        [python, str(PARSERS / "nanotron_parser.py"), str(checkout)], texts
    )
    assert first[0]["checkpoints_path"] == "/out/p/checkpoints"
    assert first[0]["resume_checkpoint_path"] is None
    assert again[0]["resume_checkpoint_path"] == "/out/p/checkpoints"
    assert cooled[0]["resume_checkpoint_path"] == "/out/p-cd200/checkpoints"
    branch = jobs[1]
    assert branch.branch is not None
    assert [len(first[1]), len(cooled[1])] == [400, branch.target_iteration]
    assert first[1][50:] == pytest.approx([3e-4] * 350)
    assert cooled[1][:200] == first[1][:200]
    for step in range(200, 280):
        wanted = branch.trainer.planned_rate(branch.branch, step)
        assert cooled[1][step] == pytest.approx(wanted, rel=0.01), step


def test_axolotl_reads_what_a_plan_writes_and_keeps_every_checkpoint(tmp_path: Path) -> None:
    checkout = clone_at("AUTOEXP_TEST_AXOLOTL", tmp_path, "src")
    jobs = planned("axolotl", ROOT / "tests" / "data" / "settings" / "axolotl.yaml")
    python = torch_python("torch", "transformers", "PIL")
    trunk, branch = read_by([python, "-c", AXOLOTL, str(checkout)], [settings(job) for job in jobs])
    # Unless told otherwise it keeps four.
    assert trunk[:4] == [[], 400, 400, "constant_with_warmup"]
    decay = {"num_decay_steps": 80, "decay_type": "1-sqrt", "min_lr_ratio": 0.0}
    assert branch == [[], 280, 280, "warmup_stable_decay", decay]


def test_litgpt_reads_what_a_plan_writes_and_its_rates_are_the_planned_ones(
    tmp_path: Path,
) -> None:
    template = "config_hub/pretrain/debug.yaml"
    checkout = clone_at("AUTOEXP_TEST_LITGPT", tmp_path, "litgpt", template)
    batch = ("backend.args.samples_per_iteration=20", "backend.args.tokens_per_sample=512")
    jobs = planned("litgpt", checkout / template, *batch, shape="cosine")
    lines = []
    for job in jobs:
        name = f"{job.name}.yaml"
        (tmp_path / name).write_text(settings(job))
        (path,) = (word for word in job.command if word.endswith(".yaml"))
        lines.append([str(tmp_path / name) if word == path else word for word in job.command[1:]])
    python = torch_python("torch", "lightning", "jsonargparse")
    command = [python, str(PARSERS / "litgpt_parser.py"), str(checkout)]
    (first, rates), (cooled, falling) = read_by(command, lines)
    assert (first["out_dir"], first["resume"]) == ("/out/p/checkpoints", "auto")
    assert (cooled["out_dir"], cooled["resume"]) == ("/out/p-cd200/checkpoints", "auto")
    assert first["save_interval"] == 100
    # Four micro-batches of five samples: the last one's rate is that of the step.
    assert (first["global_batch_size"], first["micro_batch_size"], len(rates)) == (20, 5, 400)
    refuse_other_rates(rates, falling, jobs[1], warmup=50, ahead=0.75)
