"""Where a file of the Hugging Face hub lies, how long it is, and what its SHA-256 must be.

Only what every `huggingface_hub` from 0.12 to 2 has is used: `hf_hub_url`, `get_hf_file_metadata`, `build_hf_headers`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from kohya_ext.core.errors import ConflictError, UsageError

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TRUE = ("1", "true", "yes", "on")
SECONDS = 20.0  # to wait for the hub's answer
_FORBIDDEN, _MISSING = (401, 403), (404, 410)


# what the hub allows, and no more: a name becomes part of a path here, and of a web address there
_WORD = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"(?:{_WORD}/)?{_WORD}")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")
_NAME = re.compile(r"[^\W][^\x00-\x1f\x7f-\x9f/\\:*?\"<>|\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]*[^\s.]")
_LONGEST_NAME = 200  # bytes; the part of a download has some more


@dataclass(frozen=True)
class Wanted:
    """A file of a repository. sha256: what it must be, "" to take the hub's word. size: in bytes, None if unknown.

    Raises UsageError for names that could lead elsewhere, on the disk or in the hub.
    """

    repository: str
    name: str
    revision: str = "main"
    sha256: str = ""
    size: int | None = None

    def __post_init__(self) -> None:
        if not _REPOSITORY.fullmatch(self.repository) or ".." in self.repository or "--" in self.repository:
            raise UsageError(f"{self.repository!r} is not the name of a repository: OWNER/NAME")
        if not _REVISION.fullmatch(self.revision) or ".." in self.revision:
            raise UsageError(f"{self.revision!r} is not a branch, a tag or a commit")
        if not _NAME.fullmatch(self.name) or len(self.name.encode()) > _LONGEST_NAME:
            raise UsageError(
                f"{self.name!r}: give the name of a file in the repository, without folders: it must begin with a "
                "letter or a digit, not end in a dot or a space, and contain no control characters and none of "
                '\\ / : * ? " < > |'
            )


# SDXL 1.0 with the VAE of 0.9, as the guide trains from it
SDXL = Wanted(
    "stabilityai/stable-diffusion-xl-base-1.0",
    "sd_xl_base_1.0_0.9vae.safetensors",
    sha256="e6bb9ea85bbf7bf6478a7c6d18b71246f22e95d41bcdd80ed40aa212c33cfeff",
    size=6_938_078_334,
)


@dataclass(frozen=True)
class Remote:
    """A file as the hub announces it. url: to get it from, valid for a while. authorization: a header, or ""."""

    url: str
    size: int
    sha256: str
    authorization: str = ""


def look_up(wanted: Wanted) -> Remote:
    """Ask the hub. Raises ConflictError (offline, no answer, no permission) and UsageError (no such file)."""
    if any(os.environ.get(name, "").lower() in TRUE for name in OFFLINE):
        raise ConflictError(
            f"{wanted.name} must be downloaded, but HF_HUB_OFFLINE is set: unset it. {_by_hand(wanted)}"
        )
    try:
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.utils import build_hf_headers
    except ImportError as error:
        raise UsageError(f"fetching needs huggingface_hub ({error}): run it with Kohya's Python") from error
    page = hf_hub_url(wanted.repository, wanted.name, revision=wanted.revision)
    token: str | bool | None = next((os.environ[name] for name in TOKENS if os.environ.get(name)), None)
    if not _private(page):
        token = False  # None would send the one that a login has left
    try:
        found: Any = get_hf_file_metadata(page, token=token, timeout=SECONDS)
        header = build_hf_headers(token=token).get("authorization", "")
    except Exception as error:  # their classes differ from version to version
        raise _explained(error, wanted) from error
    digest = (getattr(found, "etag", None) or "").strip('"').lower()
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        digest = wanted.sha256
    if wanted.sha256 and digest != wanted.sha256:
        raise ConflictError(
            f"{page} offers another file (SHA-256 {digest}) than expected ({wanted.sha256}): "
            "a wrong mirror, or a new version. Nothing was downloaded"
        )
    size = getattr(found, "size", None) or wanted.size
    if not digest or not size:
        raise UsageError(f"{page} publishes no size or SHA-256 of the file; give --sha256 if you know it")
    url = urljoin(page, str(getattr(found, "location", None) or page))
    target, origin = urlsplit(url), urlsplit(page)
    if target.scheme not in ("http", "https"):
        raise ConflictError(f"{page} redirects to {url[:80]!r}, which is not a web address. Nothing was downloaded")
    if (origin.scheme, target.scheme) == ("https", "http"):
        raise ConflictError(f"{page} redirects to {url[:80]!r}, which is not encrypted. Nothing was downloaded")
    same = (target.scheme, target.netloc) == (origin.scheme, origin.netloc)
    return Remote(url, int(size), digest, header if same and _private(url) else "")


def _private(url: str) -> bool:
    """Whether a token may go to `url`: nobody on the way can read it, or there is no way."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.hostname or "") in ("localhost", "127.0.0.1", "::1")


def _explained(error: Exception, wanted: Wanted) -> ConflictError | UsageError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    name = type(error).__name__
    if status in _FORBIDDEN or name in ("GatedRepoError", "RepositoryNotFoundError"):
        return ConflictError(
            f"the hub refuses {wanted.repository} ({name}): if it asks for a licence or is private, "
            f"accept it there and set {TOKENS[0]} to your token; otherwise check the name. Nothing was downloaded"
        )
    if status in _MISSING or name in ("EntryNotFoundError", "RevisionNotFoundError", "RemoteEntryNotFoundError"):
        return UsageError(f"{wanted.repository} has no {wanted.name} at revision {wanted.revision} ({name})")
    return ConflictError(
        f"the hub cannot be reached ({name}: {_reason(error)}). Is this machine online? {_by_hand(wanted)}"
    )


def _reason(error: BaseException) -> str:
    """What the system said, where that is underneath: the libraries wrap it in the texts of all their classes."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, OSError) and below.strerror:
            return below.strerror
        below = below.__cause__ or below.__context__
    return (str(error).splitlines() or [""])[0][:200]


def _by_hand(wanted: Wanted) -> str:
    return (
        f"Or put the file there by hand, from https://huggingface.co/{wanted.repository}: it is checked when the "
        "command is run again. Nothing was changed"
    )
