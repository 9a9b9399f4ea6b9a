"""The same as the `kohya-ext` command, where no script folder is on PATH: `python .../kohya_ext`, from a clone too.

`python -m kohya_ext` does it as well. Called by its path, one word that every shell takes, it takes nothing from the
current folder, where Python otherwise looks for every module first.
"""

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts us this way may do it with any Python
    sys.stderr.write("kohya-ext needs Python 3.10 or newer; this is %s\n" % sys.executable)  # noqa: UP031
    sys.exit(2)

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120 - no other imports yet
if not __package__:  # called by its path: the package's own folder comes first in sys.path
    sys.path[0] = _HOME
elif sys.path and sys.path[0] in ("", os.getcwd()) and sys.path[0] != _HOME:  # noqa: PTH109
    del sys.path[0]

from kohya_ext.cli.main import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())
