"""Brings the pages that lie above `docs/` into the site, and makes links to them lead there."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
ABOVE = {name: name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}
PAGES = {"README.md": "index.md", **ABOVE}
# Files that pages link to; the rest of the checkout is not on the site.
SOURCES = (
    *("examples/first_steps.ipynb", "LICENSE"),
    *("autoexp/backends/protocol.py", "autoexp/schedulers/base.py"),
)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and files from above."""
    for name, page in PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for name in SOURCES:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are on the site, where all pages lie in one folder."""
    from_above = page.file.src_uri in PAGES.values()

    def moved(link: re.Match[str]) -> str:
        target = link[1].removeprefix("docs/") if from_above else link[1].removeprefix("../")
        return f"]({PAGES.get(target, target)}{link[2] or ''})"

    return re.sub(r"\]\((?!http)([^)#\s]+)(#[^)]*)?\)", moved, markdown)
