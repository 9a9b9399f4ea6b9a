"""`kohya-ext presets`: what ships with us, and any preset against the GUI that is installed."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli import presets_apply, presets_flat, presets_toml
from kohya_ext.cli.common import add_checkout, add_json, find_checkout, find_gui
from kohya_ext.cli.parser import Parser
from kohya_ext.cli.preset_lookup import (
    NAME_HELP,
    TABS,
    UNREADABLE_FIX,
    is_toml,
    preset_named,
    presets_of,
    release_of,
    written,
)
from kohya_ext.cli.presets_measured import say_measured
from kohya_ext.core.console import Output
from kohya_ext.core.errors import DONE, FOUND_PROBLEMS, UsageError

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout
    from kohya_ext.presets.document import Preset
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.release import Release

MEASURED_HELP = "also say what runs with these settings have measured there; default: the current folder's checkout"
MISSING_SHOWN = 3
ONE_LINE = {"missing-key": "missing", "neutral-key": ""}  # rule -> what the line says of its keys
WIDTH = 100  # of running text, next to its label


class _AnyOrder(Parser):
    """Accepts `NAME --data DIR CHECKOUT` as well."""

    any_order = True


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group."""
    group = subparsers.add_parser("presets", help="list, show, check, fit and compare presets; run one without the GUI")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_AnyOrder)

    verb = verbs.add_parser("list", help="list the presets that ship with kohya_ext")
    add_json(verb)
    verb.set_defaults(run=list_presets)

    verb = verbs.add_parser("show", help="show one preset: its origin, and every setting with its meaning")
    verb.add_argument("name", metavar="NAME", help=NAME_HELP)
    verb.add_argument("checkout", nargs="?", metavar="CHECKOUT", help=MEASURED_HELP)
    add_json(verb)
    verb.set_defaults(run=show)

    verb = verbs.add_parser("diff", help="show the settings in which two presets differ")
    verb.add_argument("first", metavar="A", help=NAME_HELP)
    verb.add_argument("second", metavar="B", help=NAME_HELP)
    add_json(verb)
    verb.set_defaults(run=diff)

    verb = verbs.add_parser("schema", help="show the fields of the installed GUI, read from its source")
    add_checkout(verb)
    verb.add_argument("--tab", choices=TABS, default="finetune")
    add_json(verb)
    verb.set_defaults(run=schema)

    _register_check(verbs)
    presets_apply.register(verbs)
    _register_rate(verbs)


def _register_rate(verbs: argparse._SubParsersAction[Any]) -> None:
    verb = verbs.add_parser("rate", help="AdaCoor's learning rate for what you know of another optimizer")
    verb.add_argument(
        "--like",
        dest="reference",
        nargs=2,
        required=True,
        metavar=("OPTIMIZER", "RATE"),
        help="an optimizer and its learning rate, for example: adamw 1e-4",
    )
    verb.add_argument("--steps", required=True, type=int, metavar="N", help="optimizer steps of the whole training")
    verb.add_argument("--eps", type=float, help="AdaCoor's eps (default: the guide's 1e-8)")
    add_json(verb)
    verb.set_defaults(run=rate)


def _register_check(verbs: argparse._SubParsersAction[Any]) -> None:
    verb = verbs.add_parser(
        "check", help="check presets against the installed GUI and training code; exit code 1 on errors"
    )
    verb.add_argument("files", nargs="*", metavar="FILE", help=f"{NAME_HELP}; a folder is taken as the checkout")
    verb.add_argument("--all", action="store_true", help="every preset in the checkout: Kohya's, yours, kohya_ext's")
    verb.add_argument("--tab", choices=TABS, help="when the path does not tell it")
    verb.add_argument("--guide", action="store_true", help="also say where a preset departs from the guide's advice")
    verb.add_argument("--gradio", type=int, metavar="MAJOR", help="gradio's major version, if not the one pinned")
    presets_toml.add_script(verb)
    add_json(verb)
    verb.set_defaults(run=check)


