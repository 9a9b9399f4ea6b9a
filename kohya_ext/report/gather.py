"""What a run has left: the record of its validations, losses and settings, its logs, samples and checkpoints."""

from __future__ import annotations

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from kohya_ext.core.errors import KohyaExtError, UsageError
from kohya_ext.files.regular import read_text
from kohya_ext.report import events
from kohya_ext.report.events import Series
from kohya_ext.spec import judged
from kohya_ext.spec.judged import Judged
from kohya_ext.spec.outputs import BEST_METADATA, BEST_SUFFIX, EMA_SUFFIX, SAVED
from kohya_ext.tensors.header import read_header
from kohya_ext.validation import records
from kohya_ext.validation.records import Row

# tags of the loss of a step in Kohya's logs, the first that is there counts
LOSSES = ("loss/current", "loss", "loss/average", "avr_loss")
RATE, LEARNING_RATE = "kohya_ext/effective_lr/", "lr"
IMAGES = (".png", ".jpg", ".jpeg", ".webp")
SAMPLES, SHEETS = "sample", ("sheet", "grid")
_OF_EMA = "EMA, "  # before the epoch or step of its samples
_SAMPLE = re.compile(r"(?P<name>.*?)_?(?:e(?P<epoch>\d{6})|(?P<step>\d{6,}))_(?P<number>\d{2})_")
# the rows of the settings that come from the checkpoint's metadata where the run has recorded none
_PREFIX = "ss_"
_LONGEST = 200  # characters of a setting
_SKIPPED = ("ss_tag_frequency", "ss_bucket_info", "ss_dataset_dirs", "ss_datasets", "ss_reg_dataset_dirs")


@dataclass(frozen=True)
class Sample:
    """An image that the run has drawn. when: "epoch 3" or "step 200". number: of its prompt."""

    path: Path
    when: str
    order: tuple[int, int]
    number: int


@dataclass(frozen=True)
class Gathered:
    """All that is known of a run. losses: (step, loss). rates: tag -> (step, value). best: metadata of NAME-best.

    ends: epoch, from 1 -> its last step. judged: what `grid` has found about its checkpoints.
    """

    folder: Path
    name: str
    rows: tuple[Row, ...]
    losses: tuple[tuple[int, float], ...]
    rates: Series
    learning_rates: Series
    settings: Mapping[str, str]
    samples: tuple[Sample, ...]
    sheets: tuple[Path, ...]
    checkpoints: tuple[Path, ...]
    best: Mapping[str, str]
    ends: Mapping[int, int]
    judged: tuple[Judged, ...]


def gather(folder: Path, name: str | None = None, logs: Path | None = None) -> Gathered:
    """Look at an output folder. name: of the output, where it holds several; logs: Kohya's --logging_dir.

    Raises UsageError where there is no run, or more than one and none is named.
    """
    chosen = _chosen(folder, name)
    series: Series = {}
    with _unreadable():
        series = events.scalars(logs if logs is not None else folder)
    losses: list[tuple[int, float]] = []
    rows: list[Row] = []
    settings: Mapping[str, str] = {}
    ends: Mapping[int, int] = {}
    with _unreadable():
        losses = _by_step(records.losses(folder / f"{chosen}{records.LOSSES}"))
        ends = records.epoch_ends(folder / f"{chosen}{records.LOSSES}")
    with _unreadable():
        rows = records.validations(folder / f"{chosen}{records.VALIDATIONS}")
    with _unreadable():
        settings = records.settings(folder / f"{chosen}{records.SETTINGS}")
    if not losses:
        losses = next((series[tag] for tag in LOSSES if tag in series), [])
    checkpoints = tuple(sorted(_checkpoints(folder, chosen)))
    return Gathered(
        folder=folder, name=chosen, rows=tuple(rows), losses=tuple(losses),
        rates={tag.removeprefix(RATE): points for tag, points in series.items() if tag.startswith(RATE)},
        learning_rates={tag: points for tag, points in series.items() if tag.split("/")[0] == LEARNING_RATE},
        settings=settings or _recorded(checkpoints), samples=tuple(_samples(folder, chosen)),
        sheets=tuple(_sheets(folder)), checkpoints=checkpoints, best=_best(folder, chosen),
        ends=ends, judged=tuple(_judged(folder, chosen)),
    )  # fmt: skip


