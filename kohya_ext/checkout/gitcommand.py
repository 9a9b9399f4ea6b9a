"""How git is started, so that a repository that somebody has prepared runs nothing and leads nowhere.

git obeys the settings in the repository: hooks, filters, a monitor of the file system and helpers of all kinds are
programs that its owner has chosen. It protects itself by refusing repositories of other users, and that protection
stays on:

* As root, git runs as the owner of the repository. Where its parts belong to different users, it does not run at all.
* As an ordinary user it runs only in that user's repositories, in root's (who needs no trick), and in those that the
  user's own settings name safe.
* Questions run without hooks, monitor, filters and network, whatever the settings say.
* Variables that would lead git elsewhere (GIT_DIR and the like) are not passed on.
* A `.git` file may lead to a folder of the same owner that knows of this work tree, and nowhere else.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kohya_ext.checkout import identity
from kohya_ext.core import shell
from kohya_ext.files import lock
from kohya_ext.files.folder import opened
from kohya_ext.files.journal import read_state

TIMEOUT_SECONDS = 60
NETWORK_SECONDS = 1800
UMASK = 0o022  # of what root lets another user's git write

# Both of a question and of a pull: no hooks, no monitor, no housekeeping in the background that would keep our lock.
# An empty monitor is off in every git; the word false is a program to old ones.
_ALWAYS = ("core.hooksPath=/dev/null", "core.fsmonitor=", "gc.auto=0", "maintenance.auto=false")
_QUESTION = (
    *_ALWAYS, "protocol.allow=never", "core.sshCommand=false", "core.gitProxy=", "core.askPass=", "credential.helper=",
    "core.pager=cat", "core.editor=false", "sequence.editor=false", "core.attributesFile=/dev/null", "diff.external=",
    "core.alternateRefsCommand=", "gpg.program=false", "gpg.ssh.program=false", "gpg.x509.program=false",
    "submodule.recurse=false", "log.showSignature=false",
)  # fmt: skip
_QUESTION_ENVIRON = {
    "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1", "GIT_PAGER": "cat", "GIT_EDITOR": "false",
    "GIT_ASKPASS": "", "GIT_SSH_COMMAND": "false", "GIT_ATTR_NOSYSTEM": "1",
}  # fmt: skip
_QUIET_ENVIRON = {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
_FILES = ("GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM", "GIT_EXEC_PATH")  # whose settings are ours
# what leads git to another repository, as `git rev-parse --local-env-vars` lists it, and a few more
_REDIRECTING = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_OBJECT_DIRECTORY", "GIT_DIR",
    "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_GRAFT_FILE", "GIT_INDEX_FILE", "GIT_NO_REPLACE_OBJECTS",
    "GIT_REPLACE_REF_BASE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_ATTR_SOURCE",
    "GIT_INTERNAL_SUPER_PREFIX", "GIT_LITERAL_PATHSPECS", "GIT_DISCOVERY_ACROSS_FILESYSTEM",
)  # fmt: skip
_NETWORK_NAMES = (
    "http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "GIT_SSL_CAPATH", "GIT_SSL_NO_VERIFY",
)  # fmt: skip

Done = subprocess.CompletedProcess[bytes]


class RefusedError(Exception):
    """git is not to run in this repository; the text says why and what to do."""


class LedAwayError(Exception):
    """A `.git` leads to what belongs to another work tree (a copied one has such): then there is no repository here."""


@dataclass(frozen=True)
class Repository:
    """A work tree and where git keeps what belongs to it. All without links.

    folder: this work tree's own part (index, HEAD). common: the part that all work trees share (info/exclude).
    """

    top: Path
    folder: Path
    common: Path


def work_tree(folder: Path) -> Path | None:
    """The top of the work tree that holds `folder`: the nearest folder upwards with a `.git`."""
    for candidate in (folder, *folder.parents):
        if os.path.lexists(candidate / ".git"):
            return candidate
    return None


def repository(top: Path) -> Repository:
    """Where git keeps what belongs to the work tree `top`. Raises LedAwayError, OSError."""
    top = top.resolve()
    entry = top / ".git"
    folder = entry.resolve()
    if folder.is_file():
        folder = _led_to(folder, "gitdir:").resolve()
    led_away = folder != entry
    common = folder
    if (folder / "commondir").is_file():
        common = _led_to(folder / "commondir", "").resolve()
        if folder.parent != common / "worktrees" or _led_to(folder / "gitdir", "").resolve() != entry:
            raise LedAwayError(f"{entry} points to {folder}, which belongs to another work tree of {common}")
    elif led_away and not _belongs(folder, top):
        raise LedAwayError(f"{entry} points to {folder}, which belongs to another work tree")
    return Repository(top, folder, common)


def ask(folder: Path, *arguments: str, given: bytes = b"") -> Done | None:
    """Run git in `folder` for a question or a flag, `given` as its input; None when git is absent, hangs, or refuses.

    Never asks the user, takes no optional locks, and neither network nor a program of the repository is used.
    """
    try:
        return _run(folder, arguments, given, network=False)
    except (RefusedError, LedAwayError, OSError, subprocess.SubprocessError):
        return None


def fetch(root: Path, *arguments: str) -> Done:
    """Run git in `root` with the network and its owner's own settings. A failure has its reason in `stderr`."""
    try:
        return _run(root, arguments, b"", network=True)
    except (RefusedError, LedAwayError, OSError, subprocess.SubprocessError) as error:
        return subprocess.CompletedProcess(["git", *arguments], 128, b"", str(error).encode("utf-8", "replace"))


