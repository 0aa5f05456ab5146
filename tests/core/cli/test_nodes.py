"""`autoexp nodes`: lists, adds and removes, and tells jobs that wait in the queue."""

import json
from pathlib import Path

import pytest

from autoexp.cli.main import main
from autoexp.config.compose import compose
from autoexp.schedulers.slurm.scheduler import SlurmScheduler
from tests.builders import TINY, create
from tests.core.story import Story


def printed(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["nodes", *words]) == code
    said = capsys.readouterr()
    return said.out + said.err


def test_nodes_are_added_listed_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path))
    assert "which list?" in printed(capsys, "list", code=2)
    monkeypatch.setenv("AUTOEXP_AVOID_FILE", str(tmp_path / "nodes.jsonl"))
    assert "no node is avoided" in printed(capsys, "list")
    assert "n1, n2: avoided until" in printed(capsys, "add", "n1", "n2", "--why", "ill\x1b[31m")
    said = printed(capsys, "list")
    assert "n1" in said and "ill" in said and "\x1b[31m" not in said
    assert "n1: avoided no longer" in printed(capsys, "remove", "n1")
    (left,) = json.loads(printed(capsys, "list", "--json"))["nodes"]
    assert (left["node"], left["source"]) == ("n2", "person")
    assert "n1 not in it" in printed(capsys, "remove", "n1", code=2)
    assert "node" in printed(capsys, "add", "n1;x", "--why", "", code=1)
    assert "not a duration" in printed(capsys, "add", "n1", "--why", "", "--expires", "x", code=2)


def test_jobs_that_wait_in_the_queue_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path))
    told: list[tuple[list[str], tuple[str, ...]]] = []
    monkeypatch.setattr(
        SlurmScheduler,
        "avoid",
        lambda self, refs, nodes: told.append(([r.job_id for r in refs], tuple(nodes))),
    )
    named = f"nodes={{avoid_file: {tmp_path}/nodes.jsonl}}"
    for name, words in (("s1", (named,)), ("s2", ())):
        words = ("slurm=local_cluster", *TINY, "cooldowns=[]", *words)
        Story(create(compose("demo", words), tmp_path, session_id=name)).submit()
    said = printed(capsys, "add", "n7", "--why", "ill", "--session", "s1")
    assert "s1: 1 queued jobs were told" in said and "s2" not in said
    printed(capsys, "remove", "n7", "--session", "s1")
    assert [nodes for _, nodes in told] == [("n7",), ()]
    assert "s2 names no list" in printed(capsys, "list", "--session", "s2", code=2)
