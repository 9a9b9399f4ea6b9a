"""Downloads a large file over connections that may break, into a partial file that a later run can resume.

Not left to `huggingface_hub`, whose versions differ: the old ones fetch into a cache of their own and link or copy from
there, none compares the SHA-256, and all give a file its final name before anybody could.
"""

from __future__ import annotations

import http.client
import os
import re
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from kohya_ext.basemodel.remote import Remote
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.atomic import NEW_FILE_MODE, Owner
from kohya_ext.files.folder import Folder, give, opened

BLOCK = 1 << 20  # bytes written at a time, at most
SECONDS = 30.0  # without a byte until a connection counts as broken
TRIES = 5  # in a row that bring nothing new
LONGEST_PAUSE = 30.0
REDIRECTIONS = 5
_PRIVATE = 0o600

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in total."""


@dataclass(frozen=True)
class Part:
    """A partial download by its path: accessible to this user only, and never reached through a link.

    It lies next to the file it is to become, perhaps in a folder that others may write to as well, under a name that
    they can guess: only that way can a later run resume it. All methods raise OSError.
    """

    path: Path

    def size(self) -> int:
        """Bytes that are there, 0 without a part of ours."""
        with self._folder() as folder:
            found = folder.lstat(self.path.name)
        return found.st_size if found is not None and _is_ours(found) else 0

    def open(self, start: int) -> BinaryIO:
        """The partial file, to resume at `start`; at 0 a new one. Raises ConflictError where it is not ours."""
        with self._folder() as folder:
            if start == 0:
                self._remove(folder)
                return open(folder.create(self.path.name), "w+b")  # noqa: PTH123 - a descriptor
            descriptor = folder.open_file(self.path.name, writing=True)
            try:
                if not _is_ours(os.fstat(descriptor)):
                    raise ConflictError(f"{self.path} belongs to another user: remove it and run again")
                give(descriptor, None, _PRIVATE)
                file = open(descriptor, "r+b")  # noqa: PTH123, SIM115 - a descriptor; the caller closes it
            except BaseException:
                os.close(descriptor)
                raise
        file.seek(start)
        return file

    def sync(self) -> None:
        """Wait until the disk has it."""
        with self.open(self.size()) as file:
            os.fsync(file.fileno())

    def remove(self) -> None:
        """Start over."""
        with self._folder() as folder:
            self._remove(folder)

    def become(self, name: str, owner: Owner | None) -> None:
        """It is whole: readable for all, and of that name in its folder."""
        with self._folder() as folder:
            with self.open(self.size()) as file:
                give(file.fileno(), owner, NEW_FILE_MODE)
            folder.replace(self.path.name, folder, name)
            folder.sync()

    def _folder(self) -> Any:
        return opened(self.path.parent.resolve())

    def _remove(self, folder: Folder) -> None:
        try:
            folder.unlink(self.path.name, missing_ok=True)
        except PermissionError as error:
            raise ConflictError(f"{self.path} belongs to another user: have it removed, then run again") from error


def _is_ours(found: os.stat_result) -> bool:
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        return False
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


class CarefulRedirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirections, never from https to a connection that anybody can read, nor to anything but the web.

    The token is with none of them: it is a header of the first request only.
    """

    max_redirections = REDIRECTIONS

    def redirect_request(
        self, request: urllib.request.Request, response: Any, code: int, reason: str, headers: Any, url: str
    ) -> urllib.request.Request | None:
        """As the base class; raises HTTPError for what is not followed."""
        scheme = urlsplit(url).scheme
        if scheme not in ("https", "http") or (scheme == "http" and urlsplit(request.full_url).scheme == "https"):
            raise urllib.error.HTTPError(url, code, f"it redirects from https to {scheme[:20]}", headers, response)
        return super().redirect_request(request, response, code, reason, headers, url)


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(CarefulRedirects)


class BrokenOffError(Exception):
    """This connection brings no more; another one may."""


def complete(
    part: Part,
    find: Callable[[], Remote],
    progress: Progress = lambda *_: None,
    pause: Callable[[float], None] = time.sleep,
) -> Remote:
    """Append to `part` until it is as long as announced. find: asks for the address again, since addresses expire.

    Raises ConflictError after TRIES connections that bring nothing; what has arrived stays. OSError for the disk.
    """
    remote, furthest, failures, reason = find(), part.size(), 0, ""
    if furthest > remote.size:
        part.remove()
        furthest = 0
    while part.size() < remote.size:
        try:
            _stream(part, remote, progress)
        except BrokenOffError as error:
            reason = str(error)
        else:
            reason = "the connection ended early"
        reached = part.size()
        failures = 0 if reached > furthest else failures + 1
        furthest = max(furthest, reached)
        if reached < remote.size:
            if failures >= TRIES:
                raise ConflictError(
                    f"{remote.size - reached} of {remote.size} bytes are missing: {reason} ({TRIES} times in a row). "
                    "The partial download is kept: run the command again to resume"
                )
            pause(min(LONGEST_PAUSE, 2.0**failures - 1))
            remote = find() if failures else remote
    part.sync()
    return remote


def _stream(part: Part, remote: Remote, progress: Progress) -> None:
    """One connection. Raises BrokenOffError; returns when it has no more bytes, or all of them are there."""
    have = part.size()
    request = urllib.request.Request(remote.url, headers={"Accept-Encoding": "identity"})  # noqa: S310 - remote.py saw to https
    if have:
        request.add_header("Range", f"bytes={have}-")
    if remote.authorization:
        request.add_unredirected_header("Authorization", remote.authorization)  # never to the host it redirects to
    try:
        with _opener().open(request, timeout=SECONDS) as response:
            start = _start(response, have, remote.size)
            with part.open(start) as file:
                while start < remote.size and (block := response.read1(min(BLOCK, remote.size - start))):
                    file.write(block)
                    start += len(block)
                    progress(start, remote.size)
    except urllib.error.HTTPError as error:
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.remove()
        raise BrokenOffError(f"the server answered {error.code} {error.reason}") from error
    except http.client.HTTPException as error:
        raise BrokenOffError(f"the connection broke off ({type(error).__name__})") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise BrokenOffError(f"the connection broke off ({getattr(error, 'reason', None) or error})") from error


def _start(response: http.client.HTTPResponse, have: int, size: int) -> int:
    """Where the bytes of this answer belong. Raises BrokenOffError for an answer that cannot be of this file."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not match or int(match[1]) != have or match[3] not in ("*", str(size)):
            raise BrokenOffError(f"the server returned another range than requested ({match[0] if match else 'none'})")
        return have
    stated = response.headers.get("Content-Length")
    if stated is not None and stated.strip() != str(size):
        raise BrokenOffError(f"the server sends {stated} bytes instead of the {size} announced")
    return 0  # it does not know ranges: from the beginning