def refusal(top: Path) -> str | None:
    """Why git is not to be run in the repository at `top`, with what to do; None where it may, or where none is."""
    if not os.path.lexists(top / ".git") or program() is None:
        return None
    try:
        _identity(top)
    except RefusedError as error:
        return str(error)
    except (LedAwayError, OSError):
        return None
    return None


def program() -> str | None:
    """The path of git; never one that is found relative to the current folder, where anybody may have put it."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = shutil.which("git", path=os.pathsep.join(folder for folder in folders if Path(folder).is_absolute()))
    return found if found is not None and Path(found).is_absolute() else None  # Windows looks in "." first


def _run(folder: Path, arguments: tuple[str, ...], given: bytes, *, network: bool) -> Done:
    found, top = program(), work_tree(folder)
    if found is None:
        raise FileNotFoundError("git is not there")
    settings = _ALWAYS if network else _QUESTION
    who = None if top is None else _identity(top)
    environ, started = _started(who, network)
    if top is not None and who is None and _is_roots(top):
        settings = (*settings, f"safe.directory={top.resolve()}")
    if top is not None:  # a `.git` that is none must not make git look further up, in somebody else's repository
        environ["GIT_CEILING_DIRECTORIES"] = str(top.parent)
    return subprocess.run(
        [found, *(word for setting in settings for word in ("-c", setting)), *arguments],
        cwd=folder,
        env=environ,
        capture_output=True,
        timeout=NETWORK_SECONDS if network else TIMEOUT_SECONDS,
        check=False,
        **lock.handed_on(),
        **({"stdin": subprocess.DEVNULL} if network else {"input": given}),
        **started,
    )


def _started(who: identity.Identity | None, network: bool) -> tuple[dict[str, str], dict[str, Any]]:
    """The variables of git's process, and what else `subprocess.run` is to be given."""
    if who is not None:
        environ = who.environ(os.environ, _NETWORK_NAMES if network else ())
    elif network:
        environ = {name: value for name, value in os.environ.items() if name not in _REDIRECTING}
        environ |= _settings(lambda key: key not in ("core.worktree", "core.bare"))
    else:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or name in _FILES}
        environ |= _settings(lambda key: key == "safe.directory")
    environ |= _QUIET_ENVIRON if network else {**_QUIET_ENVIRON, **_QUESTION_ENVIRON}
    environ.pop("SUDO_UID", None)  # by which git lets root into the repository of whoever called sudo
    return environ, {} if who is None else {**who.arguments(), "umask": UMASK}


