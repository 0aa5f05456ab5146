"""Scores out of lm-eval's results files, as it lays them down."""

import json
import shutil
from pathlib import Path

import pytest

from autoexp.jobs.lm_eval import error_of
from autoexp.jobs.scores import NoScores, read_scores
from tests.sources import ROOT

RECORDED = ROOT / "tests" / "data" / "lm_eval" / "results_2026-04-15T13-55-33.588896.json"


def laid_down(root: Path, name: str, *, model: str = "__models__cd1600") -> Path:
    """A results file where `--output_path` is `root`."""
    folder = root / model
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(RECORDED, folder / name))


def test_scores_of_lm_eval_are_named_by_task_and_metric_with_their_errors(tmp_path: Path) -> None:
    laid_down(tmp_path, RECORDED.name)
    found = read_scores(tmp_path)
    assert found.numbers == {
        "mmlu/acc": 0.5,
        "mmlu/acc_stderr": 0.1,
        "hellaswag/acc": 0.2749,
        "hellaswag/acc_stderr": 0.0044,
        "hellaswag/acc_norm": 0.2912,
        "hellaswag/acc_norm_stderr": 0.0045,
        "gsm8k/exact_match,strict-match": 0.844,
        "gsm8k/exact_match_stderr,strict-match": 0.016243636028391094,
        "gsm8k/exact_match,flexible-extract": 0.892,
        "gsm8k/exact_match_stderr,flexible-extract": 0.013894535480989173,
        "mmlu_anatomy/acc": 0.0,
    }
    assert found.not_finite == ()
    errors = [error_of(name) for name in found.numbers if "stderr" not in name]
    assert [name for name in errors if name not in found.numbers] == ["mmlu_anatomy/acc_stderr"]


def test_the_file_itself_may_be_named(tmp_path: Path) -> None:
    assert read_scores(laid_down(tmp_path, RECORDED.name)) == read_scores(tmp_path)


def test_the_newest_of_several_results_counts(tmp_path: Path) -> None:
    """An evaluation that was retried leaves the results of both of its attempts."""
    laid_down(tmp_path, "results_2026-04-16T01-00-00.000000.json")
    newest = laid_down(tmp_path, "results_2026-04-16T10-00-00.000000.json", model="a")
    newest.write_text(json.dumps({"results": {"arc": {"acc,none": 0.25}}, "n-shot": {"arc": 0}}))
    assert read_scores(tmp_path).numbers == {"arc/acc": 0.25}


def test_a_json_file_of_ones_own_that_has_results_keeps_its_dotted_names(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text('{"results": {"arc": {"acc,none": 0.25}}, "loss": 2}')
    assert read_scores(file).numbers == {"results.arc.acc,none": 0.25, "loss": 2.0}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no results_*.json of lm-eval in this directory"),
        ('{"results": {}, "n-shot": {}}', "holds no number"),
        ('{"results": {"arc": 3}, "groups": [1], "n-shot": {}}', "holds no number"),
        ('{"results": {"arc": {"acc,none": NaN}}, "n-shot": {}}', "no finite number (arc/acc)"),
        (" " * ((1 << 24) + 1), "has more than"),
    ],
)
def test_a_directory_without_results_has_no_scores(
    tmp_path: Path, content: str | None, why: str
) -> None:
    if content is not None:
        laid_down(tmp_path, RECORDED.name).write_text(content)
    with pytest.raises(NoScores) as refused:
        read_scores(tmp_path)
    assert why in str(refused.value)
