"""A real browser without a screen: what a page of Prefect's UI says, and a picture of it."""

import shutil
import subprocess
import tempfile
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_TIME_MS = 25000


def open_page(url: str, picture: Path, *, width: int = 1600, height: int = 1000) -> str:
    """Open a page, save a picture of it, and return its document as it is shown."""
    assert CHROMIUM is not None
    common = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    with tempfile.TemporaryDirectory() as profile:
        answer = subprocess.run(
            [
                *common,
                f"--user-data-dir={profile}",
                f"--window-size={width},{height}",
                f"--virtual-time-budget={_TIME_MS}",
                f"--screenshot={picture}",
                "--dump-dom",
                url,
            ],
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert answer.returncode == 0, answer.stderr[-2000:]
    assert picture.read_bytes().startswith(b"\x89PNG")
    return answer.stdout
