"""What tests on the real training scripts share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.upstream import rig
from tests.upstream.rig_bench import MAIN


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Upstream's own source may warn when it is compiled (invalid escapes); that is not our fault."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            for category in ("SyntaxWarning", "DeprecationWarning"):
                item.add_marker(pytest.mark.filterwarnings(f"ignore:invalid .*:{category}"))


@pytest.fixture
def one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Flags for a data set of one image: upstream replays the first epoch's order after a resume."""
    rig.require_rig(MAIN)
    # accelerate of 2023 cannot read its own random states under a torch that is newer than it
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder = tmp_path / "data" / "1_rig"
    folder.mkdir(parents=True)
    for name in ("img0.png", "img0.txt"):
        shutil.copy(rig.work() / "assets" / "data" / "1_rig" / name, folder / name)
    return (f"--train_data_dir={folder.parent}",)