def list_presets(arguments: argparse.Namespace) -> int:
    """Name, memory and title of each preset."""
    from kohya_ext.presets.document import bundled

    out = Output("presets list", arguments.json)
    rows: list[dict[str, Any]] = []
    for preset in bundled():
        memory = preset.about.get("vram", {})
        title = str(preset.about.get("title", ""))
        tier = memory.get("tier_gb") if isinstance(memory, dict) else None
        rows.append({"name": preset.name, "tab": preset.tab, "vram_gb": tier, "title": title})
        out.row(f"{preset.name:<18} {preset.tab:<10} {f'{tier} GB':>6}  {title}")
    return out.finish(DONE, presets=rows)


def show(arguments: argparse.Namespace) -> int:
    """One preset, grouped like the GUI."""
    from kohya_ext.presets.settings import described, grouped

    if is_toml(arguments.name):
        return presets_toml.show(arguments)
    out = Output("presets show", arguments.json)
    preset = preset_named(arguments.name, None)
    _show_about(preset, out)
    measured = say_measured(preset, arguments.checkout, out)
    groups = grouped(list(preset.values))
    for section, keys in groups.items():
        out.line()
        out.row(section)
        for key in keys:
            out.row(f"  {key:<34} {written(preset.values[key]):<16} {described(key)}".rstrip())
    found = {"about": dict(preset.about), "values": dict(preset.values), "measured": measured, "sections": groups}
    return out.finish(DONE, name=preset.name, tab=preset.tab, **found)


def _show_about(preset: Preset, out: Output) -> None:
    about = preset.about
    out.row(f"{preset.name} ({preset.tab} tab)")
    for label in ("title", "origin", "date"):
        if about.get(label):
            out.item(label, _wrapped(about[label]))
    memory = about.get("vram")
    if isinstance(memory, dict):
        out.item("memory", f"{memory.get('tier_gb')} GB\n{_wrapped(memory.get('estimate', ''))}")
    for label, key in (("requires", "requires"), ("fill in", "fill_in")):
        if isinstance(about.get(key), list) and about[key]:
            out.item(label, _wrapped(", ".join(map(str, about[key]))))
    for label, key in (("warning", "warnings"), ("note", "notes")):
        for note in about.get(key, []) if isinstance(about.get(key), list) else []:
            out.item(label, _wrapped(note))
    if isinstance(about.get("derived"), dict):
        for keys, reason in about["derived"].items():
            out.item("derived", _wrapped(f"{keys}: {reason}"))
    if about.get("extract"):
        out.item("afterwards", "\n".join([_wrapped(about["extract"]), str(about.get("extract_command", ""))]))


def _wrapped(text: Any) -> str:
    return textwrap.fill(str(text), WIDTH)


def diff(arguments: argparse.Namespace) -> int:
    """The settings that differ; exit code 0 either way, like a look at both."""
    from kohya_ext.presets.settings import described, grouped

    out = Output("presets diff", arguments.json)
    (first, before_all), (second, after_all) = _compared(arguments.first), _compared(arguments.second)
    keys = sorted(set(before_all) | set(after_all))
    differing = [key for key in keys if not _same(before_all.get(key), after_all.get(key))]
    for section, members in grouped(differing).items():
        out.row(section)
        for key in members:
            before, after = (written(values.get(key, ...)) for values in (before_all, after_all))
            out.row(f"  {key:<34} {before:<16} -> {after:<16} {described(key)}".rstrip())
    if not differing:
        out.line("no difference")
    rows = {key: [before_all.get(key), after_all.get(key)] for key in differing}
    return out.finish(DONE, first=first, second=second, differences=rows)


def _compared(name: str) -> tuple[str, Mapping[str, Any]]:
    """Name and settings of a preset, or of a TOML file."""
    if is_toml(name):
        return presets_toml.named_values(name)
    preset = preset_named(name, None)
    return preset.name, preset.values


