"""Which files Kohya reads as images."""

from __future__ import annotations

# In every release; AVIF and JPEG XL where a plug-in of Pillow is installed. In lower case.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl")
