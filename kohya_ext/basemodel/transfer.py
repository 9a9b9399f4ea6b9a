"""Downloads a large file over connections that may break, into a partial file that a later run can resume.

Not left to `huggingface_hub`, whose versions differ: the old ones fetch into a cache of their own and link or copy from
there, none compares the SHA-256, and all give a file its final name before anybody could.
"""

from __future__ import annotations

import http.client
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from kohya_ext.basemodel.part import Part
from kohya_ext.basemodel.remote import Remote
from kohya_ext.core.errors import ConflictError

BLOCK = 1 << 20  # bytes written at a time, at most
SECONDS = 30.0  # without a byte until a connection counts as broken
TRIES = 5  # in a row that bring nothing new
LONGEST_PAUSE = 30.0
REDIRECTIONS = 5

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


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
            raise urllib.error.HTTPError(url, code, f"it sends from https to {scheme[:20]}", headers, response)
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
    """Append to `part` until it is as long as announced. find: asks for the address anew, since addresses expire.

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
        raise BrokenOffError(f"the server answers {error.code} {error.reason}") from error
    except http.client.HTTPException as error:
        raise BrokenOffError(f"the connection broke off ({type(error).__name__})") from error
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise BrokenOffError(f"the connection broke off ({getattr(error, 'reason', None) or error})") from error


def _start(response: http.client.HTTPResponse, have: int, size: int) -> int:
    """Where the bytes of this answer belong. Raises BrokenOffError for an answer that cannot be of this file."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if not match or int(match[1]) != have or match[3] not in ("*", str(size)):
            raise BrokenOffError(
                f"the server answers with another range than asked for ({match[0] if match else 'none'})"
            )
        return have
    stated = response.headers.get("Content-Length")
    if stated is not None and stated.strip() != str(size):
        raise BrokenOffError(f"the server sends {stated} bytes instead of the {size} announced")
    return 0  # it does not know ranges: from the beginning
