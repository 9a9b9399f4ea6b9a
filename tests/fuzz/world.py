"""What the fuzzer's commands find: checkouts, data sets, models, presets, journals; whole, interrupted and odd."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import stat
import struct
import zlib
from pathlib import Path
from typing import Any

from kohya_ext.cli import main as cli
from kohya_ext.install import installer
from tests.checkout import pretended, trees
from tests.checkout.pythons import KOHYA, copy_venv, make_venv
from tests.files.faults import killed_at
from tests.fuzz.verbs import Places
from tests.presets import guis

PRESET = {"optimizer": "AdamW8bit", "learning_rate": 1e-5, "epoch": 1, "max_token_length": "75", "train_dir": "images"}


STEMS = ("femme ewpp (1)", "a dog_2", "long " + "x" * 150, "é飛", "a\x1b[2J", "a(b)")


class World:
    """A folder full of material, and how to bring it back to what it was."""

    def __init__(self, root: Path, checkouts: dict[str, Path] | None = None) -> None:
        """checkouts: real trees to copy in, by name; the miniatures are there anyway."""
        self.root = root
        root.mkdir()
        self.python = make_venv(
            root / "venv", {**KOHYA, "diffusers": "0.25.0", "safetensors": "0.4.2", "toml": "0.10.2"}
        )
        self._checkouts(checkouts or {})
        self._images()
        self._models()
        self._texts()
        self._odd()
        self.places = Places(self._kinds())
        self.pristine = root.with_name(root.name + " pristine")
        shutil.copytree(root, self.pristine, symlinks=True, ignore=_not_files)
        self.whole = snapshot(root)

    def restore(self, now: dict[str, tuple[Any, ...]]) -> None:
        """Everything as it was at the beginning. now: what is there."""
        if now == self.whole:
            return
        for name in sorted(now.keys() - self.whole.keys(), reverse=True):
            _remove(self.root / name)
        for name in sorted(self.whole):
            if now.get(name) == self.whole[name]:
                continue
            target, source = self.root / name, self.pristine / name
            if now.get(name, ("",))[0] != self.whole[name][0]:
                _remove(target)
            if self.whole[name][0] == "folder":
                target.mkdir(exist_ok=True)
                target.chmod(int(self.whole[name][1]))
            elif source.is_symlink() or source.is_file():
                _remove(target)
                shutil.copy2(source, target, follow_symlinks=False)
        for name, kind in SPECIAL.items():
            if not os.path.lexists(self.root / name):
                _special(self.root / name, kind)
        self.whole = snapshot(self.root)

    def spoilt(self, name: str) -> dict[str, tuple[Any, ...]]:
        """The world as it was but for the file `name`, or what is in its place."""
        what = {entry: found for entry, found in self.whole.items() if entry != name}
        parent, _, last = name.rpartition("/")
        with os.scandir(self.root / parent) as entries:
            for entry in entries:
                if entry.name == last:
                    what[name] = _what(entry)
        return what

    def mutable(self) -> list[str]:
        """The files that are worth spoiling."""
        return [name for name, what in self.whole.items() if what[0] == "file" and not name.startswith("venv/")]

    def _checkouts(self, real: dict[str, Path]) -> None:
        for name, built in (("gui", "submodule"), ("old gui", "embedded"), ("scripts", "bare")):
            tree = trees.BUILDERS[built](self.root / name)
            if built != "bare":
                guis.write(guis.REGISTRY if built == "submodule" else guis.EMBEDDED, tree)
            copy_venv(self.root / "venv", tree / "venv")
        for name, source in real.items():
            shutil.copytree(source, self.root / name, symlinks=True)
            copy_venv(self.root / "venv", self.root / name / "venv")
        for name, built in (("installed", "gui"), ("interrupted", "gui"), ("taken back", "old gui")):
            shutil.copytree(self.root / built, self.root / name, symlinks=True)
        _command("install", "installed", "--yes", within=self)
        killed_at(40, lambda: _command("install", "interrupted", "--yes", within=self))
        _command("install", "taken back", "--yes", within=self)
        killed_at(30, lambda: _command("uninstall", "taken back", "--yes", within=self))
        half = self.root / "half"
        shutil.copytree(self.root / "gui", half, symlinks=True)
        shutil.rmtree(half / "sd-scripts")

    def _images(self) -> None:
        for name in ("images", "edited", "cut short"):
            folder = self.root / name
            folder.mkdir()
            for number, stem in enumerate(
                ("femme ewpp (1)", "a dog_2", "long " + "x" * 150, "é飛", "a\x1b[2J", "a(b)")
            ):
                (folder / f"{stem}.png").write_bytes(png(64 + number, 64))
                (folder / f"{stem}.txt").write_text(f"{stem[:20]}, a photo {'a' * 28}!\n", encoding="utf-8")
            (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(png(8, 8))
            (folder / "bomb.png").write_bytes(png(60_000, 60_000, rows=1))
            (folder / "cut.png").write_bytes(png(300, 300)[:200])
            (folder / "text.png").write_bytes(png(16, 16, text=b"\0" * 3_000_000))
            (folder / "a.jpg").write_bytes(b"")
            (folder / "deeper").mkdir()
            (folder / "deeper" / "b.webp").write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
        _command("captions", "prefix", "edited", "ewpp ", within=self)
        _command("captions", "to-names", "edited", within=self)
        killed_at(12, lambda: _command("captions", "prefix", "cut short", "x ", within=self))
        (self.root / "empty").mkdir()

    def _models(self) -> None:
        folder = self.root / "models"
        folder.mkdir()
        shapes = {
            "model.diffusion_model.input_blocks.0.0.weight": [4, 4, 3, 3],
            "first_stage_model.x": [4],
            "empty": [0],
        }
        metadata = {"ss_output_name": "# a", "modelspec.title": "```\n---\n<b>", "ss_tag_frequency": '{"a": {"b": 1}}'}
        for name in ("m", "m-ema", "m-000010", "m-ema-000010", "other"):
            (folder / f"{name}.safetensors").write_bytes(safetensors(shapes, metadata))
        lora = {"lora_unet_a.lora_down.weight": [4, 8], "lora_unet_a.lora_up.weight": [8, 4], "lora_unet_a.alpha": []}
        (folder / "lora.safetensors").write_bytes(safetensors(lora, {"ss_network_module": "networks.lora"}))
        child = os.fork()  # torch would make every later fork slower
        if child == 0:
            try:
                _train(folder)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        (folder / "pickle.ckpt").write_bytes(b"\x80\x02cos\nsystem\nq\0X\x02\0\0\0idq\1\x85q\2R.")
        (folder / "folder").mkdir()
        (folder / "folder" / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        (folder / "state.safetensors").write_bytes(safetensors({"w": [3]}, {"kohya_ext_ema": '{"steps": 1}'}))

    def _texts(self) -> None:
        folder = self.root / "files"
        folder.mkdir()
        (folder / "preset.json").write_text(json.dumps(PRESET))
        (folder / "long.json").write_text(json.dumps({**PRESET, **{f"key{n}": n for n in range(300)}}))
        (folder / "prompts.txt").write_text(
            "# == a\na red apple --w 512 --h 512 --d 1 --s 2 --l 7 --n ugly\n\n(a:1.2) \\(b\\)\n"
        )
        (folder / "prompts.toml").write_text(
            '[prompt]\nwidth = 64\n[[prompt.subset]]\nprompt = "a (b)"\nseed = 1\n[[prompt.subset]]\nsteps = 2\n'
        )
        (folder / "prompts.json").write_text('["a --w 64", {"prompt": "b", "height": 72, "seed": null}]')
        (folder / "CHANGELOG.md").write_text("# v2\n- b\n# v1\n- a\n")
        (folder / "page.md").write_text("---\nlicense: x\n---\n# Title\n\n## Notes\nmine\n")
        (self.root / "out").mkdir()
        (self.root / "out" / "there.safetensors").write_bytes(b"mine")
        (self.root / "out" / "there.json").write_bytes(b"{}")

    def _odd(self) -> None:
        folder = self.root / "odd"
        folder.mkdir()
        (folder / "empty").write_bytes(b"")
        (folder / "noise.json").write_bytes(bytes(range(256)) * 8)
        (folder / "deep.json").write_text("[" * 100_000)
        (folder / "wide.json").write_text('{"a": ' + "[[]," * 200_000 + "1]}")
        (folder / "digits.json").write_text('{"epoch": 1' + "0" * 5000 + ', "seed": 1e999, "x": NaN}')
        with (folder / "sparse.safetensors").open("wb") as file:
            file.truncate(1 << 36)
        for name, kind in SPECIAL.items():
            _special(self.root / name, kind)

    def _kinds(self) -> dict[str, tuple[str, ...]]:
        odd = tuple(f"odd/{path.name}" for path in sorted((self.root / "odd").iterdir()))
        named = {
            name: tuple(sorted(f"{name}/{p.name}" for p in (self.root / name).iterdir()))
            for name in ("models", "files")
        }
        checkouts = tuple(sorted(path.parent.name for path in self.root.glob("*/venv") if path.parent != self.root))
        folders = ("images", "edited", "cut short", "empty", "images/deeper", "missing", "images/a.jpg", "./images/")
        new = (
            "out/new.safetensors",
            "out/there.safetensors",
            "out/new.json",
            "out/new",
            "out/no/such",
            "out",
            "out/new.html",
            "out/" + "n" * 300,
            "out/\x1b[2J.json",
            "out/there.json",
            "images/a.jpg/x",
        )
        return {
            "checkout": (
                *checkouts,
                *checkouts,
                "half",
                "half/kohya_gui",
                "missing",
                "images",
                "gui/sd-scripts",
                *odd[:3],
            ),
            "folder": (*folders, *folders, *odd),
            "model": (*named["models"], *named["models"], *odd),
            "preset": (*named["files"], "sdxl-24gb", *odd),
            "text file": (*named["files"], *odd),
            "new": new,
            "python": ("venv/bin/python", "missing", "images/a.jpg", "/dev/null", "odd/fifo"),
        }


SPECIAL = {
    "odd/fifo": "fifo",
    "odd/fifo.json": "fifo",
    "odd/zero.safetensors": "/dev/zero",
    "odd/circle": "circle",
    "images/zero.png": "/dev/zero",
    "images/fifo.txt": "fifo",
    "images/fifo.png": "fifo",
}


def snapshot(root: Path) -> dict[str, tuple[Any, ...]]:
    """What lies below `root`: kind, mode, size, time of the last change to the nanosecond, and which file it is."""
    seen: dict[str, tuple[Any, ...]] = {}
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = f"{folder}{entry.name}"
                seen[name] = _what(entry)
                if seen[name][0] == "folder" and not (entry.name == "objects" and ".git/" in name):  # git's, never ours
                    waiting.append(f"{name}/")
    return seen


def _what(entry: os.DirEntry[str]) -> tuple[Any, ...]:
    if entry.is_symlink():
        return ("link", os.readlink(entry.path))  # noqa: PTH115
    found = entry.stat(follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        return ("folder", found.st_mode & 0o7777)
    if stat.S_ISREG(found.st_mode):
        return ("file", found.st_mode & 0o7777, found.st_size, found.st_mtime_ns, found.st_ino)
    return ("special", found.st_mode)


def differing(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> list[str]:
    """Names that came, went or changed; git's own index apart, which reading a state may renew."""
    names = [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]
    return sorted(
        name for name in names if not name.endswith((".git/index", "/index")) and "/.git/modules/" not in name
    )


