"""`python -m kohya_ext`: the same as the `kohya-ext` command, where no script folder is on PATH.

`python .../kohya_ext` is the same again, from a clone: one word that every shell of Windows takes.
"""

import os
import sys

if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts us this way may do it with any Python
    sys.stderr.write("kohya-ext needs Python 3.10 or newer; this is %s\n" % sys.executable)  # noqa: UP031
    sys.exit(2)

if not __package__:  # run as a folder: what is importable then is the folder's content, not the package
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120

from kohya_ext.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
