"""HTML pages that are one file each: nothing in them is loaded from elsewhere, images are part of the page."""

from __future__ import annotations

import base64
import contextlib
import html
import io
from collections.abc import Iterable
from pathlib import Path

from kohya_ext.files.image import decoding, opened

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
       color: #222; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem; border-bottom: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .15rem .8rem .15rem 0; text-align: left }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } h2 { border-color: #444 } }
"""


def document(title: str, body: Iterable[str], style: str = "") -> str:
    """The whole page. title: plain text. body: HTML. style: CSS after that of all pages."""
    named = html.escape(title)
    head = f"<meta charset=utf-8><meta name=viewport content='width=device-width'><title>{named}</title>"
    inside = "\n".join(body)
    return (
        f"<!doctype html>\n<html lang=en><head>{head}<style>{STYLE}{style}</style></head>\n"
        f"<body>\n{inside}\n</body></html>\n"
    )


def thumbnail(path: Path, side: int) -> str:
    """An image of `side` pixels at most, as an element of a page; "" where it cannot be read."""
    with (
        contextlib.suppress(Exception),  # it may have gone since
        opened(path) as image,
        decoding(image, reduced_to=side),
    ):
        if image.mode.startswith("I"):  # 16 bits a channel, which a conversion would clip to white
            image = image.convert("I").point(lambda value: value / 256).convert("L")
        small = image.convert("RGB")
        small.thumbnail((side, side))
        written = io.BytesIO()
        small.save(written, "JPEG", quality=75)
        return f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(written.getvalue()).decode()}'>"
    return ""
