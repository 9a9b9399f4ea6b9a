"""provisioning.yaml, and the same as two variables, by a stand-in for vast.ai's provisioner: as its public description
has it, it clones what is not there yet, runs the commands, remembers what succeeded, and tries again what did not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.checkout.checkout import describe
from kohya_ext.core.about import REPOSITORY as ADDRESS
from kohya_ext.install import apply
from tests.checkout import trees
from tests.checkout.pythons import SITE, copy_venv
from tests.isolation import REPOSITORY

MANIFEST = REPOSITORY / "provisioning.yaml"
DOCS = REPOSITORY / "docs" / "how-to" / "rented-gpu.md"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None or shutil.which("git") is None, reason="needs bash, git")


@dataclass
class Provisioner:
    """root: of the pretended machine. environ: the instance's variables. ran: every command that was started."""

    root: Path
    environ: Mapping[str, str]
    ran: list[str] = field(default_factory=list)

    def boot(self, manifest: Mapping[str, Any], retries: int = 0) -> bool:
        """Whether the machine is provisioned afterwards."""
        if (self.root / ".provisioning_complete").exists():
            return True
        (self.root / ".provisioning").touch()
        done = any(self._attempt(manifest) for _ in range(retries + 1))
        (self.root / ".provisioning").unlink()
        if done:
            (self.root / ".provisioning_complete").touch()
        return done

    def _attempt(self, manifest: Mapping[str, Any]) -> bool:
        wanted = self._expanded(manifest)
        repositories = [*wanted.get("git_repos", []), *self._repositories()]
        commands = [*wanted.get("post_commands", []), *self._words("PROVISIONING_POST_COMMANDS")]
        return self._stage("git", repositories, self._clone) and self._stage("post_commands", commands, self._shell)

    def _stage(self, name: str, items: list[Any], action: Callable[[Any], bool]) -> bool:
        state = self.root / ".provisioner_state" / f"{name}.hash"
        wanted = hashlib.sha256(json.dumps(items).encode()).hexdigest()
        if state.exists() and state.read_text() == wanted:
            return True
        if not all(action(item) for item in items):  # the first failure ends it
            return False
        state.parent.mkdir(exist_ok=True)
        state.write_text(wanted)
        return True

    def _clone(self, repository: Mapping[str, Any]) -> bool:
        if Path(repository["dest"]).is_dir():
            return True
        command = ["git", "clone", "-q", "--recursive", repository["url"], repository["dest"]]
        return subprocess.run(command, check=False).returncode == 0

    def _shell(self, command: str) -> bool:
        self.ran.append(command)
        return subprocess.run(command, shell=True, cwd=self.root, env=dict(self.environ), check=False).returncode == 0

    def _repositories(self) -> list[dict[str, str]]:
        fields = [entry.split("|") for entry in self._words("PROVISIONING_GIT_REPOS")]
        return [{"url": url.strip(), "dest": dest.strip()} for url, dest, *_ in fields]

    def _words(self, name: str) -> list[str]:
        return [word.strip() for word in self.environ.get(name, "").split(";") if word.strip()]

    def _expanded(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._expanded(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [self._expanded(entry) for entry in value]
        if not isinstance(value, str):
            return value
        return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", lambda m: self.environ.get(m[1]) or m[2] or "", value)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our repository, as it could be cloned."""
    folder = tmp_path_factory.mktemp("published") / "kohya_ext"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("kohya_ext", "patches", "presets"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=ignored)
    for path in REPOSITORY.iterdir():
        if path.is_file() and not path.name.startswith("."):
            shutil.copy(path, folder / path.name)
    trees.commit(folder)
    return folder


@pytest.fixture
def instance(
    tmp_path: Path, templates: dict[str, Path], kohya_venv: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> Provisioner:
    """An instance with an environment, whose workspace has no Kohya yet."""
    root = tmp_path / "machine"
    (root / "proc").mkdir(parents=True)
    (root / "workspace").mkdir()
    trees.copy(templates["submodule"], root / "opt/workspace-internal/kohya_ss")
    copy_venv(kohya_venv, root / "venv/main")
    monkeypatch.setenv("KOHYA_EXT_MACHINE", str(root))
    environ = {**os.environ, "WORKSPACE": str(root / "workspace"), "KOHYA_EXT_REPOSITORY": str(published)}
    return Provisioner(root, environ)


def manifest() -> Mapping[str, Any]:
    yaml = pytest.importorskip("yaml")
    found: Mapping[str, Any] = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    return found


def variables(instance: Provisioner, published: Path) -> None:
    """The two lines of the page, with this machine's folders."""
    text = DOCS.read_text(encoding="utf-8")
    for name in ("PROVISIONING_GIT_REPOS", "PROVISIONING_POST_COMMANDS"):
        found = re.search(rf'{name}="([^"]+)"', text)
        assert found is not None
        value = found[1].replace(ADDRESS, str(published)).replace("/workspace/", f"{instance.root}/workspace/")
        instance.environ = {**instance.environ, name: value}


@pytest.mark.parametrize("by", ["manifest", "variables"])
def test_once_until_it_succeeds(instance: Provisioner, published: Path, by: str) -> None:
    if by == "manifest":
        wanted = manifest()
    else:
        wanted = {"version": 1}
        variables(instance, published)
    kohya = instance.root / "workspace/kohya_ss"
    inside = instance.root / "opt/workspace-internal/kohya_ss"
    before = trees.whole(inside)
    assert not instance.boot(wanted)  # Kohya is not there yet, and no other is taken for it
    assert trees.whole(inside) == before
    shutil.copytree(inside, kohya, symlinks=True)
    assert instance.boot(wanted, retries=2)
    assert apply.status(describe(kohya)).clean
    assert (instance.root / "venv/main" / SITE / "kohya_ext/runtime/__init__.py").is_file()
    assert len(instance.ran) == 2
    assert instance.boot(wanted)
    assert len(instance.ran) == 2


def test_an_instance_created_anew_gets_the_package_back(instance: Provisioner, kohya_venv: Path) -> None:
    wanted = manifest()
    kohya = instance.root / "workspace/kohya_ss"
    shutil.copytree(instance.root / "opt/workspace-internal/kohya_ss", kohya, symlinks=True)
    assert instance.boot(wanted)
    for name in ("venv", ".provisioner_state"):
        shutil.rmtree(instance.root / name)
    (instance.root / ".provisioning_complete").unlink()
    copy_venv(kohya_venv, instance.root / "venv/main")
    assert instance.boot(wanted)
    assert (instance.root / "venv/main" / SITE / "kohya_ext/runtime/__init__.py").is_file()


def test_it_names_our_repository() -> None:
    assert f"${{KOHYA_EXT_REPOSITORY:-{ADDRESS}}}" in MANIFEST.read_text(encoding="utf-8")
    text = DOCS.read_text(encoding="utf-8")
    assert ADDRESS in text
    assert "<this repository>" not in text
