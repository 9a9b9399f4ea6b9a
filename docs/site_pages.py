"""MkDocs hook: the pages of the site that live at the top of the repository, where people look for them first."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LOCAL_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add them, with links as seen from `docs/`."""
    for page, source in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = LOCAL_LINK.sub(lambda found: f"]({_seen_from_docs(found[1], config.repo_url)})", text)
        files.append(File.generated(config, page, content=text))
    return files


def _seen_from_docs(link: str, repository: str) -> str:
    pages = {source: page for page, source in PAGES.items()}
    if link.startswith("docs/"):
        return link.removeprefix("docs/")
    return pages.get(link) or f"{repository}/blob/main/{link}"
