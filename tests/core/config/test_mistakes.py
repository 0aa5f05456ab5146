"""The mistakes in docs/troubleshooting.md: one message, exit code 2, and nothing is made."""

import re
import shlex
from pathlib import Path

import pytest

from autoexp.cli.main import main
from tests.sources import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
TABLE = PAGE.partition("## Ten mistakes")[2].partition("\n\nThree more")[0]
ROWS = re.findall(r"^\| `autoexp ([^\n]*?)` \| `{1,2}(.*?)`{1,2} \|$", TABLE, re.M)


def test_there_are_ten() -> None:
    assert len(ROWS) == 10 == TABLE.count("| `autoexp ")


@pytest.mark.parametrize(("typed", "said"), ROWS, ids=[typed for typed, _ in ROWS])
def test_a_mistake_is_one_message_and_nothing_is_made(
    typed: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AUTOEXP_SESSIONS", str(tmp_path / "sessions"))
    monkeypatch.chdir(ROOT)
    before = sorted(ROOT.iterdir())
    assert main(shlex.split(typed)) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("autoexp: ") and told.err.count("\n") == 1
    assert said.strip() in told.err
    assert list(tmp_path.iterdir()) == [] and sorted(ROOT.iterdir()) == before