def _same(first: Any, second: Any) -> bool:
    """Equal, and both switches or neither: 1 is not true here."""
    return first == second and isinstance(first, bool) is isinstance(second, bool)


def schema(arguments: argparse.Namespace) -> int:
    """The fields of one tab. As JSON nothing but the fields, by key."""
    out = Output("presets schema", arguments.json)
    release = release_of(find_gui(arguments.checkout, out), arguments.tab)
    if arguments.json:
        print(json.dumps(release.schema.as_json(), indent=2))
        return DONE
    for note in release.schema.notes:
        out.warn(note)
    for key, one in release.schema.fields.items():
        limits = "" if one.minimum is None and one.maximum is None else f" {one.minimum}..{one.maximum}"
        choices = "" if one.choices is None else f" {', '.join(map(str, one.choices[:8]))}"
        exact = "" if one.exact else f"  (only the running GUI knows: {', '.join(one.inexact) or 'everything'})"
        out.row(f"{key:<38} {one.component or '?':<9} {written(one.default):<10}{limits}{choices}{exact}")
    return out.finish(DONE)


def check(arguments: argparse.Namespace) -> int:
    """Check presets; exit code 1 when there are errors."""
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.guide import departures

    out = Output("presets check", arguments.json)
    folders = [name for name in arguments.files if Path(name).is_dir()]
    names = [name for name in arguments.files if name not in folders]
    if len(folders) > 1 or not (names or arguments.all):
        raise UsageError("name the presets to check, or --all; and at most one checkout")
    files = [name for name in names if is_toml(name)]
    names = [name for name in names if name not in files]
    find = find_gui if names or arguments.all else find_checkout  # files of sd-scripts need no GUI
    checkout = find(folders[0] if folders else None, out)
    releases: dict[str, Release] = {}
    reports: list[dict[str, Any]] = []

    def report(name: str, reader: str | None, findings: list[Finding]) -> None:
        _say(name, reader, findings, out)
        reports.append({"preset": name, "tab": reader, "findings": [finding.as_json() for finding in findings]})

    for name in files:
        report(*presets_toml.checked(name, arguments.script, checkout))
    for path in presets_flat.files_of(checkout) if arguments.all else ():
        report(*_checked_flat(path, checkout))
    for item in presets_of(checkout) if arguments.all else [preset_named(name, arguments.tab) for name in names]:
        if isinstance(item, Finding):
            report(item.key, None, [item])
            continue
        if item.tab not in releases:
            releases[item.tab] = release_of(checkout, item.tab, arguments.gradio)
        findings = _checked(item, releases[item.tab])
        report(item.name, item.tab, findings + (list(departures(item)) if arguments.guide else []))
    if arguments.all:
        out.line()
        out.row(_total(reports, checkout.release))
    failed = any(finding["level"] == "error" for report in reports for finding in report["findings"])
    return out.finish(FOUND_PROBLEMS if failed else DONE, release=checkout.release, presets=reports)


def rate(arguments: argparse.Namespace) -> int:
    """The rate at which AdaCoor moves weights as far as another optimizer does at its own."""
    from kohya_ext.presets.convert import parse_number
    from kohya_ext.presets.rates import GUIDES_EPS, MOST_STEPS, STEPS_OF_RATE, matching
    from kohya_ext.spec.adacoor import LEAST_EPS

    name, text = arguments.reference
    known = next((one for one in STEPS_OF_RATE if one.casefold() == name.casefold()), None)
    if known is None:
        raise UsageError(f"no formula for {name}; there is one for {', '.join(STEPS_OF_RATE)}")
    theirs = parse_number(text)
    if theirs is None or not 0 < theirs <= 1:
        raise UsageError(f"{text} is not a learning rate of {known}: give a number above 0 and up to 1, such as 1e-4")
    if not 0 < arguments.steps <= MOST_STEPS:
        raise UsageError(f"--steps {arguments.steps}: give the number of steps of the training, such as 2000")
    eps = GUIDES_EPS if arguments.eps is None else arguments.eps
    if not LEAST_EPS <= eps <= 1:
        raise UsageError(f"--eps {eps:g}: give a number from {LEAST_EPS:.0e} to 1, such as 1e-8")
    out = Output("presets rate", arguments.json)
    ours = matching(theirs, arguments.steps, eps)
    out.row(f"{ours:.2g}")
    out.row(
        f"In {arguments.steps:,} steps AdaCoor at {ours:.2g} (eps {eps:g}) moves the weights as far as "
        f"{known} at {theirs:g}."
    )
    out.row("AdaCoor's steps shrink with their number: for another number of steps, ask again.")
    return out.finish(DONE, learning_rate=ours, like=known, rate=theirs, steps=arguments.steps, eps=eps)


