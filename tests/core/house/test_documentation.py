"""The pages say what the models say, and their links lead somewhere."""

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from autoexp.cli.main import commands
from autoexp.jobs.record import Attempt, JobRecord
from autoexp.jobs.spec import JobSpec
from autoexp.monitor.monitor_starts import Starts
from autoexp.reports.status import (
    ActionCounts,
    AttemptStatus,
    CheckpointStatus,
    JobSummary,
    MonitorStatus,
    Status,
)
from autoexp.rules.actions import ConditionalAction
from autoexp.rules.conditions import CONDITIONS
from autoexp.rules.reference import MARK, reference
from autoexp.rules.ruleset import Rules
from autoexp.session.action_records import ActionRecord
from autoexp.session.meta import SessionMeta
from autoexp.session.session import ExcludedNode, NodesFile
from autoexp.storage import lease
from tests.sources import ROOT

PAGE = ROOT / "docs" / "rules.md"


def test_the_reference_of_rules_is_up_to_date() -> None:
    assert PAGE.read_text().partition(MARK)[2] == reference().removeprefix(MARK), "run `make docs`"


def test_every_key_of_the_language_is_described() -> None:
    text = reference()
    models: tuple[type[BaseModel], ...] = (*CONDITIONS, Rules, ConditionalAction)
    keys = [key for model in models for key in model.model_fields]
    assert [key for key in keys if f"`{key}" not in text] == []
    empty = [line for line in text.splitlines() if line.startswith("|") and line.endswith("|  |")]
    assert empty == []


@pytest.mark.parametrize(
    "model",
    [SessionMeta, JobRecord, JobSpec, Attempt, ActionRecord, Starts, NodesFile, ExcludedNode],
)
def test_every_field_of_a_sessions_files_is_described(model: type[BaseModel]) -> None:
    page = (PAGE.parent / "contract.md").read_text()
    assert [name for name in model.model_fields if f"`{name}`" not in page] == []


def test_every_field_of_a_lease_is_described(tmp_path: Path) -> None:
    lease.take(tmp_path)
    described = (PAGE.parent / "contract.md").read_text().partition("## monitor.json")[2]
    fields = json.loads((tmp_path / lease.FILE).read_text())
    assert [name for name in fields if f"`{name}`" not in described.partition("\n## ")[0]] == []


@pytest.mark.parametrize(
    "model", [Status, MonitorStatus, JobSummary, AttemptStatus, ActionCounts, CheckpointStatus]
)
def test_every_key_of_the_status_for_tools_is_described(model: type[BaseModel]) -> None:
    page = (PAGE.parent / "commands.md").read_text()
    assert [name for name in model.model_fields if f'"{name}"' not in page] == []


def test_links_between_pages_lead_somewhere() -> None:
    root = PAGE.parent.parent
    for page in (*root.glob("*.md"), *root.glob("docs/*.md")):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page}: {link}"


def test_every_command_stands_in_the_readme() -> None:
    table = (ROOT / "README.md").read_text().partition("## Commands")[2].partition("\n## ")[0]
    cells = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| `")]
    named = set(re.findall(r"[a-z]+", " ".join(cells)))
    assert [name for name in commands() if name not in named] == []


def test_every_site_stands_in_the_readme_and_in_the_page_of_sites() -> None:
    sites = {path.stem for path in (ROOT / "configs" / "slurm").glob("*.yaml")}
    pages = [(ROOT / name).read_text() for name in ("README.md", "docs/slurm.md")]
    of_ours = {"base", "block", "local", "local_cluster"}
    of_ours |= {site for site in sites if site.endswith("_debug")}  # beside their sites
    assert [site for site in sorted(sites - of_ours) for page in pages if site not in page] == []


def test_what_is_not_verified_is_said_of_every_site() -> None:
    page = (ROOT / "docs" / "slurm.md").read_text()
    said = page.partition("### What is not verified")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", said, re.MULTILINE)
    sites = {path.stem for path in (ROOT / "configs" / "slurm").glob("*.yaml")}
    ours = {"base", "block", "local", "local_cluster"}
    named = {site for site in sites - ours if not site.endswith("_debug")}
    assert {site for site, _ in rows} == named


def test_the_page_of_sites_says_which_have_a_file_for_short_tests_and_which_hosts_are_known() -> (
    None
):
    page = (ROOT / "docs" / "slurm.md").read_text()
    rows = {
        cells[1].strip(" `"): (cells[5].strip(), cells[6].replace("\\", "").strip())
        for line in page.splitlines()
        if line.startswith("| `") and len(cells := line.split("|")) == 8
    }
    del rows["slurm="]
    for site, (debug, hosts) in rows.items():
        files = ROOT / "configs" / "slurm"
        assert bool(debug) == (files / f"{site}_debug.yaml").exists(), site
        own = yaml.safe_load((files / f"{site}.yaml").read_text()).get("hosts", [])
        assert hosts.split(", ") == (own or [""]), site
    assert "lumi" in rows