def _settings(wanted: Callable[[str], bool]) -> dict[str, str]:
    """Of the settings in GIT_CONFIG_COUNT and its pairs, those whose key is `wanted`."""
    try:
        count = int(os.environ.get("GIT_CONFIG_COUNT") or 0)
        pairs = [(os.environ[f"GIT_CONFIG_KEY_{n}"], os.environ[f"GIT_CONFIG_VALUE_{n}"]) for n in range(count)]
    except (ValueError, KeyError):
        pairs = []
    kept = [(key, value) for key, value in pairs if wanted(key.lower())]
    environ = {"GIT_CONFIG_COUNT": str(len(kept))}
    for number, (key, value) in enumerate(kept):
        environ |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return environ


def _identity(top: Path) -> identity.Identity | None:
    """Whom git is to run as in the work tree `top`; None: as ourselves. Raises RefusedError, LedAwayError, OSError."""
    found = repository(top)
    if not hasattr(os, "geteuid"):
        return None  # git for Windows looks at the owners itself
    owners = {path: path.lstat() for path in (found.top, top / ".git", found.folder, found.common)}
    uids = {path: what.st_uid for path, what in owners.items()}
    owner = uids[found.top]
    stranger = next((path for path, uid in uids.items() if uid != owner), None)
    if stranger is not None:
        where = shell.quoted(found.top)
        raise RefusedError(
            f"{found.top} belongs to user {owner} and {stranger} to user {uids[stranger]}, so git does not work there "
            "(detected dubious ownership). Give all of it to one user, and run as that user: "
            f"chown -R {owner} {where}"
        )
    if identity.is_root():
        return identity.of_owner(owner, owners[found.top].st_gid)
    if owner not in (0, os.geteuid()) and not _named_safe(found.top):
        where = shell.quoted(found.top)
        raise RefusedError(
            f"{found.top} belongs to user {owner}, not to you (user {os.geteuid()}), so git does not work there "
            "(detected dubious ownership). Run as its owner or as root; or, if you trust all that is in it: "
            f"git config --global --add safe.directory {where}"
        )
    return None


def _is_roots(top: Path) -> bool:
    return hasattr(os, "geteuid") and not identity.is_root() and top.stat().st_uid == 0


def _named_safe(top: Path) -> bool:
    """Whether this user's or the system's settings name `top` safe. Asked where no repository is."""
    found = program()
    environ, _ = _started(None, network=False)
    command = [str(found), "config", "--null", "--get-all", "safe.directory"]
    try:
        said = subprocess.run(
            command, cwd=os.sep, env={**environ, "GIT_DIR": "/dev/null"}, capture_output=True, timeout=TIMEOUT_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return False
    safe = False
    for line in os.fsdecode(said.stdout).split("\0")[:-1]:
        named = line == "*" or (line.endswith("/*") and top.is_relative_to(line[:-2])) or Path(line).expanduser() == top
        safe = bool(line) and (safe or named)  # an empty one starts over
    return safe


def _led_to(file: Path, start: str) -> Path:
    """The folder that a file of git's names, after `start`. Raises LedAwayError where it names none, OSError."""
    with opened(file.parent) as folder:
        found = folder.read(file.name)
    text = "" if found is None else os.fsdecode(found[0]).rstrip("\r\n")
    if not text.startswith(start) or not text[len(start) :].strip(" "):
        raise LedAwayError(f"{file} does not point to a git folder")
    return file.parent / text[len(start) :].removeprefix(" ")


def _belongs(folder: Path, top: Path) -> bool:
    """Whether the git folder `folder`, led to from elsewhere, is that of the work tree `top`."""
    state = read_state(folder / "config")
    setting = "" if state is None else _work_tree_setting(state.data.decode("utf-8", "surrogateescape"))
    if setting:  # of a submodule
        return (folder / setting).resolve() == top
    return folder.name != ".git" and "modules" not in folder.parts and folder.parent.name != "worktrees"


def _work_tree_setting(text: str) -> str:
    """The value of core.worktree in the text of git's settings, as git writes it."""
    section = value = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[] ").lower()
        elif section == "core" and line.lower().partition("=")[0].strip() == "worktree":
            value = line.partition("=")[2].strip().strip('"')
    return value
