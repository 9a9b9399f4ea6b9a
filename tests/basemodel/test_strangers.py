"""A download in a folder that others may write to, from a hub that sends elsewhere, of a file with a strange name."""

from __future__ import annotations

import http.server
import os
import random
import stat
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kohya_ext.basemodel import fetch as fetching
from kohya_ext.basemodel import transfer
from kohya_ext.basemodel.fetch import Voice, fetch, part_of
from kohya_ext.basemodel.remote import SDXL, Remote, Wanted, look_up
from kohya_ext.basemodel.transfer import Part
from kohya_ext.core.errors import ConflictError, UsageError
from tests.basemodel.hub import CDN, NAME, REPOSITORY, Hub, serving
from tests.files.strangers import as_root

CONTENT = random.Random(2).randbytes(50_000)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(CONTENT)) as found:
        remote = Remote(found.address + CDN, len(CONTENT), found.sha256)
        monkeypatch.setattr(fetching, "look_up", lambda wanted: remote)
        yield found


def run(folder: Path) -> Path:
    return fetch(Wanted(REPOSITORY, NAME), folder, voice=Voice(pause=lambda _: None)).path


# ---- the part


@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder link"])
def test_what_lies_under_the_name_of_the_part(hub: Hub, tmp_path: Path, kind: str) -> None:
    """Its name can be guessed, so somebody may have put something there. It is neither written to nor read."""
    victim = tmp_path / "victim"
    victim.write_bytes(CONTENT[:1000])
    victim.chmod(0o640)
    folder = tmp_path / "folder"
    folder.mkdir()
    part = part_of(folder / NAME, hub.sha256)
    if kind == "link":
        part.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, part)
    elif kind == "pipe":
        os.mkfifo(part)
    else:
        part.symlink_to(tmp_path)
    assert run(folder).read_bytes() == CONTENT
    assert victim.read_bytes() == CONTENT[:1000]
    assert stat.S_IMODE(victim.stat().st_mode) == 0o640
    assert not (folder / NAME).is_symlink()
    assert hub.asked[0][0] == 0, "it did not go on with what is not ours"


@as_root
def test_a_part_of_another_user_is_not_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    part = part_of(tmp_path / NAME, hub.sha256)
    part.write_bytes(bytes(1000))
    os.chown(part, 65534, 65534)
    assert run(tmp_path).read_bytes() == CONTENT
    assert (tmp_path / NAME).stat().st_uid == 0
    assert hub.asked[0][0] == 0


def test_only_this_user_may_read_it_until_it_is_whole(hub: Hub, tmp_path: Path) -> None:
    part = part_of(tmp_path / NAME, hub.sha256)
    part.write_bytes(CONTENT[:1000])
    part.chmod(0o666)
    for moods in (["refuse", "breaks off"], ["breaks off"]):
        hub.moods = [*moods, *["refuse"] * transfer.TRIES]
        with pytest.raises(ConflictError, match="bytes are missing"):
            run(tmp_path)
        assert stat.S_IMODE(part.stat().st_mode) == 0o600
        assert part.stat().st_size > 1000
    found = run(tmp_path)
    assert stat.S_IMODE(found.stat().st_mode) == 0o644
    assert not part.exists()


# ---- where the hub sends


