"""A server that breaks off, lies and corrupts: the file comes whole in the end, or there is none of its name."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kohya_ext.basemodel import fetch as fetching
from kohya_ext.basemodel import remote, transfer
from kohya_ext.basemodel.fetch import Fetched, Voice, fetch, part_of
from kohya_ext.basemodel.remote import Remote, Wanted
from kohya_ext.core.errors import ConflictError
from kohya_ext.files.lock import locked
from tests.basemodel.hub import CDN, NAME, REPOSITORY, Hub, serving

CONTENT = random.Random(1).randbytes(50_000)


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with serving(Hub(CONTENT)) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The server in a good mood, with an empty folder before it."""
    server.moods, server.asked, server.watched, server.seen_early = [], [], tmp_path / NAME, False

    def look_up(wanted: Wanted) -> Remote:
        return Remote(server.address + CDN, len(CONTENT), server.sha256)

    monkeypatch.setattr(fetching, "look_up", look_up)
    monkeypatch.setattr(transfer, "BLOCK", 4096)
    return server


def run(folder: Path, *, overwrite: bool = False) -> Fetched:
    return fetch(Wanted(REPOSITORY, NAME), folder, overwrite=overwrite, voice=Voice(pause=lambda _: None))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_right_at_once(hub: Hub, tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found.path.read_bytes() == CONTENT and not found.reused and names(tmp_path) == [NAME]
    assert hub.asked == [(0, "")] and not hub.seen_early


def test_breaks_off_lies_corrupts_and_then_serves_right(hub: Hub, tmp_path: Path) -> None:
    hub.moods = ["breaks off", "says less", "corrupt", "says more", "refuse", "503", "breaks off", "right"]
    assert run(tmp_path).path.read_bytes() == CONTENT and names(tmp_path) == [NAME]
    assert not hub.seen_early
    starts = [start for start, _ in hub.asked]
    assert starts == [0, 25_000, 37_500, 0, 0, 0, 0, 25_000], "goes on where it broke off; begins anew when corrupt"


@pytest.mark.parametrize(
    "mood", ["breaks off", "says less", "no ranges", "wrong range", "web page", "503", "416", "refuse"]
)
def test_one_bad_connection(mood: str, hub: Hub, tmp_path: Path) -> None:
    part_of(tmp_path / NAME, hub.sha256).write_bytes(CONTENT[:1000])
    hub.moods = [mood]
    assert run(tmp_path).path.read_bytes() == CONTENT and not hub.seen_early and names(tmp_path) == [NAME]
    assert hub.asked[0][0] == 1000


def test_a_later_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.moods = ["breaks off", *["refuse"] * transfer.TRIES]
    with pytest.raises(ConflictError, match=r"25000 of 50000 bytes are missing.*is kept"):
        run(tmp_path)
    assert names(tmp_path) == [part_of(tmp_path / NAME, hub.sha256).name]
    found = run(tmp_path)
    assert found.resumed == 25_000 and found.path.read_bytes() == CONTENT and names(tmp_path) == [NAME]
    assert hub.asked[-1][0] == 25_000


def test_corrupt_every_time(hub: Hub, tmp_path: Path) -> None:
    hub.moods = ["corrupt", "corrupt"]
    with pytest.raises(ConflictError, match="twice sent something other than the published file"):
        run(tmp_path)
    assert names(tmp_path) == []


def test_a_part_that_is_wrong(hub: Hub, tmp_path: Path) -> None:
    part_of(tmp_path / NAME, hub.sha256).write_bytes(bytes(30_000))
    assert run(tmp_path).path.read_bytes() == CONTENT
    part_of(tmp_path / NAME, hub.sha256).write_bytes(bytes(60_000))
    (tmp_path / NAME).unlink()
    assert run(tmp_path).path.read_bytes() == CONTENT


def test_a_part_that_is_whole(hub: Hub, tmp_path: Path) -> None:
    part_of(tmp_path / NAME, hub.sha256).write_bytes(CONTENT)
    assert run(tmp_path).path.read_bytes() == CONTENT and hub.asked == []


def test_a_part_of_another_version_is_left_alone(hub: Hub, tmp_path: Path) -> None:
    other = part_of(tmp_path / NAME, "f" * 64)
    other.write_bytes(b"other")
    assert run(tmp_path).path.read_bytes() == CONTENT and other.read_bytes() == b"other"


def test_a_file_that_is_there(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(CONTENT)
    assert run(tmp_path).reused and hub.asked == []
    for wrong in (b"short", CONTENT[:-1] + b"x"):
        (tmp_path / NAME).write_bytes(wrong)
        with pytest.raises(ConflictError, match="is not the file that"):
            run(tmp_path)
        assert (tmp_path / NAME).read_bytes() == wrong and hub.asked == []
    assert run(tmp_path, overwrite=True).path.read_bytes() == CONTENT


def test_no_room(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "LEFT_FREE", 1 << 60)
    with pytest.raises(ConflictError, match="GB free"):
        run(tmp_path)
    assert hub.asked == [] and names(tmp_path) == []


def test_two_at_once(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process is stopped by the folder's lock; here by the lock in its place."""
    entered = []

    def held(root: Path, wait_seconds: float) -> object:
        entered.append((root, wait_seconds))
        return locked(root, wait_seconds)

    monkeypatch.setattr(fetching, "locked", held)
    run(tmp_path)
    assert entered == [(tmp_path, 0.0)]


MOODS = st.sampled_from(
    [
        "breaks off",
        "says less",
        "says more",
        "no ranges",
        "wrong range",
        "web page",
        "503",
        "416",
        "403",
        "refuse",
        "corrupt",
    ]
)


@settings(max_examples=25)
@given(moods=st.lists(MOODS, max_size=7), kept=st.integers(0, 60_000))
def test_any_moods(moods: list[str], kept: int, hub: Hub, tmp_path: Path) -> None:
    """However it is served: the right file, or none under its name."""
    target = tmp_path / NAME
    target.unlink(missing_ok=True)
    part_of(target, hub.sha256).write_bytes((CONTENT * 2)[:kept])
    hub.moods, hub.seen_early = list(moods), False
    try:
        run(tmp_path)
    except ConflictError:
        assert not target.exists()
    else:
        assert target.read_bytes() == CONTENT and names(tmp_path) == [NAME]
    assert not hub.seen_early


def test_what_keeps_the_hub_away_is_said_in_the_systems_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """requests and urllib3 wrap it in three exceptions whose texts quote each other."""
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> None:
        try:
            raise OSError(113, "No route to host")
        except OSError as error:
            raise RuntimeError(f"(MaxRetryError('HTTPSConnectionPool(... {error!r}'))") from error

    for name in remote.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "get_hf_file_metadata", unreachable)
    with pytest.raises(ConflictError, match=r"the hub cannot be reached \(RuntimeError: No route to host\)\. Is this"):
        remote.look_up(Wanted(REPOSITORY, NAME))
