"""Results files of lm-eval (lm-evaluation-harness), as it writes them."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

_PATTERN = "results_*.json"
_MOST_FILES = 10_000
_SIZES = ("sample_len", "sample_count")
_BESIDE = ("n-shot", "versions", "configs", "lm_eval_version")


def newest_results(folder: Path) -> Path | None:
    """The newest results file in an `--output_path`, whose names say when they were written.

    lm-eval puts it into a folder below, which is named after the model. Source: lm_eval/loggers/
    evaluation_tracker.py, save_results_aggregated.
    """
    found = chain(folder.glob(_PATTERN), folder.glob(f"*/{_PATTERN}"))
    try:
        return max(islice(found, _MOST_FILES), key=lambda file: file.name, default=None)
    except OSError:
        return None


def scores_of(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The values of a results file as `TASK/METRIC`; None for a file of another program.

    lm-eval writes a metric with its filter behind a comma, `exact_match,strict-match`, which stays
    unless it is `none`.
    """
    results = content.get("results")
    if not isinstance(results, dict) or not any(key in content for key in _BESIDE):
        return None
    groups = content.get("groups")
    tasks = [*(groups.items() if isinstance(groups, dict) else ()), *results.items()]
    found: dict[str, Any] = {}
    for task, metrics in tasks:
        if isinstance(metrics, dict):
            found.update(_metrics(task, metrics))
    return found


def _metrics(task: str, metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in metrics.items():
        if key not in _SIZES:
            yield f"{task}/{key.removesuffix(',none')}", value


def error_of(name: str) -> str:
    """The name of a score's standard error: `gsm8k/exact_match_stderr,strict-match`."""
    metric, comma, kind = name.partition(",")
    return f"{metric}_stderr{comma}{kind}"