@pytest.fixture
def sender() -> Iterator[Any]:
    """A server that sends on, to where `sender.to` says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            seen.append((self.path, self.headers.get("Authorization")))
            self.send_response(302)
            self.send_header("Location", server.to)  # type: ignore[attr-defined]
            self.send_header("Content-Length", "0")
            self.end_headers()

    seen: list[tuple[str, str | None]] = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.to = seen, "/again"  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_token_goes_with_no_redirection_and_they_end(sender: Any, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{sender.server_address[1]}/file"
    remote = Remote(address, 100, "0" * 64, "Bearer hf_secret")
    with pytest.raises(transfer.BrokenOffError):
        transfer._stream(Part(tmp_path / "part"), remote, lambda *_: None)
    assert sender.seen[0] == ("/file", "Bearer hf_secret")
    assert 1 < len(sender.seen) <= transfer.REDIRECTIONS + 1
    assert all(token is None for _, token in sender.seen[1:])


@pytest.mark.parametrize("url", ["http://elsewhere/x", "ftp://elsewhere/x", "file:///etc/passwd", "gopher://x"])
def test_from_https_to_https_only(url: str) -> None:
    import urllib.error
    import urllib.request

    careful = transfer.CarefulRedirects()
    asked = urllib.request.Request("https://huggingface.co/x", headers={"Accept-Encoding": "identity"})
    with pytest.raises(urllib.error.HTTPError):
        careful.redirect_request(asked, None, 302, "Found", {}, url)
    assert careful.redirect_request(asked, None, 302, "Found", {}, "https://cdn/x") is not None


class Metadata:
    def __init__(self, location: str) -> None:
        self.location, self.etag, self.size = location, '"' + "a" * 64 + '"', 100


@pytest.mark.parametrize(
    ("page", "location", "sent", "header"),
    [
        ("https://hub/x", "https://hub/y", "hf_secret", "Bearer hf_secret"),
        ("https://hub/x", "https://cdn/y", "hf_secret", ""),
        ("https://hub/x", "https://hub:8443/y", "hf_secret", ""),
        ("https://hub/x", "http://hub/y", "hf_secret", None),
        ("https://hub/x", "file:///etc/shadow", "hf_secret", None),
        ("http://mirror/x", "http://mirror/y", False, ""),
        ("http://mirror/x", "https://mirror/y", False, ""),
        ("http://localhost:80/x", "http://localhost:80/y", "hf_secret", "Bearer hf_secret"),
    ],
)
def test_who_gets_the_token(
    monkeypatch: pytest.MonkeyPatch, page: str, location: str, sent: object, header: str | None
) -> None:
    tokens: list[object] = []

    def metadata(url: str, token: object = None, timeout: float = 0) -> Metadata:
        tokens.append(token)
        return Metadata(location)

    hub = types.ModuleType("huggingface_hub")
    hub.hf_hub_url = lambda *_, **__: page  # type: ignore[attr-defined]
    hub.get_hf_file_metadata = metadata  # type: ignore[attr-defined]
    utils = types.ModuleType("huggingface_hub.utils")
    utils.build_hf_headers = lambda token=None: {"authorization": f"Bearer {token}"} if token else {}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils", utils)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    if header is None:
        with pytest.raises(ConflictError, match="redirects to"):
            look_up(Wanted("a/b", "c.safetensors"))
    else:
        assert look_up(Wanted("a/b", "c.safetensors")).authorization == header
    assert tokens == [sent]


# ---- names


@pytest.mark.parametrize(
    "name",
    ["", "x", ".", "..", "../x", "a/b", "a\\\\b", "/etc/passwd", "-rf", "--to", ".bashrc", "a\nb", "a\x1b[2Jb", "a\0b",
     "x.", "x ", "a:b", "a*b", "C:x", "\u202egpj.exe", "a\u202eb", "\udcff.safetensors", "x" * 201, "~"],
)  # fmt: skip
def test_names_of_files(name: str) -> None:
    with pytest.raises(UsageError):
        Wanted(REPOSITORY, name)


@pytest.mark.parametrize(
    "name", ["", "a/b/c", "../x", "a/..", "-a/b", "a/-b", "a b/c", "a/b\n", "a/b?x=1", "https://evil/x", "a/b#",
             "a--b/c", ".a/b", "a/.b", "a/b.", "a//b", "/a/b"],
)  # fmt: skip
def test_names_of_repositories(name: str) -> None:
    with pytest.raises(UsageError):
        Wanted(name, NAME)


@pytest.mark.parametrize("revision", ["", "../x", "a/../b", "-x", "a b", "a\nb", "/a", "a?b", "a#b", "a//b"])
def test_revisions(revision: str) -> None:
    with pytest.raises(UsageError):
        Wanted(REPOSITORY, NAME, revision)


def test_real_names() -> None:
    assert SDXL.name
    for repository in ("gpt2", "madebyollin/sdxl-vae-fp16-fix", "a/b_c.d", "A1/b"):
        for name in ("model.safetensors", "sd xl (1.0)+vae_0.9.safetensors", "模型.safetensors", "50% #1.safetensors"):
            for revision in ("main", "refs/pr/1", "v1.0", "462165984030d82259a11f4367a4eed129e94a7b"):
                assert Wanted(repository, name, revision)
