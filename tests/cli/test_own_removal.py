from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from kohya_ext.checkout.checkout import Checkout

GONE = """
import sys
from kohya_ext.cli import main
from kohya_ext.install import apply

real = apply.uninstall

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "kohya_ext":
            raise ModuleNotFoundError(f"No module named {name!r}")

def uninstall(*given, **options):
    outcome = real(*given, **options)
    sys.meta_path.insert(0, Gone())
    return outcome

apply.uninstall = uninstall
raise SystemExit(main.main(sys.argv[1:]))
"""


def test_uninstall_needs_nothing_of_the_package_once_it_is_gone(make: Callable[..., Checkout]) -> None:
    """As when the environment's own Python runs it: what was not imported before cannot be imported after."""
    root = make("split").root
    program = [sys.executable, "-c", GONE, "uninstall", str(root), "--yes", "--no-package"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
