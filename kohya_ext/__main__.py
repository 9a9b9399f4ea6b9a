"""`python -m kohya_ext`: the same as the `kohya-ext` command, where no script folder is on PATH."""

from kohya_ext.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
