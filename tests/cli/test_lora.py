"""`kohya-ext lora`: what it prints, what it writes, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from kohya_ext.cli.main import main
from kohya_ext.files.atomic import TEMPORARY_SUFFIX
from tests.lora import models
from tests.lora.conftest import base_weights, pair  # noqa: F401  (fixtures)

Pair = tuple[Path, Path]


def extract(pair: Pair, out: Path, *more: str) -> int:  # noqa: F811
    return main(["lora", "extract", "--base", str(pair[0]), "--tuned", str(pair[1]), "--out", str(out), *more])


def test_extract_then_resize(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert extract(pair, tmp_path / "o.safetensors", "--rank", "8") == 0
    printed = capsys.readouterr().out
    assert "text encoder 1 (CLIP-L): kept: a weight differs by" in printed
    assert "60 modules, rank 8" in printed and "of the change is lost" in printed
    source, target = str(tmp_path / "o.safetensors"), str(tmp_path / "r.safetensors")
    assert main(["lora", "resize", source, target, "--rank", "2", "--report"]) == 0
    printed = capsys.readouterr().out
    assert "60 modules, rank 8" in printed and "60 modules, rank 2" in printed and "8 -> 2" in printed
    assert len(models.names(models.read(Path(target)))) == 60


def test_json(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    assert extract(pair, tmp_path / "o.safetensors", "--rank", "8,2", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [Path(file["path"]).name for file in document["files"]] == ["o-rank8.safetensors", "o-rank2.safetensors"]
    assert document["text_encoders"][0]["group"] == "te1" and document["unchanged"] == []
    assert document["files"][1]["error"] > document["files"][0]["error"] > 0
    arguments = [
        "lora",
        "resize",
        document["files"][0]["path"],
        str(tmp_path / "r.safetensors"),
        "--rank",
        "2",
        "--json",
    ]
    assert main(arguments) == 0
    assert set(json.loads(capsys.readouterr().out)["ranks_before"].values()) == {8}


def test_like_the_guide(pair: Pair, tmp_path: Path) -> None:  # noqa: F811
    assert extract(pair, tmp_path / "old.safetensors", "--like", "guide-2023") == 0
    high, low = (models.read(tmp_path / f"old-rank{rank}.safetensors") for rank in (512, 16))
    assert max(value.shape[0] for key, value in high.items() if "lora_down" in key) == models.WIDTH
    assert max(value.shape[0] for key, value in low.items() if "lora_down" in key) == 16
    assert extract(pair, tmp_path / "new.safetensors", "--like", "guide-current") == 0
    assert (tmp_path / "new.safetensors").exists()


def test_dry_run_writes_nothing(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    before = set(tmp_path.iterdir())
    assert extract(pair, tmp_path / "o.safetensors", "--dry-run") == 0
    assert "would write" in capsys.readouterr().out and set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--energy", "0.9", "--size", "1MB"), "give one of them"),
        (("--energy", "0.9", "--rank", "8,4"), "make one file"),
        (("--rank", "8,4", "--conv-rank", "1,2,3"), "as many as --rank"),
        (("--device", "quantum"), "has no such device"),
        (("--device", "meta"), "only cpu and cuda"),
    ],
)
def test_wrong_usage(
    pair: Pair,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: str,
) -> None:
    assert extract(pair, tmp_path / "o.safetensors", *arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()


@pytest.mark.parametrize("arguments", [("--rank", "0"), ("--rank", "8,8"), ("--energy", "2"), ("--size", "big")])
def test_wrong_numbers(pair: Pair, tmp_path: Path, arguments: tuple[str, ...]) -> None:  # noqa: F811
    with pytest.raises(SystemExit) as raised:
        extract(pair, tmp_path / "o.safetensors", *arguments)
    assert raised.value.code == 2


def test_bad_models_end_with_2_and_leave_nothing(
    pair: Pair,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = pair[1].read_bytes()
    cases = {
        "cut.safetensors": (content[: len(content) // 2], "cut off"),
        "page.safetensors": (b"<html>" + bytes(100), "web page"),
        "model.safetensors.index.json": (b"{}", f"name its folder, {tmp_path}"),
        "model.ckpt": (b"PK\x03\x04" + bytes(100), "--allow-pickle"),
    }
    for name, (data, words) in cases.items():
        bad = tmp_path / name
        bad.write_bytes(data)
        for both in ((pair[0], bad), (bad, pair[0])):
            assert extract(both, tmp_path / "o.safetensors") == 2
            assert words in capsys.readouterr().err
        assert main(["lora", "resize", str(bad), str(tmp_path / "o.safetensors"), "--rank", "4"]) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "o."))]


def test_an_existing_file_is_only_replaced_on_demand(pair: Pair, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "o.safetensors"
    out.write_bytes(b"mine")
    assert extract(pair, out) == 4
    assert out.read_bytes() == b"mine"
    assert extract(pair, out, "--overwrite", "--rank", "2") == 0
    assert len(models.read(out)) == 180


@pytest.mark.parametrize("place", ["o.ckpt", "missing/o.safetensors"])
def test_targets_that_cannot_be(pair: Pair, tmp_path: Path, place: str) -> None:  # noqa: F811
    assert extract(pair, tmp_path / place) == 2


def test_a_full_disk_leaves_nothing_behind(
    pair: Pair,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the last step, when everything is written but not yet safe on the disk."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert extract(pair, tmp_path / "o.safetensors") == 4
    assert "no space left" in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()
    assert not [path for path in tmp_path.iterdir() if TEMPORARY_SUFFIX in path.name]


def test_resize_wants_its_parameter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["--dynamic", "sv_fro"], "belong together"),
        (["--dynamic", "sv_fro", "--param", "3"], "at most 1"),
        (["--dynamic", "sv_ratio", "--param", "0.5"], "at least 1"),
    ):
        assert main(["lora", "resize", "in", "out.safetensors", "--rank", "4", *arguments]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("extract --base no.safetensors --tuned no.safetensors --out new.safetensors", "no.safetensors does not exist"),
        ("extract --base bad.safetensors --tuned no.safetensors --out new.safetensors", "bad.safetensors"),
        ("extract --base . --tuned . --out new.bin", "must end in .safetensors"),
        ("extract --base . --tuned . --out new.safetensors --alpha 0", "--alpha 0"),
        ("extract --base . --tuned . --out new.safetensors --rank 8,4 --size 1MB", "make one file"),
        ("resize no.safetensors new.safetensors --rank 4", "no.safetensors does not exist"),
        ("resize . new.safetensors --rank 4", "is a folder"),
        ("resize no.safetensors new.safetensors --rank 4 --dynamic sv_fro", "belong together"),
        ("resize no.safetensors nowhere/new.safetensors --rank 4", "create it first"),
    ],
)
def test_wrong_arguments_are_refused_without_torch(words: str, said: str, tmp_path: Path) -> None:
    """torch takes seconds to load: a mistake in the arguments is answered at once."""
    (tmp_path / "bad.safetensors").write_bytes(b"not a model")
    code = (
        "import sys; sys.modules['torch'] = None\n"  # an import of it fails
        f"from kohya_ext.cli.main import main; sys.exit(main({['lora', *words.split()]!r}))"
    )
    root = Path(__file__).resolve().parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environ)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
