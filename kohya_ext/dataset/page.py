"""The audit as one HTML file, with images of what it is about."""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from kohya_ext.dataset import balance
from kohya_ext.dataset.audit import Audit
from kohya_ext.dataset.findings import PROBLEM, AuditFinding, numbered
from kohya_ext.files.document import document, thumbnail

THUMBNAIL = 160  # pixels
MOST_THUMBNAILS = 500  # a page of some 5 MB
LONGEST_CAPTION = 600  # characters of each that are shown

STYLE = """
td:first-child { min-width: 7rem } td:nth-child(2) { min-width: 2.5rem; text-align: right }
.bar { background: #4a7ab5; height: .8rem; display: inline-block; vertical-align: middle }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(20rem, 100%), 1fr)); gap: 1rem }
.card { border: 1px solid #ddd; border-radius: 6px; padding: .7rem; display: flex; gap: .8rem; min-width: 0 }
.card > div { min-width: 0; overflow-wrap: anywhere }
.card img { width: 96px; height: 96px; object-fit: contain; background: #f3f3f3; flex: none }
.problem { color: #b00020 } .advice { color: #8a6100 } .path { font-weight: 600 }
.card { flex-wrap: wrap } .card > div { flex: 1 1 9rem } figure { margin: 0; width: 96px }
figcaption { font-size: .75rem; overflow-wrap: anywhere } .caption { margin: .2rem 0; font-style: italic }
ul { margin: .2rem 0; padding-left: 1.1rem }
@media (prefers-color-scheme: dark) { .card { border-color: #444 }
  .card img { background: #333 } .problem { color: #ff7b8a } .advice { color: #e0b050 } }
"""


def page(audit: Audit) -> str:
    """The whole page; nothing in it is loaded from elsewhere."""
    title = f"Audit of {audit.folder.name}"
    problems, others = numbered(audit.findings)
    readable = sum(image.readable for image in audit.images)
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{len(audit.images)} images, <span class=problem>{problems}</span>, "
        f"<span class=advice>{others}</span>. That is {html.escape(balance.how_many(readable))}.</p>",
        *_about_all(audit),
        "<h2>Buckets</h2>", _bars({f"{w} x {h}": n for (w, h), n in audit.buckets.items()}),
        f"<h2>Tokens of captions{' (estimated)' if audit.tokens_estimated else ''}</h2>",
        _bars({f"up to {limit}" if limit else "more": n for limit, n in audit.tokens.items()}),
    ]  # fmt: skip
    for heading, counts in (("Styles named", audit.styles), ("Points of view named", audit.views)):
        if counts:
            body += [f"<h2>{heading}</h2>", _bars(counts)]
    body += ["<h2>File by file</h2>", "<div class=cards>", *_cards(audit), "</div>"]
    return document(title, body, STYLE)


def _about_all(audit: Audit) -> Iterator[str]:
    for finding in audit.findings:
        if not finding.path:
            yield f"<p class={finding.level}>{html.escape(finding.text)}</p>"
    if not audit.near_duplicates_checked:
        yield "<p>Images that look alike were not looked for: that needs the library imagehash.</p>"


def _bars(counts: dict[str, int]) -> str:
    most = max(counts.values(), default=1)
    rows = [
        f"<tr><td>{html.escape(name)}</td><td>{count}</td>"
        f"<td><span class=bar style='width:calc(min(20rem, 45vw) * {count / most:.4f})'></span></td></tr>"
        for name, count in counts.items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _cards(audit: Audit) -> Iterator[str]:
    """One card an image, with all that was found about it and about its caption; then the files without an image."""
    images = {Path(image.path).with_suffix("").as_posix(): image.path for image in audit.images}
    captions = {path.with_suffix("").as_posix(): text for path, text in audit.captions.items()}
    readable = {image.path for image in audit.images if image.readable}
    all_paths = {image.path for image in audit.images}
    by_image: dict[str, list[AuditFinding]] = defaultdict(list)
    for finding in audit.findings:
        if finding.path:
            stem = Path(finding.path).with_suffix("").as_posix()
            by_image[finding.path if finding.path in all_paths else images.get(stem, finding.path)].append(finding)
    made = 0
    for path, findings in by_image.items():
        others = dict.fromkeys(one.other for one in findings if one.other)  # copies side by side with it
        shown = [one for one in (path, *others) if one in readable][: max(0, MOST_THUMBNAILS - made)]
        made += len(shown)
        thumbnails = "".join(_figure(audit.folder, one, named=bool(others)) for one in shown)
        caption = captions.get(Path(path).with_suffix("").as_posix(), "") if path in all_paths else ""
        yield _card(path, thumbnails, caption, findings)


def _card(path: str, thumbnails: str, caption: str, findings: list[AuditFinding]) -> str:
    lines = []
    for one in findings:
        about = f"{html.escape(one.path)} " if one.path != path else ""
        lines.append(f"<li class={one.level}>{about}{html.escape(one.text)}</li>")
    level = PROBLEM if any(one.level == PROBLEM for one in findings) else "advice"
    said = caption if len(caption) <= LONGEST_CAPTION else f"{caption[:LONGEST_CAPTION]} ..."
    quoted = f"<p class=caption>{html.escape(said)}</p>" if said else ""
    return (
        f"<div class=card>{thumbnails}<div><span class='path {level}'>{html.escape(path)}</span>{quoted}"
        f"<ul>{''.join(lines)}</ul></div></div>"
    )


def _figure(folder: Path, path: str, *, named: bool) -> str:
    image = thumbnail(folder / path, THUMBNAIL)
    return f"<figure>{image}<figcaption>{html.escape(path)}</figcaption></figure>" if image and named else image
