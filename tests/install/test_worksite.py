"""The record of an exchange of our package in an environment: what it says is confined."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kohya_ext.core.errors import ConflictError
from kohya_ext.install import worksite
from kohya_ext.install.worksite import Site


@pytest.mark.parametrize(
    "name", ["lib/../x", "lib/a/b", "bin/a\\b", "bin/..", "lib/", "etc/x", "lib/C:x", "bin/x:y", 3]
)
def test_a_record_that_names_what_is_not_moved(tmp_path: Path, name: object) -> None:
    """Also by what only Windows takes for a path: a drive, a stream."""
    site = Site(tmp_path / "lib", tmp_path / "bin")
    for folder in (site.work / worksite.BEFORE, site.scripts):
        folder.mkdir(parents=True)
    document = {"format": worksite.FORMAT, "root": str(tmp_path), "verb": "install", "names": [name]}
    (site.work / worksite.PENDING).write_text(json.dumps({**document, "register": None, "created": []}))
    with pytest.raises(ConflictError, match="which is not valid"):
        worksite.recover(site)
