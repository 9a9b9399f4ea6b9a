"""Data set configurations of sd-scripts (`--dataset_config`), against the release that reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from kohya_ext.core.errors import UnsupportedError
from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.dataset_schema import Tables, matches, read_tables, spoken
from kohya_ext.presets.findings import LEVELS, Finding
from kohya_ext.presets.fit import Fitted
from kohya_ext.presets.release import Release
from kohya_ext.presets.toml_document import TomlDocument, alike, reader_findings

STYLES = {"conditioning_data_dir": "controlnet", "metadata_file": "finetuning"}
REQUIRED = {"dreambooth": ("image_dir",), "finetuning": ("metadata_file",)}
MASKED_LOSS, ASKS_FIRST = "library/custom_train_functions.py", 'if "conditioning_images" in batch'
STEPS, SMALLEST, LARGEST = 64, 256, 1024  # upstream's own: bucket step, shortest and longest side


@dataclass(frozen=True)
class Level:
    """One table: its name for people, its settings, and what it may hold."""

    place: str
    values: Mapping[str, Any]
    allowed: Mapping[str, str]


def tables_of(release: Release) -> Tables:
    """Raises UnsupportedError where the release has none that could be read."""
    tables = read_tables(release.training)
    if tables is None:
        raise UnsupportedError(
            f"{release.name} has no data set configurations that could be read (library/config_util.py)"
        )
    return tables


def dataset_findings(document: TomlDocument, release: Release) -> list[Finding]:
    """Everything that is wrong or doubtful about a data set configuration, the worst first."""
    tables = tables_of(release)
    findings = [*reader_findings(document), *_top(document.content, release)]
    for level in levels(document.content, tables):
        findings += _held(level, tables)
    for place, dataset in _datasets(document.content):
        findings += _subsets(place, dataset, document.content)
    findings += _masks(document.content, release)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def _masks(content: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    """Up to sd-scripts 0.8.6 the masked loss asks every batch for a mask."""
    text = (release.training and release.training.read(MASKED_LOSS)) or ""
    _, found, body = text.partition("def apply_masked_loss(")
    masked = [style_of(dataset) == "controlnet" for _, dataset in _datasets(content)]
    if found and ASKS_FIRST not in body.partition("\ndef ")[0] and any(masked) and not all(masked):
        place = _datasets(content)[masked.index(False)][0]
        effect = (
            f"with --masked_loss {release.name} stops at its images (KeyError), which have no conditioning_data_dir"
        )
        fix = "give it white masks of the sizes of its images, or train without --masked_loss"
        yield Finding("warning", "masked-and-unmasked", place, None, effect, fix)


def levels(content: Mapping[str, Any], tables: Tables) -> Iterator[Level]:
    """Every table of a configuration."""
    general = content.get("general")
    if isinstance(general, dict):
        yield Level("general", general, tables.general)
    for place, dataset in _datasets(content):
        style = style_of(dataset)
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        yield Level(place, own, tables.of_dataset(style))
        for number, subset in enumerate(subsets_of(dataset)):
            yield Level(f"{place}.subsets[{number}]", subset, tables.of_subset(style))


def _datasets(content: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    given = content.get("datasets")
    items = given if isinstance(given, list) else []
    return [(f"datasets[{number}]", one) for number, one in enumerate(items) if isinstance(one, dict)]


def subsets_of(dataset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables among the subsets."""
    given = dataset.get("subsets")
    return [one for one in given if isinstance(one, dict)] if isinstance(given, list) else []


def style_of(dataset: Mapping[str, Any]) -> str:
    """As sd-scripts tells them apart: by a setting that all subsets have."""
    subsets = subsets_of(dataset)
    style = (style for key, style in STYLES.items() if subsets and all(key in subset for subset in subsets))
    return next(style, "dreambooth")


