"""What the running package must know of itself without reading a file. All else is in `pyproject.toml`.

The version is stated here alone (the build reads it from here), and so is the address of the repository:
`docs/generate.py` writes it wherever a page or `pyproject.toml` mentions it.

Nothing here is newer than Python 3.6: an old one that runs us reads this file before it can be told that it is too old.
"""

NAME = "kohya-ext"  # of the distribution and of the command
PACKAGE = "kohya_ext"
VERSION = "0.2.0"
REPOSITORY = "https://github.com/OWNER/kohya_ext"
MANIFEST = ".kohya_ext/manifest.json"  # the record of an installation, in the checkout
