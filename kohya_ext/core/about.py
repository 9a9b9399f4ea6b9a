"""What the distribution is called and needs: the one source for `setup.py` and for the wheel the installer writes.

The lower bounds admit the oldest pins of the Kohya releases we support (July 2023) and there are no caps: we are a
guest in an environment full of pins and must never be the reason that one of them moves.

Nothing here is newer than Python 3.6: an old one that runs us reads this file before it can be told that it is too old.
"""

NAME = "kohya-ext"
PACKAGE = "kohya_ext"
VERSION = "0.1.0"
SUMMARY = (
    "AdaCoor, EMA and the guide's presets for Kohya_ss, "
    "installed into an existing checkout and uninstalled to a byte-identical tree"
)
LICENSE = "Apache-2.0"
REPOSITORY = "https://github.com/OWNER/kohya_ext"
REQUIRES_PYTHON = ">=3.10"

REQUIRES = (
    "torch>=2.0",
    "accelerate>=0.15",
    "diffusers>=0.17",
    "safetensors>=0.3",
    "toml>=0.10",
)
EXTRAS = {"bitsandbytes": ("bitsandbytes>=0.35",), "images": ("imagehash>=4.3",)}
CONSOLE_SCRIPTS = {"kohya-ext": "kohya_ext.cli.main:main"}
