"""Asks a Python about itself. `environment.inspect` hands this text to *that* Python with -c; nothing imports it.

It prints one JSON object and imports nothing but the standard library: no package of the environment is loaded, so it
takes milliseconds and cannot fail because of one of them. A Python that is too old stops at the version, before it
meets anything that it does not know.
"""

import importlib.util
import json
import site
import sys
import sysconfig
from pathlib import Path

VERSION = ".".join(str(part) for part in sys.version_info[:3])
if sys.version_info < (3, 10):  # noqa: UP036 - the Python that runs this need not be ours
    print(json.dumps({"version": VERSION}))
    raise SystemExit


def packages() -> dict[str, list[str]]:
    """{normalised name: [version, folder]}, from the names of the metadata folders; as at import, the first wins."""
    found: dict[str, list[str]] = {}
    for folder in sys.path:
        path = Path(folder)
        for entry in sorted(path.glob("*.dist-info")) + sorted(path.glob("*.egg-info")):
            name, _, rest = entry.stem.partition("-")
            normalised = name.replace("_", "-").replace(".", "-").lower()
            found.setdefault(normalised, [rest.split("-")[0], folder])
    return found


def importable(name: str) -> bool:
    """Whether `import name` would find something."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def main() -> None:
    """Print what `kohya_ext.checkout.environment` asks of every Python. Arguments: modules to look for."""
    sys.path[:] = [folder for folder in sys.path if folder]  # "" is the current folder, which -c puts there
    prefix = Path(sys.prefix)
    config = prefix / "pyvenv.cfg"
    settings = config.read_text(encoding="utf-8").splitlines() if config.is_file() else []
    answer = {
        "version": VERSION,
        "prefix": sys.prefix,
        "in_venv": sys.prefix != sys.base_prefix,
        "made_by_uv": any(line.split("=")[0].strip() == "uv" for line in settings),
        "conda": (prefix / "conda-meta").is_dir(),
        "externally_managed": Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").is_file(),
        "purelib": sysconfig.get_path("purelib"),
        "usersite": site.getusersitepackages() if site.ENABLE_USER_SITE else None,
        "scripts": sysconfig.get_path("scripts"),
        "packages": packages(),
        "modules": {name: importable(name) for name in ("pip", "ensurepip", *sys.argv[1:])},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
