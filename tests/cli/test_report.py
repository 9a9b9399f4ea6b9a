from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kohya_ext.core.errors import DONE, WRONG_USAGE
from tests.cli.conftest import Ran
from tests.report import runs

pytest.importorskip("PIL")

Run = Callable[..., Ran]


def test_the_page_is_in_the_folder(run: Run, tmp_path: Path) -> None:
    folder = runs.make(tmp_path / "out")
    done = run("report", folder)
    assert done.code == DONE and "0.6, raw, epoch 2, step 4" in done.text and "risen since" in done.text
    assert (folder / "dog-report.html").read_text().startswith("<!doctype html>")
    assert run("report", folder).code == DONE, "once more"


def test_json(run: Run, tmp_path: Path) -> None:
    folder = runs.make(tmp_path / "out")
    document = run("report", folder, "--json", "--html", tmp_path / "a.html").document
    assert document["best"]["loss"] == 0.6 and document["turned"] == 4 and len(document["validations"]) == 7
    assert document["validations"][0]["train_loss"] is None and document["page"] == str(tmp_path / "a.html")


def test_errors(run: Run, tmp_path: Path) -> None:
    folder = runs.make(tmp_path / "out")
    assert run("report", tmp_path / "absent").code == WRONG_USAGE
    assert run("report", folder, "--name", "cat").code == WRONG_USAGE
    assert run("report", folder, "--logs", tmp_path / "absent").code == WRONG_USAGE
    assert run("report", folder, "--html", tmp_path / "absent" / "a.html").code == WRONG_USAGE
    assert run("report", folder, "--html", tmp_path).code == WRONG_USAGE
