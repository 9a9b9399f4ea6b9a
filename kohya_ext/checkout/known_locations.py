"""Where the templates of vast.ai, RunPod, Docker and the desktop keep kohya_ss, its Python, and how they restart it.

Data and its expansion only. Absolute places hang below a `prefix`, which is `/` unless KOHYA_EXT_MACHINE names another
folder (a mounted image; our tests name an empty one); what comes from another environment variable is taken as it is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
MACHINE = "KOHYA_EXT_MACHINE"
GUI_SCRIPT = "kohya_gui.py"

# In the order in which they are tried. `$NAME` is an environment variable; a place with an unset one is skipped. `*` is
# any folder's name.
CHECKOUTS = (
    "/workspace/kohya_ss",
    "$WORKSPACE/kohya_ss",
    "/opt/kohya_ss",
    "/app",
    "/opt/workspace-internal/kohya_ss",
    "/kohya_ss",
    "$HOME/kohya_ss",
    "$HOME/StabilityMatrix/Data/Packages/kohya_ss",
    "$HOME/StabilityMatrix/Packages/kohya_ss",
    "$HOME/.local/share/StabilityMatrix/Packages/kohya_ss",
    "$APPDATA/StabilityMatrix/Packages/kohya_ss",
    "$USERPROFILE/kohya_ss",
    "$HOME/pinokio/api/*/kohya_ss",
    "$HOME/pinokio/api/*/app",
    "$HOME/pinokio/api/*/app/kohya_ss",
    "$USERPROFILE/pinokio/api/*/kohya_ss",
    "$USERPROFILE/pinokio/api/*/app",
    "/opt/pilot/repos/kohya_ss",
    "/content/kohya_ss",
    "/content/kohya-trainer",
    "/sd-scripts",
    "/kohya",
)

# Inside the checkout: gui.sh makes venv/, gui-uv.sh makes .venv/, forks and conda -p the others.
ENVIRONMENTS_IN_CHECKOUT = ("venv", ".venv", "kohya_ss_env", "env")

# Where other repositories keep the sd-scripts they run, below their top folder: fluxgym, LoRA_Easy_Training_Scripts
# (and its backend alone), lora-scripts. And launchers (Pinokio's) that keep a whole kohya_ss.
NESTED_SD_SCRIPTS = (
    "sd-scripts",
    "sd_scripts",
    "backend/sd_scripts",
    "backend/sd-scripts",
    "scripts/stable",
    "scripts/dev",
)
NESTED = (*NESTED_SD_SCRIPTS, "kohya_ss", "app", "app/kohya_ss")
LEVELS = max(name.count("/") + 1 for name in NESTED)

# A mounted workspace overrides what the image brings, so it comes first.
ENVIRONMENTS = (
    "/venv/main",
    "$WORKSPACE/environments/python/kohya",
    "/workspace/environments/python/kohya",
    "/opt/environments/python/kohya",
    "/venvs/kohya_ss",
    "/venv",
    "/opt/venvs/core",
)


@dataclass(frozen=True)
class Service:
    """How one template restarts its GUI. evidence: a file that only this template has."""

    evidence: str
    restart: str


SERVICES = (
    Service("/opt/supervisor-scripts/kohya.sh", "supervisorctl restart kohya"),
    Service("/etc/kohya_ss_args.conf", "supervisorctl restart kohya_ss"),
    Service("/start_kohya_ss.sh", "fuser -k 3001/tcp; /start_kohya_ss.sh"),
    Service("/start_kohya.sh", "fuser -k 3011/tcp; /start_kohya.sh"),
    Service("/opt/bin/start.sh", "fuser -k 8010/tcp; /opt/bin/start.sh"),
)

# Written by the vast.ai template while a provisioning script runs: the GUI waits for it to go.
PROVISIONING = "/.provisioning"


def machine(environ: Mapping[str, str]) -> Path:
    """The folder that stands for `/`: processes, places and Pythons outside of it are not looked for."""
    return Path(environ.get(MACHINE) or ROOT)


def expand(places: tuple[str, ...], environ: Mapping[str, str], prefix: Path | None = None) -> Iterator[Path]:
    """The places as paths, in their order, each once; those with an unset variable are skipped."""
    prefix = prefix or machine(environ)
    seen: set[Path] = set()
    for place in places:
        if place.startswith("$"):
            name, _, rest = place[1:].partition("/")
            value = environ.get(name)
            path = Path(value) / rest if value else None
        else:
            path = prefix / place.lstrip("/")
        for found in _spelled_out(path) if path is not None else ():
            if found not in seen:
                seen.add(found)
                yield found


def _spelled_out(path: Path) -> list[Path]:
    """What `path` stands for: itself, or the folders that match its `*`, sorted."""
    if "*" not in path.parts:
        return [path]
    at = path.parts.index("*")
    above, rest = Path(*path.parts[:at]), path.parts[at + 1 :]
    try:
        return sorted(place for folder in above.iterdir() if (place := folder.joinpath(*rest)).is_dir())
    except OSError:
        return []


def enclosing(root: Path) -> list[Path]:
    """The folders above the checkout `root` that belong to a repository which brings it, from below: up to the top of
    the outermost one, or, where there is no git, up to the folder in which it lies at one of the places of NESTED.
    """
    above = list(root.parents)[: LEVELS + 1]
    tops = [depth for depth, folder in enumerate(above, 1) if _brings(folder, root)]
    return above[: max(tops, default=0)]


def _brings(folder: Path, root: Path) -> bool:
    """Whether `folder` is the top of a repository, a launcher, or keeps an sd-scripts where such repositories do."""
    a_launcher = folder.parts[-3:-1] == ("pinokio", "api")
    return a_launcher or (folder / ".git").exists() or root.relative_to(folder).as_posix() in NESTED_SD_SCRIPTS


def restart_hint(root: Path, environ: Mapping[str, str], prefix: Path | None = None) -> str:
    """One or two sentences: how the GUI of the checkout at `root` is restarted in the template we are in.

    We never restart it ourselves: that would kill a running training.
    """
    prefix = prefix or machine(environ)
    if (prefix / PROVISIONING.lstrip("/")).exists():
        return "No restart needed: the GUI starts when provisioning is done."
    caution = "When no training is running, restart the GUI and reload the page"
    for service in SERVICES:
        if (prefix / service.evidence.lstrip("/")).exists():
            return f"{caution}: {service.restart}"
    if root == prefix / "app" and (prefix / ".dockerenv").exists():
        return f"{caution}: docker compose restart (on the host; a rebuilt image needs the installer again)"
    ending = ".bat" if os.name == "nt" else ".sh"
    starters = [f".{os.sep}{name}{ending}" for name in ("gui-uv", "gui") if (root / f"{name}{ending}").is_file()]
    how = f"stop it (Ctrl+C), then start it as before ({' or '.join(starters)})" if starters else "as you started it"
    return f"{caution}: {how}"
