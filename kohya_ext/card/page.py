"""The page itself: a short description first, then what a user needs, and the training last."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kohya_ext.card import editable_sections, training
from kohya_ext.card.changelog import Version, pruned
from kohya_ext.card.model import CHECKPOINT, LORA, Model

SITES = ("civitai", "huggingface")
PERMISSIONS = {
    "no-credit": "use it without crediting the author",
    "sell-images": "sell images made with it",
    "services": "run it on services that make images for money",
    "share-merges": "share merges with it",
    "other-terms": "share merges under other terms",
    "sell-model": "sell it, or merges with it",
}
DESCRIPTION = "(Say in one or two sentences what this model makes.)"
TRIGGERS = "(Name the words that call what was trained.)"
NOTES = "(Say what works well, what does not, and what to combine it with.)"
PERMISSION = "(Say what others may do with the model and with its images.)"
LONGEST = 300  # characters of a cell
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
YOURS = "# lines from here on are yours and stay"


@dataclass(frozen=True)
class Author:
    """What only the author knows. permissions: key of PERMISSIONS -> allowed or not. weight: of a LoRA in a prompt."""

    title: str = ""
    description: str = ""
    triggers: Sequence[str] = ()
    sampler: str = ""
    steps: int | None = None
    cfg: float | None = None
    size: str = ""
    negative: str = ""
    weight: str = ""
    notes: str = ""
    licence: str = ""
    permissions: Mapping[str, bool] = field(default_factory=dict)
    versions: Sequence[Version] = ()


@dataclass(frozen=True)
class Page:
    """A finished page. kept: names of places in which the author's text stands. missing: places nobody has filled."""

    text: str
    kept: Sequence[str]
    missing: Sequence[str]


def page(model: Model, author: Author, site: str, *, preset: Mapping[str, Any], before: str = "") -> Page:
    """The page for `site`. preset: the GUI's settings, or {}. before: the page as it is now, whose edits are kept."""
    edits = editable_sections.read(before)
    lines = [*(_front_matter(model, author, before) if site == "huggingface" else ()), f"# {title(model, author)}", ""]
    asking = (DESCRIPTION, TRIGGERS[:-1], NOTES, PERMISSION)
    missing = []
    for name, heading, text in _places(model, author, preset):
        if heading:
            lines += [f"## {heading}", ""]
        weak = text.startswith(asking)
        placed = list(edits.place(name, editable_sections.without_marks(text), weak=weak))
        if weak and placed[1].startswith(asking):
            missing.append(name)
        lines += [*placed, ""]
    lines += [*_file(model), *_training(training.summary(model, preset))]
    if author.versions:
        lines += ["## Change log", "", _closed(editable_sections.without_marks("\n".join(pruned(author.versions))))]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    taken = [name for name in edits.used if name not in missing]
    return Page(text, tuple(taken), tuple(missing))


def title(model: Model, author: Author) -> str:
    """The author's, the file's own, or the name of the file."""
    return plain(author.title or model.spec("title") or model.path.stem)


def triggers(model: Model, author: Author) -> list[str]:
    """Words that call what was trained: the author's, else those the file states."""
    stated = model.spec("trigger_phrase")
    words = list(author.triggers) or ([word.strip() for word in stated.split(",")] if stated else [])
    return [plain(word) for word in words if word.strip()]


def plain(text: str) -> str:
    """Foreign text as one line within other text, which Markdown and HTML leave alone."""
    line = _one_line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*_\[\]|~$])", r"\\\1", line)
    # what would become a link by itself
    return re.sub(r"(?i)(:)(?=//)|(?<=www)(\.)|(@)", r"\\\g<0>", line)


def paragraph(text: str) -> str:
    """Foreign text as a paragraph: nothing at its start makes a heading, a list, a rule or a fence of it."""
    line = plain(text)
    return re.sub(r"^(\d{1,9})(?=[.)])|^(?=[#+\-=])", r"\1\\", line)


def _closed(text: str) -> str:
    """The author's Markdown; a fence that is left open ends with it, so that the page goes on behind."""
    fence = ""
    for line in text.splitlines():
        found = re.match(r" {0,3}(`{3,}|~{3,})(.*)$", line)
        if not found:
            continue
        if not fence:
            fence = found[1]
        elif found[1].startswith(fence) and not found[2].strip():
            fence = ""
    return f"{text}\n{fence}" if fence else text


def _one_line(text: str) -> str:
    """Without line ends, and without the characters that steer a terminal or turn the direction of writing."""
    return " ".join(_UNSEEN.sub(" ", editable_sections.without_marks(text)).split())


def _code(text: str) -> str:
    return "`" + _one_line(text).replace("`", "'") + "`"


def _cell(text: str) -> str:
    """Code within a table, where a bar would begin the next cell."""
    return _code(text).replace("|", "\\|")


