from __future__ import annotations

import os
from pathlib import Path

import pytest

from kohya_ext.checkout.known_locations import CHECKOUTS, enclosing, expand, restart_hint


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")


def test_places_below_a_prefix_and_from_variables(tmp_path: Path) -> None:
    found = list(expand(("/app", "$WORKSPACE/kohya_ss", "$UNSET/kohya_ss", "/app"), {"WORKSPACE": "/w"}, tmp_path))
    assert found == [tmp_path / "app", Path("/w/kohya_ss")]


def test_a_workspace_at_the_usual_place_is_looked_at_once() -> None:
    found = list(expand(CHECKOUTS, {"WORKSPACE": "/workspace"}))
    assert found.count(Path("/workspace/kohya_ss")) == 1
    assert found[0] == Path("/workspace/kohya_ss")


@pytest.mark.parametrize(
    ("evidence", "command"),
    [
        ("opt/supervisor-scripts/kohya.sh", "supervisorctl restart kohya"),
        ("etc/kohya_ss_args.conf", "supervisorctl restart kohya_ss"),
        ("start_kohya_ss.sh", "/start_kohya_ss.sh"),
        ("start_kohya.sh", "/start_kohya.sh"),
        ("opt/bin/start.sh", "/opt/bin/start.sh"),
    ],
)
def test_each_template_restarts_its_own_way(tmp_path: Path, evidence: str, command: str) -> None:
    touch(tmp_path / evidence)
    hint = restart_hint(tmp_path / "workspace" / "kohya_ss", {}, tmp_path)
    assert hint.endswith(command)
    assert "When no training is running" in hint


def test_while_provisioning_no_restart_is_needed(tmp_path: Path) -> None:
    touch(tmp_path / "opt/supervisor-scripts/kohya.sh")
    touch(tmp_path / ".provisioning")
    assert restart_hint(tmp_path, {}, tmp_path).startswith("No restart needed")


def test_in_the_docker_image(tmp_path: Path) -> None:
    touch(tmp_path / ".dockerenv")
    assert "docker compose restart" in restart_hint(tmp_path / "app", {}, tmp_path)


def test_by_hand(tmp_path: Path) -> None:
    starter = "gui.bat" if os.name == "nt" else "gui.sh"
    touch(tmp_path / "kohya" / starter)
    assert f".{os.sep}{starter}" in restart_hint(tmp_path / "kohya", {}, tmp_path)
    assert "as you started it" in restart_hint(tmp_path / "other", {}, tmp_path)


@pytest.mark.parametrize(
    ("repository", "inside", "expected"),
    [
        ("gym/.git", "gym/sd-scripts", ["gym"]),
        ("scripts/.git", "scripts/scripts/stable", ["scripts/scripts", "scripts"]),
        ("easy/.git", "easy/backend/sd_scripts", ["easy/backend", "easy"]),
        ("api/kohya.git/.git", "api/kohya.git/app/kohya_ss", ["api/kohya.git/app", "api/kohya.git"]),
        ("workspace/other/.git", "workspace/kohya_ss", []),
        ("no git", "gym/sd-scripts", ["gym"]),
        ("no git", "easy/backend/sd_scripts", ["easy/backend", "easy"]),
        ("no git", "workspace/kohya_ss", []),
        ("no git", "pinokio/api/kohya/app", ["pinokio/api/kohya"]),
        ("far/.git", "far/a/b/c/d/sd-scripts", ["far/a/b/c/d"]),
    ],
)
def test_the_folders_of_the_repository_around(
    tmp_path: Path, repository: str, inside: str, expected: list[str]
) -> None:
    (tmp_path / repository).mkdir(parents=True)
    assert enclosing(tmp_path / inside) == [tmp_path / name for name in expected]
