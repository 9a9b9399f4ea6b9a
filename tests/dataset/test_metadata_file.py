"""Captions from the metadata of a fine-tune, under every kind of key that sd-scripts takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.core.errors import UsageError
from kohya_ext.dataset.audit import AuditSettings, audit
from kohya_ext.dataset.caption_check import check
from kohya_ext.dataset.metadata_file import read
from kohya_ext.dataset.tokens import counter
from tests.dataset.folders import folder_of

DOG = "a dog ewpp on a lawn"


def listed(tmp_path: Path, entries: Any, name: str = "in.json", *images: str) -> Path:
    folder_of(tmp_path, dict.fromkeys(images or ("a.png",)))
    text = entries if isinstance(entries, str) else json.dumps(entries)
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


def codes(tmp_path: Path, entries: Any, **settings: Any) -> list[str]:
    in_json = listed(tmp_path, entries)
    return [finding.code for finding in check(tmp_path, in_json=in_json, **settings)]


@pytest.mark.parametrize("form", ["a", "a.png", "{folder}/a.png", "{folder}/a", "{folder}\\\\a.png"])
def test_keys(tmp_path: Path, form: str) -> None:
    key = form.replace("{folder}", tmp_path.as_posix()).replace("\\\\", "\\")
    assert codes(tmp_path, {key: {"caption": DOG}}) == []


def test_keys_of_folders(tmp_path: Path) -> None:
    path = listed(tmp_path, {"b/a": {"caption": DOG}, "b\\c.png": {"tags": DOG}}, "in.json", "b/a.png", "b/c.png")
    assert check(tmp_path, in_json=path, recursive=True) == []


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"caption": DOG}, []), ({"tags": DOG}, []), ({"caption": "a dog", "tags": "ewpp"}, []),
        ({"caption": "a dog"}, ["no-token"]), ({}, ["empty-caption"]), ({"caption": " "}, ["empty-caption"]),
        ({"caption": None, "train_resolution": [512, 512]}, ["empty-caption"]),
        ({"caption": "\n\newpp"}, ["empty-caption"]),
        ({"caption": DOG + "\nmore"}, ["slip"]), ({"caption": "", "tags": DOG}, []),
    ],
)  # fmt: skip
def test_captions_are_judged(tmp_path: Path, entry: dict[str, Any], expected: list[str]) -> None:
    assert codes(tmp_path, {"a": entry}, token="ewpp") == expected


def test_caption_and_tags_are_joined(tmp_path: Path) -> None:
    path = listed(tmp_path, {"a": {"caption": "a dog", "tags": "brown, lawn"}})
    assert read(path, tmp_path, [Path("a.png")]).captions == {Path("a.png"): "a dog, brown, lawn"}


def test_lines(tmp_path: Path) -> None:
    path = listed(tmp_path, json.dumps({"image_path": str(tmp_path / "a.png"), "caption": DOG}), "in.jsonl")
    assert check(tmp_path, in_json=path) == []


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    assert codes(tmp_path, {"other": {"caption": DOG}}) == ["not-listed", "no-image"]
    (tmp_path / "other.npz").touch()
    assert codes(tmp_path, {"other": {"caption": DOG}}) == ["not-listed"]  # the latents are enough


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "not valid JSON"), ("[]", "not the metadata"), ('{"a": "a dog"}', "not the metadata"),
        ("\ufeff{}", "byte order mark"), ('{"a": {"caption": 3}}', "not a text"), ("[" * 100000, "not valid JSON"),
    ],
)  # fmt: skip
def test_a_bad_file(tmp_path: Path, text: str, why: str) -> None:
    path = listed(tmp_path, text)
    with pytest.raises(UsageError, match=why):
        check(tmp_path, in_json=path)
    path.rename(tmp_path / "meta_lat.json")
    assert [finding.code for finding in check(tmp_path)] == ["metadata", "no-caption"]


def test_a_file_in_the_folder_speaks_for_images_without_a_caption_file(tmp_path: Path) -> None:
    listed(tmp_path, {"a": {"caption": DOG}, "b": {"caption": DOG}}, "meta_cap.json", "a.png", "b.png", "c.png")
    (tmp_path / "b.txt").write_text("a cat")
    found = [(finding.code, finding.path) for finding in check(tmp_path)]
    assert found == [("old-metadata", "b.txt"), ("no-caption", "c.png")]
    (tmp_path / "b.txt").write_text("a dog ewpp")
    assert [finding.path for finding in check(tmp_path)] == ["c.png"]


def test_audit_counts_these_captions(tmp_path: Path) -> None:
    path = listed(tmp_path, {"a": {"caption": "a photo of a dog"}})
    found = audit(tmp_path, AuditSettings(in_json=path), counter(None))
    assert found.captions == {Path("a.txt"): "a photo of a dog"} and sum(found.tokens.values()) == 1
    assert "no-caption" not in {finding.code for finding in found.findings}
    path.rename(tmp_path / "meta_lat.json")
    assert audit(tmp_path, AuditSettings(), counter(None)).captions == found.captions
