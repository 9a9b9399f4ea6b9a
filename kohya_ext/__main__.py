"""`python -m kohya_ext`: the same as the `kohya-ext` command, where no script folder is on PATH."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts us this way may do it with any Python
    sys.exit("kohya-ext needs Python 3.10 or newer; this is %s (%s)" % (sys.version.split()[0], sys.executable))  # noqa: UP031

from kohya_ext.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
