from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kohya_ext.checkout.processes import Training, processes, processes_of, running_trainings
from tests import systems
from tests.checkout.pythons import make_venv, process

FLAGS = ["--pretrained_model_name_or_path=x.safetensors", "--output_dir", "/out"]


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    return tmp_path / "proc"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "kohya_ss" / "sd-scripts").mkdir(parents=True)
    return tmp_path / "kohya_ss"


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_venv(tmp_path_factory.mktemp("environment") / "venv")


SCRIPTS = [
    "sdxl_train.py",
    "train_network.py",
    "sdxl_train_network.py",
    "fine_tune.py",
    "train_db.py",
    "train_textual_inversion_XTI.py",
    "flux_train_control_net.py",
    "sdxl_train_control_net_lllite.py",
    "hunyuan_image_train_network.py",
    "anima_train.py",
]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_training_script_is_one(proc: Path, root: Path, script: str) -> None:
    process(proc, 41, ["python", script, *FLAGS], root / "sd-scripts")
    assert running_trainings(proc, [root]) == [Training(41, script)]
    assert str(Training(41, f"/x/{script}")) == f"{script} (process 41)"


@pytest.mark.parametrize(
    "command",
    [
        ["python", "kohya_gui.py"],
        ["vim", "sdxl_train.py"],
        ["python", "tools/cache_latents.py"],
        ["python", "trainer.py"],
        ["bash", "-c", "accelerate launch sdxl_train.py"],
    ],
)
def test_what_is_not_a_training(proc: Path, root: Path, command: list[str]) -> None:
    process(proc, 41, command, root / "sd-scripts")
    assert running_trainings(proc, [root]) == []


def test_of_this_checkout_by_the_scripts_place(proc: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    process(proc, 3, ["python", "sdxl_train.py"], tmp_path / "other")
    process(proc, 41, ["python", f"{root}/sd-scripts/sdxl_train.py"], tmp_path / "other")
    assert [training.pid for training in running_trainings(proc, [root])] == [41]
    (tmp_path / "link").symlink_to(root)
    process(proc, 43, ["python", f"{tmp_path}/link/sd-scripts/sdxl_train.py"], tmp_path / "other")
    assert [training.pid for training in running_trainings(proc, [root])] == [41, 43]


def test_of_this_environment_from_any_checkout(proc: Path, root: Path, tmp_path: Path, python: Path) -> None:
    (tmp_path / "other").mkdir()
    process(proc, 41, [str(python), "train_network.py"], tmp_path / "other")
    process(proc, 42, ["python", "train_network.py"], tmp_path / "other", {"PATH": str(python.parent)})
    process(proc, 43, ["/usr/bin/python3", "train_network.py"], tmp_path / "other")
    assert [training.pid for training in running_trainings(proc, [root], [python])] == [41, 42]


def test_a_launcher_with_its_ranks_and_workers_is_one_training(proc: Path, root: Path) -> None:
    launch = ["python", "/venv/bin/accelerate", "launch", "--num_processes", "2", "sdxl_train.py", *FLAGS]
    process(proc, 41, launch, root / "sd-scripts", parent=1)
    for pid, parent in ((42, 41), (43, 41), (50, 42), (51, 43)):
        process(proc, pid, ["python", "-u", "sdxl_train.py", *FLAGS], root / "sd-scripts", parent=parent)
    process(proc, 60, ["python", "sdxl_train.py"], root / "sd-scripts", parent=1)
    assert [training.pid for training in running_trainings(proc, [root])] == [41, 60]


def test_what_cannot_be_read_is_unknown(proc: Path, root: Path, tmp_path: Path) -> None:
    """Another user's process shows its command line only; a process that ends shows nothing; a name holds anything."""
    (proc / "12").mkdir()
    (proc / "self").mkdir()
    process(proc, 13, [], root)
    for pid in (41, 42):
        process(proc, pid, ["python", f"{root}/sd-scripts/sdxl_train.py" if pid == 41 else "sdxl_train.py"], root)
        (proc / str(pid) / "cwd").unlink()
        (proc / str(pid) / "environ").unlink()
        (proc / str(pid) / "exe").unlink()
    (proc / "41" / "stat").write_bytes(b"41 (a) b) S 7 41 41 0")
    assert [training.pid for training in running_trainings(proc, [root])] == [41]
    assert {found.pid: found.parent for found in processes(proc)}[41] == 7
    assert running_trainings(tmp_path / "no proc", [root]) == []


def test_a_container_by_the_files_it_works_on(proc: Path, root: Path, tmp_path: Path) -> None:
    """/app in a container is not our /app; a folder of ours mounted into one is."""
    ours, theirs = tmp_path, tmp_path / "container"
    for folder in (proc / "self", theirs, tmp_path / "other"):
        folder.mkdir()
    (proc / "self" / "root").symlink_to(ours)
    process(proc, 41, ["python", f"{root}/sd-scripts/sdxl_train.py"], tmp_path / "other", root=theirs)
    process(proc, 42, ["python", "/app/sd-scripts/sdxl_train.py"], root, root=theirs)
    process(proc, 43, ["python", f"{root}/sd-scripts/sdxl_train.py"], tmp_path / "other", root=ours)
    assert [training.pid for training in running_trainings(proc, [root])] == [42, 43]


def test_a_real_process(tmp_path: Path) -> None:
    """In a pretended machine whose /proc has that one process of this one: links to the real thing."""
    if systems.WINDOWS or not Path("/proc/self/cwd").exists():
        pytest.skip("no /proc here")
    (tmp_path / "sdxl_train.py").write_text("import sys\nprint('running', flush=True)\nsys.stdin.read()\n")
    running = subprocess.Popen(
        [sys.executable, "sdxl_train.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert running.stdout is not None and running.stdout.readline() == b"running\n"
    try:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc" / str(running.pid)).symlink_to(f"/proc/{running.pid}")
        found = running_trainings(processes_of(tmp_path), [tmp_path])
        assert found == [Training(running.pid, "sdxl_train.py")]
        assert [p.parent for p in processes(processes_of(tmp_path)) if p.pid == running.pid] == [os.getpid()]
    finally:
        running.communicate(b"")