def _places(model: Model, author: Author, preset: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, heading, text) of every place that is the author's to edit."""
    description = _closed(author.description.strip()) or paragraph(model.spec("description"))
    notes = _closed(author.notes.strip()) or paragraph(model.spec("usage_hint"))
    return [
        ("description", "", description or DESCRIPTION),
        ("triggers", "Trigger words", _trigger_text(model, author)),
        ("generation", "Generation parameters", "\n".join(_generation(model, author, preset))),
        ("notes", "Usage notes", notes or NOTES),
        ("permissions", "Permissions", "\n".join(_permissions(model, author)) or PERMISSION),
    ]


def _trigger_text(model: Model, author: Author) -> str:
    if words := triggers(model, author):
        return ", ".join(_code(word) for word in words)
    if names := training.concepts(model):
        return f"{TRIGGERS[:-1]} The data set's folders were called {', '.join(_code(name) for name in names)}.)"
    return TRIGGERS


def _generation(model: Model, author: Author, preset: Mapping[str, Any]) -> Iterator[str]:
    size = author.size or training.size(model, preset)
    rows = {
        "Sampler": author.sampler,
        "Steps": author.steps,
        "CFG scale": f"{author.cfg:g}" if author.cfg is not None else "",
        "Size": f"{size}, or another shape of that area" if size else "",
        "Clip skip": training.clip_skip(model, preset),
        "Weight": author.weight if model.kind == LORA else "",
        "Negative prompt": author.negative,
    }
    for label, value in rows.items():
        if value not in ("", None):
            yield f"- {label}: {plain(str(value))}"


def _permissions(model: Model, author: Author) -> Iterator[str]:
    if licence := author.licence or model.spec("license"):
        yield f"License: {plain(licence)}."
        yield ""
    for name, meaning in PERMISSIONS.items():
        if name in author.permissions:
            yield f"- {'Allowed' if author.permissions[name] else 'Not allowed'}: {meaning}"


def _file(model: Model) -> Iterator[str]:
    family = f" for {plain(model.family.name)}" if model.family.name else ""
    kind = f"{model.kind} ({model.adapter})" if model.adapter not in ("", model.kind) else model.kind
    yield from ("## File", "", "| | |", "|---|---|")
    yield f"| Name | {_cell(model.path.name)} |"
    yield f"| Kind | {kind}{family}, {model.dtype}, {_amount(model.weights)} weights, {_bytes(model.size)} |"
    if model.contradiction:
        yield f"| Base model | file and metadata disagree: {plain(model.contradiction)} |"
    if model.sha256:
        yield f"| SHA-256 | `{model.sha256}` (AutoV2 `{model.sha256[:10].upper()}`) |"
    yield ""


def _training(rows: Mapping[str, str]) -> Iterator[str]:
    if rows:
        yield from ("## Training", "", "| | |", "|---|---|")
        yield from (f"| {label} | {plain(value[:LONGEST])} |" for label, value in rows.items())
        yield ""


def _amount(count: int) -> str:
    for limit, letter in ((10**9, " billion"), (10**6, " million"), (10**3, " thousand")):
        if count >= limit:
            return f"{count / limit:.2f}{letter}"
    return str(count)


def _bytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _front_matter(model: Model, author: Author, before: str) -> Iterator[str]:
    """What Hugging Face reads; strings as JSON has them are YAML too."""
    tags = [*([model.task] if model.task else []), "diffusers"]
    if model.family.name.startswith("SDXL"):
        tags.append("stable-diffusion-xl")
    yield "---"
    yield f"license: {_yaml(author.licence or model.spec('license') or model.base.licence or 'other')}"
    if model.base.base:
        yield f"base_model: {_yaml(model.base.base)}"
        yield f"base_model_relation: {'finetune' if model.kind == CHECKPOINT else 'adapter'}"
    if model.task:
        yield f"pipeline_tag: {model.task}"
    yield "library_name: diffusers"
    if words := list(author.triggers) or [word for word in [model.spec("trigger_phrase")] if word]:
        yield f"instance_prompt: {_yaml(', '.join(words))}"
    yield "tags:"
    yield from (f"- {tag}" for tag in [*tags, *(["lora"] if model.kind == LORA else [])])
    yield YOURS
    yield from _own_lines(before)
    yield "---"
    yield ""


def _own_lines(before: str) -> list[str]:
    """What stands after our last line in the front matter of the page as it is."""
    lines = before.splitlines()
    if not lines or lines[0].strip() != "---" or "---" not in lines[1:] or YOURS not in lines:
        return []
    begin, end = lines.index(YOURS) + 1, lines.index("---", 1)
    return lines[begin:end]


def _yaml(text: str) -> str:
    line = " ".join(text.split())
    bare = re.fullmatch(r"[A-Za-z][\w./+-]{5,}", line, re.ASCII)  # shorter ones may be a word of YAML such as no
    return line if bare else json.dumps(line)