def _unreadable() -> contextlib.suppress:
    """A record that is missing or damaged does not hide the rest."""
    return contextlib.suppress(OSError, ValueError, KohyaExtError)


def _by_step(losses: Iterable[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean of the batches of each step: there are several with gradient accumulation."""
    steps: dict[int, list[float]] = defaultdict(list)
    for step, loss in losses:
        steps[step].append(loss)
    return [(step, sum(values) / len(values)) for step, values in sorted(steps.items())]


def _chosen(folder: Path, name: str | None) -> str:
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder: give the output folder of a run (--output_dir)")
    found = _names(folder)
    if name is not None:
        found |= _saved_names(folder)
        if name not in found:
            known = f"; it has {', '.join(sorted(found))}" if found else ""
            raise UsageError(f"{folder} holds no run called {name!r}{known}")
        return name
    if not found:
        raise UsageError(
            f"{folder} holds no run: neither checkpoints nor the records that a run with --kohya_ext_validate leaves"
        )
    if len(found) > 1:
        raise UsageError(f"{folder} holds several runs ({', '.join(sorted(found))}); choose one with --name NAME")
    return next(iter(found))


def _names(folder: Path) -> set[str]:
    names = set()
    for path in folder.iterdir():
        for suffix in (records.VALIDATIONS, records.LOSSES, records.SETTINGS):
            if path.name.endswith(suffix):
                names.add(path.name.removesuffix(suffix))
    return names or _saved_names(folder)


def _saved_names(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.safetensors") if (name := _name_of(path))}


def _name_of(path: Path) -> str:
    match = SAVED.fullmatch(path.stem.removesuffix(BEST_SUFFIX))
    return match["name"] if match else ""


def _checkpoints(folder: Path, name: str) -> list[Path]:
    return [path for path in folder.glob("*.safetensors") if _name_of(path) == name]


def _recorded(checkpoints: Iterable[Path]) -> dict[str, str]:
    """The settings in the metadata of the newest checkpoint; a full fine-tune records hardly any."""
    for path in reversed(list(checkpoints)):
        with _unreadable():
            found = read_header(path).metadata
            return {
                key.removeprefix(_PREFIX): value
                for key, value in sorted(found.items())
                if key.startswith(_PREFIX) and key not in _SKIPPED and value != "None" and len(value) <= _LONGEST
            }
    return {}


def _best(folder: Path, name: str) -> dict[str, str]:
    with _unreadable():
        found = read_header(folder / f"{name}{BEST_SUFFIX}.safetensors").metadata
        return {key.removeprefix(BEST_METADATA): value for key, value in found.items() if key.startswith(BEST_METADATA)}
    return {}


def _samples(folder: Path, name: str) -> list[Sample]:
    found = []
    for path in (folder / SAMPLES).glob("*") if (folder / SAMPLES).is_dir() else ():
        match = _SAMPLE.match(path.name)
        if (
            match is None
            or path.suffix.lower() not in IMAGES
            or match["name"].removesuffix(EMA_SUFFIX) not in ("", name)
        ):
            continue
        ema = _OF_EMA if match["name"].endswith(EMA_SUFFIX) else ""
        kind, count = ("epoch", int(match["epoch"])) if match["epoch"] else ("step", int(match["step"]))
        order = (int(kind == "step"), count)
        found.append(Sample(path, f"{ema}{kind} {count}", order, int(match["number"])))
    return sorted(found, key=lambda one: (one.order, one.when.startswith(_OF_EMA), one.number, one.path.name))


def _sheets(folder: Path) -> list[Path]:
    """The contact sheets of `kohya-ext grid` in the folder, and in those directly below it."""
    found = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.suffix.lower() in IMAGES]
    return sorted(path for path in found if path.parent.name != SAMPLES and any(w in path.stem for w in SHEETS))


def _judged(folder: Path, name: str) -> Iterator[Judged]:
    """What was found about each checkpoint of the run, in the folder and in those directly below it."""
    seen = set()
    for pattern in (judged.FILE, f"*/{judged.FILE}"):
        for path in sorted(folder.glob(pattern)):
            with _unreadable():
                for one in judged.decoded(read_text(path)):
                    match = SAVED.fullmatch(one.model)
                    if match and match["name"] == name and one.model not in seen:
                        seen.add(one.model)
                        yield one


def by_time(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """The samples of each epoch or step, in order."""
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.when].append(sample)
    return dict(groups)