def png(width: int, height: int, *, rows: int | None = None, text: bytes = b"") -> bytes:
    """A grey PNG; rows: how many of them are really there. text: a compressed comment."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress((b"\0" + b"\x80" * width) * min(height if rows is None else rows, height))
    comment = chunk(b"zTXt", b"a\0\0" + zlib.compress(text)) if text else b""
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + comment + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def safetensors(shapes: dict[str, list[int]], metadata: dict[str, str]) -> bytes:
    """A file of zeros in float32."""
    table: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, shape in shapes.items():
        size = 4
        for length in shape:
            size *= length
        table[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + bytes(end)


def _train(folder: Path) -> None:
    """A small model, and what became of it, where torch is."""
    from tests.lora import models

    base = models.random_weights(models.sd1())
    models.save(base, folder / "base.safetensors")
    models.save(models.changed(base), folder / "tuned.safetensors")


def _command(*words: str, within: World) -> None:
    """One command in the world, to make material; whatever it says."""
    nothing = io.StringIO()
    with (
        _chdir(within.root),
        _pretended(within),
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
        contextlib.suppress(SystemExit),
    ):
        cli.main(list(words))


@contextlib.contextmanager
def _chdir(folder: Path) -> Any:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def _pretended(world: World) -> Any:
    before = installer.run
    installer.run = pretended.run
    try:
        yield
    finally:
        installer.run = before


def _special(path: Path, kind: str) -> None:
    _remove(path)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(path.name if kind == "circle" else kind)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _not_files(folder: str, names: list[str]) -> set[str]:
    """FIFOs and the like, which cannot be copied, and what is huge."""
    left = set()
    for name in names:
        path = Path(folder, name)
        if not path.is_symlink() and not path.is_dir() and (not path.is_file() or path.stat().st_size > 1 << 30):
            left.add(name)
    return left
