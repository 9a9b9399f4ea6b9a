"""The Python files of real revisions, straight from git: no work tree is needed to read a GUI as text."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.upstream.trees import git


class GitSources:
    """The texts of one revision's files that end in `endings`, read at once."""

    def __init__(self, revision: str, git_dir: str | None = None, endings: tuple[str, ...] = (".py", ".txt")) -> None:
        self.git_dir = git_dir or os.environ["KOHYA_SS_GIT"]
        self.texts: dict[str, str] = {}
        rows = [row.split(None, 3) for row in git(self.git_dir, "ls-tree", "-r", "-z", revision).split("\0") if row]
        wanted = [(row[3], row[2]) for row in rows if row[1] == "blob" and row[3].endswith(endings)]
        request = "".join(f"{blob}\n" for _, blob in wanted).encode()
        command = ["git", f"--git-dir={self.git_dir}", "cat-file", "--batch"]
        data = subprocess.run(command, input=request, capture_output=True, check=True).stdout
        position = 0
        for path, _ in wanted:
            end = data.index(b"\n", position)
            header = data[position:end].split()
            if header[-1] == b"missing":
                position = end + 1
                continue
            size = int(header[2])
            self.texts[path] = data[end + 1 : end + 1 + size].decode("utf-8-sig", errors="replace")
            position = end + 2 + size

    def read(self, path: str) -> str | None:
        return self.texts.get(path)


def export_python(revision: str, folder: Path) -> Path:
    """The files of a revision that building a tab reads, on disk; the empty ones too that keep folders."""
    for path, text in GitSources(revision, endings=(".py", ".txt", ".md", ".json", ".yaml", "keep")).texts.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder
