"""`python -m kohya_ext`: the same as the `kohya-ext` command, where no script folder is on PATH."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - whoever starts us this way may do it with any Python
    sys.stderr.write("kohya-ext needs Python 3.10 or newer; this is %s\n" % sys.executable)  # noqa: UP031
    sys.exit(2)

from kohya_ext.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
