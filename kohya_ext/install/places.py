"""Where the templates of vast.ai, RunPod, Docker and the desktop keep kohya_ss, its Python, and how they restart it.

Data and its expansion only. Absolute places hang below a `prefix`, which is `/` unless KOHYA_EXT_MACHINE names another
folder (a mounted image; our tests name an empty one); what comes from another environment variable is taken as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/")
MACHINE = "KOHYA_EXT_MACHINE"
GUI_SCRIPT = "kohya_gui.py"

# In the order in which they are tried. `$NAME` is an environment variable; a place with an unset one is left out.
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
    "/opt/pilot/repos/kohya_ss",
    "/content/kohya_ss",
)

# Inside the checkout: gui.sh makes venv/, gui-uv.sh makes .venv/, forks and conda -p the others.
ENVIRONMENTS_IN_CHECKOUT = ("venv", ".venv", "kohya_ss_env", "env")

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
        if path is not None and path not in seen:
            seen.add(path)
            yield path


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
    starters = [name for name in ("gui-uv.sh", "gui.sh") if (root / name).is_file()]
    how = (
        f"stop it (Ctrl+C), then start it as before (./{' or ./'.join(starters)})" if starters else "as you started it"
    )
    return f"{caution}: {how}"
