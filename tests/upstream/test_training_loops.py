"""The loops of the real training scripts, in every release: an exact resume can enter them in the middle."""

from __future__ import annotations

import os
import subprocess
import warnings
from collections.abc import Iterator
from types import CodeType

import pytest

from kohya_ext.runtime.training_script import can_be_entered
from tests.upstream import trees
from tests.upstream.test_every_release import cases

pytestmark = pytest.mark.upstream

RESUMES = b"resume_from_local_or_hf_if_specified("


def scripts(repository: str, revision: str) -> Iterator[tuple[str, bytes]]:
    """Name and text of each script at the top of a tree that resumes from states."""
    git_dir = os.environ["KOHYA_SS_GIT" if repository == "kohya_ss" else "SD_SCRIPTS_GIT"]
    if subprocess.run(["git", f"--git-dir={git_dir}", "cat-file", "-e", f"{revision}^{{tree}}"]).returncode:
        git_dir = os.environ["SD_SCRIPTS_FORK_GIT"]
    for line in trees.git(git_dir, "ls-tree", revision).splitlines():
        _, kind, blob, name = line.split(None, 3)
        if kind == "blob" and name.endswith(".py"):
            text = subprocess.run(["git", f"--git-dir={git_dir}", "cat-file", "blob", blob], stdout=subprocess.PIPE)
            if RESUMES in text.stdout and b"global_step" in text.stdout:
                yield name, text.stdout


def functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from functions(constant)


@pytest.mark.parametrize(("repository", "revision"), list(cases()))
def test_every_script_that_resumes_can_be_entered(repository: str, revision: str) -> None:
    for name, text in scripts(repository, revision):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # of upstream's strings
            code = compile(text, name, "exec", dont_inherit=True)
        assert any(can_be_entered(one) for one in functions(code)), name