def _checked(preset: Preset, release: Release) -> list[Finding]:
    """The findings; a bundled one is judged as `install` would put it there, any other, edited copies too, as it is."""
    from kohya_ext.core.errors import UnsupportedError
    from kohya_ext.presets.check import check as check_preset
    from kohya_ext.presets.document import as_preset, bundled
    from kohya_ext.presets.findings import Finding
    from kohya_ext.presets.fit import fit_to_release

    if preset.about and any(preset.values == one.values for one in bundled()):
        try:
            fitted = fit_to_release(preset, release)
        except UnsupportedError as error:
            return [Finding("error", "refused", preset.name, None, str(error), "use another preset or a newer release")]
        preset = as_preset(fitted.values, preset.name, preset.tab)
    return check_preset(preset, release)


def _checked_flat(path: Path, checkout: Checkout) -> tuple[str, str | None, list[Finding]]:
    """A preset as TOML among all of a checkout: one that cannot be read is a finding."""
    from kohya_ext.presets.findings import Finding

    try:
        return presets_toml.checked(str(path), None, checkout)
    except UsageError as error:
        effect = f"opening it fails: {error}"
        return path.name, None, [Finding("error", "unreadable", path.name, None, effect, UNREADABLE_FIX)]


def _say(name: str, tab: str | None, findings: list[Finding], out: Output) -> None:
    """One preset's findings; those that an old preset has a hundred of, as one."""
    out.row(f"{name} ({tab or 'unreadable'}): {_summary(findings)}")
    alike: dict[str, list[Finding]] = {rule: [one for one in findings if one.rule == rule] for rule in ONE_LINE}
    for finding in findings:
        several = alike.get(finding.rule, [])
        if finding in several[1:]:
            continue
        value = "" if finding.value is None else f" = {written(finding.value)}"
        keys = [one.key for one in several]
        subject = f"{_enumerated(keys)} {ONE_LINE[finding.rule]}" if keys else f"{finding.key}{value}"
        out.row(f"  {finding.level:<8} {subject.strip()}")
        out.row(f"           {finding.effect}")
        out.row(f"           fix: {finding.fix}")


def _total(reports: Sequence[Mapping[str, Any]], release: str) -> str:
    """The last line of a check of many: how many presets fit, and how many have what."""
    levels = [{finding["level"] for finding in report["findings"]} for report in reports]
    counts = {
        "with errors": sum("error" in found for found in levels),
        "with warnings": sum("warning" in found and "error" not in found for found in levels),
        "fit": sum(not found & {"error", "warning"} for found in levels),
    }
    said = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count) or "none found"
    return f"{len(reports)} presets checked against {release}: {said}"


def _enumerated(keys: list[str]) -> str:
    rest = f" and {len(keys) - MISSING_SHOWN} more" if len(keys) > MISSING_SHOWN else ""
    return f"{', '.join(keys[:MISSING_SHOWN])}{rest}"


def _summary(findings: list[Finding]) -> str:
    levels = [finding.level for finding in findings]
    counts = {level: levels.count(level) for level in ("error", "warning", "note")}
    return ", ".join(f"{n} {level}{'s' * (n > 1)}" for level, n in counts.items() if n) or "fits"
