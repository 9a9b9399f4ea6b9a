"""Reads commands as their training scripts would, without running them, and prints the digest of each.

    python read_settings.py TREE REQUEST

REQUEST is a JSON file: a list of [script, words, settings of its TOML file].
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from kohya_ext.runtime import activate
from kohya_ext.runtime.run import run
from kohya_ext.spec.hooks import TRAINING_PACKAGE
from kohya_ext.spec.measurements import digest


def main(tree: str, request: str) -> None:
    os.chdir(tree)
    sys.path.insert(0, tree)
    activate(TRAINING_PACKAGE)
    found = []
    for number, (script, words, settings) in enumerate(json.loads(Path(request).read_text(encoding="utf-8"))):
        if settings:
            import toml

            file = Path(f"{request}.{number}.toml")
            file.write_text(toml.dumps(settings), encoding="utf-8")
            words = [*words, "--config_file", str(file)]
        sys.argv = [script, *words]
        module = importlib.import_module(script.removesuffix(".py"))
        parser = module.setup_parser()
        importlib.import_module("library.train_util").read_config_from_file(parser.parse_args(), parser)
        found.append(digest(script, run.given))
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
