"""A hub on 127.0.0.1 that serves one file, and serves it as badly as it is told to."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

REPOSITORY, NAME = "owner/model", "model.safetensors"
PAGE = f"/{REPOSITORY}/resolve/main/{NAME}"
CDN = "/cdn/file"
COMMIT = "0" * 40


@dataclass
class Hub:
    """moods: how to serve the next downloads, then always right.

    asked: (start of the range, authorization) of every download. watched: this name must never exist while serving.
    """

    content: bytes
    moods: list[str] = field(default_factory=list)
    asked: list[tuple[int, str]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    watched: Path | None = None
    seen_early: bool = False
    address: str = ""
    status: int = 200
    digest: str = ""

    @property
    def sha256(self) -> str:
        return self.digest or hashlib.sha256(self.content).hexdigest()


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the end of the block. Skips the test where no socket can be had."""
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    except OSError as error:
        pytest.skip(f"no socket on 127.0.0.1: {error}")
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            hub.heads.append(self.headers.get("Authorization", ""))
            status = hub.status if hub.status != 200 else 302 if self.path == PAGE else 404
            self.send_response(status)
            if status == 302:
                # another host, as the real hub's: versions 2 of huggingface_hub follow what stays on the same one
                self.send_header("Location", hub.address.replace("127.0.0.1", "localhost") + CDN)
                self.send_header("X-Linked-Etag", f'"{hub.sha256}"')
                self.send_header("X-Linked-Size", str(len(hub.content)))
                self.send_header("X-Repo-Commit", COMMIT)
            elif self.path != PAGE:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            if self.path != CDN:  # some versions of huggingface_hub ask for other things as well
                self.send_error(404)
                return
            hub.seen_early |= bool(hub.watched and hub.watched.exists())
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            start = int(match[1]) if match else 0
            hub.asked.append((start, self.headers.get("Authorization", "")))
            mood = hub.moods.pop(0) if hub.moods else "right"
            with contextlib.suppress(ConnectionError):
                self._serve(mood, start)

        def _serve(self, mood: str, start: int) -> None:
            if mood.isdigit():
                self.send_error(int(mood))
                return
            if mood == "refuse":
                self._hang_up()
                return
            start = 0 if mood == "no ranges" else start
            body = bytearray(hub.content[start:])
            stated = len(body)
            if mood == "corrupt":
                body[len(body) // 2] ^= 1
            elif mood == "says less":
                stated = len(body) // 2
            elif mood == "says more":
                stated = len(body) + 1000
            elif mood == "web page":
                start, body = 0, bytearray(b"<html>please log in</html>")
                stated = len(body)
            self.send_response(206 if start else 200)
            if start:
                first = start + 7 if mood == "wrong range" else start
                self.send_header("Content-Range", f"bytes {first}-{len(hub.content) - 1}/{len(hub.content)}")
            self.send_header("Content-Length", str(stated))
            self.end_headers()
            if mood == "breaks off":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                self._hang_up()
            else:
                self.wfile.write(body)

        def _hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    return Handler