def _top(content: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    """Tables and settings outside of general and datasets."""
    for key, value in content.items():
        if key in ("general", "datasets"):
            continue
        effect = f"training stops: extra keys not allowed @ data['{key}']"
        known = any(key in release.arguments_of(script) for script in release.trainers())
        fix = "move it into [general]" if not isinstance(value, dict) else "remove the table"
        fix = f"it is a setting of the training, for --config_file: {fix}" if known else fix
        yield Finding("error", "extra-key", key, None if isinstance(value, (dict, list)) else value, effect, fix)


def _held(level: Level, tables: Tables) -> Iterator[Finding]:
    for key, value in level.values.items():
        name = f"{level.place}.{key}"
        types = level.allowed.get(key)
        if types is None:
            effect = f"training stops: extra keys not allowed @ {name}"
            yield Finding("error", "extra-key", name, value, effect, _where(key, level, tables))
        elif not matches(value, types):
            effect = f"training stops: {key} takes {spoken(types)}, nothing else"
            usable, better = converted(value, types)
            yield Finding(
                "error", "wrong-type", name, value, effect, f"write {_shown(better)}" if usable else "change it"
            )


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _where(key: str, level: Level, tables: Tables) -> str:
    """Where a setting belongs that is not allowed in its table."""
    better = renamed(key, level.allowed, tables)
    if better:
        return f"rename it to {better}"
    if key in tables.general and ".subsets" in level.place:
        return "move it up to its [[datasets]] or to [general]"
    if key in {**tables.of_subset("dreambooth"), **tables.of_subset("finetuning"), **tables.of_subset("controlnet")}:
        return "move it into [[datasets.subsets]], where the kind of data set has it"
    near = get_close_matches(key, level.allowed, n=1, cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "remove it: this release has no such setting"


def renamed(key: str, allowed: Mapping[str, str], tables: Tables) -> str:
    """The configuration's name for a setting of the command line."""
    plain = key.removeprefix("--").replace("-", "_")
    names = (plain, tables.renamed.get(plain, ""))
    return next((name for name in names if name != key and name in allowed), "")


def _subsets(place: str, dataset: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[Finding]:
    """What a data set lacks, and what it holds for nothing."""
    subsets = subsets_of(dataset)
    if not subsets:
        yield Finding(
            "error",
            "no-images",
            place,
            None,
            "training stops: it has no [[datasets.subsets]]",
            "add one with image_dir",
        )
    kinds = {"metadata_file" in subset for subset in subsets}
    if len(kinds) > 1 and style_of(dataset) != "controlnet":
        effect = "training stops: subsets with and without metadata_file cannot be in one data set"
        yield Finding("error", "mixed-styles", place, None, effect, "give them a [[datasets]] each")
    else:
        for number, subset in enumerate(subsets):
            for key in REQUIRED.get(style_of(dataset), ()):
                if key not in subset:
                    effect = f"training stops: required key not provided @ {place}.subsets[{number}].{key}"
                    yield Finding("error", "missing-key", f"{place}.subsets[{number}].{key}", None, effect, "add it")
    folders: set[tuple[str, str]] = set()
    for number, subset in enumerate(subsets):
        repeats = ascended("num_repeats", subset, dataset, content)
        if isinstance(repeats, int) and repeats < 1:
            effect = "sd-scripts ignores a subset that is repeated less than once"
            yield Finding(
                "warning", "no-repeats", f"{place}.subsets[{number}].num_repeats", repeats, effect, "set it to 1"
            )
        folder = (str(subset.get("image_dir")), str(subset.get("metadata_file")))
        if folder in folders:
            effect = "sd-scripts ignores a second subset of the same images"
            yield Finding(
                "warning", "same-images", f"{place}.subsets[{number}].image_dir", folder[0], effect, "remove one"
            )
        folders.add(folder)
    yield from _buckets(place, dataset, content)


def ascended(key: str, *tables: Mapping[str, Any]) -> Any:
    """A setting as sd-scripts finds it: in the table, else in those above it."""
    *inner, top = tables
    general = top.get("general")
    found = [*inner, general if isinstance(general, dict) else {}]
    return next((table[key] for table in found if key in table), None)


def _buckets(place: str, dataset: Mapping[str, Any], content: Mapping[str, Any]) -> Iterator[Finding]:
    def number(key: str, fallback: int) -> int:
        value = ascended(key, dataset, content)
        return value if isinstance(value, int) and value > 0 else fallback

    size = ascended("resolution", dataset, content)
    sides = [side for side in (size if isinstance(size, list) else [size]) if isinstance(side, int)]
    if not sides or ascended("enable_bucket", dataset, content) is not True:
        return
    steps, low, high = (
        number("bucket_reso_steps", STEPS),
        number("min_bucket_reso", SMALLEST),
        number("max_bucket_reso", LARGEST),
    )
    if ascended("min_bucket_reso", dataset, content) is not None and low - low % steps > min(sides):
        effect = f"training stops: min_bucket_reso must be equal or less than resolution ({min(sides)})"
        yield Finding(
            "error", "bucket-range", f"{place}.min_bucket_reso", low, effect, f"set it to {min(sides)} or less"
        )
    if ascended("max_bucket_reso", dataset, content) is not None and high + -high % steps < max(sides):
        effect = f"training stops: max_bucket_reso must be equal or greater than resolution ({max(sides)})"
        yield Finding(
            "error", "bucket-range", f"{place}.max_bucket_reso", high, effect, f"set it to {max(sides)} or more"
        )


def converted(value: Any, types: str) -> tuple[bool, Any]:
    """Whether a value has a form of that type which means the same, and that form."""
    form, _, names = types.rpartition(":")
    kinds = names.split("|")
    if form and isinstance(value, str):
        parts = [parse_number(part) for part in value.split(",")]
        value = parts if len(parts) == 2 else parts[0]
    if form and isinstance(value, list):
        items = [converted(item, names)[1] for item in alike(value)]
        return matches(items, types), items
    if isinstance(value, (list, dict)):
        return False, value
    if kinds == ["bool"]:
        word = str(value).strip().casefold()
        return word in ("true", "false", "1", "0", "yes", "no", "on", "off"), word in ("true", "1", "yes", "on")
    if kinds == ["str"]:
        return not isinstance(value, bool), str(value)
    number = None if value is None or value == "" else parse_number(value)
    if number is None or isinstance(value, bool):
        return False, value
    if "float" in kinds:
        return True, float(number) if "int" not in kinds else number
    return number == int(number), int(number)


def fit_dataset(document: TomlDocument, release: Release) -> Fitted:
    """A configuration that the release reads: what is right stays as it is.

    Names and types are put right where the meaning is plain; what the release does not know goes.
    """
    tables = tables_of(release)
    fitted = Fitted()
    for key, value in document.content.items():
        if key not in ("general", "datasets"):
            fitted.note(
                "dropped",
                key,
                value if not isinstance(value, (dict, list)) else "a table",
                None,
                "not a part of a data set configuration",
            )
    general = document.content.get("general")
    if isinstance(general, dict):
        fitted.values["general"] = _fit_level(Level("general", general, tables.general), tables, fitted)
    datasets = []
    for place, dataset in _datasets(document.content):
        style = style_of(dataset)
        own = {key: value for key, value in dataset.items() if key != "subsets"}
        new = _fit_level(Level(place, own, tables.of_dataset(style)), tables, fitted)
        allowed = tables.of_subset(style)
        new["subsets"] = [
            _fit_level(Level(f"{place}.subsets[{number}]", subset, allowed), tables, fitted)
            for number, subset in enumerate(subsets_of(dataset))
        ]
        datasets.append(new)
    fitted.values["datasets"] = datasets
    return fitted


def _fit_level(level: Level, tables: Tables, fitted: Fitted) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in level.values.items():
        name = f"{level.place}.{key}"
        better = renamed(key, level.allowed, tables) if key not in level.allowed else ""
        if better and better not in level.values:
            fitted.note("renamed", name, value, value, f"a data set configuration calls it {better}")
            key, name = better, f"{level.place}.{better}"
        types = level.allowed.get(key)
        if types is None:
            fitted.note("dropped", name, value, None, "this release stops on it")
            continue
        usable, new = (True, value) if matches(value, types) else converted(value, types)
        if not usable:
            fitted.note("dropped", name, value, None, f"it takes {spoken(types)}, nothing else")
            continue
        if new != value or type(new) is not type(value):
            fitted.note("converted", name, value, new, f"it takes {spoken(types)}, nothing else")
        result[key] = new
    return result


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting by the table that it stands in: `datasets[0].subsets[1].image_dir`."""
    found: dict[str, Any] = {}
    general = content.get("general")
    tables = [("general", general)] if isinstance(general, dict) else []
    for place, dataset in _datasets(content):
        tables.append((place, {key: value for key, value in dataset.items() if key != "subsets"}))
        tables += [(f"{place}.subsets[{number}]", subset) for number, subset in enumerate(subsets_of(dataset))]
    for place, table in tables:
        found.update({f"{place}.{key}": value for key, value in table.items()})
    return {**{key: value for key, value in content.items() if key not in ("general", "datasets")}, **found}
