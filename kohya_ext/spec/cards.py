"""Graphics cards by name, and how much memory each has."""

from __future__ import annotations

GIB = 1 << 30

# As the driver reports it, rounded to the size on the box; the driver's own share is part of the estimate's overhead.
CARDS: dict[str, int] = {
    "RTX 3060": 12,
    "RTX 3080": 10,
    "RTX 3090": 24,
    "RTX 4060 Ti": 16,
    "RTX 4070": 12,
    "RTX 4070 Ti": 12,
    "RTX 4080": 16,
    "RTX 4090": 24,
    "RTX 5080": 16,
    "RTX 5090": 32,
    "RTX A4000": 16,
    "RTX A5000": 24,
    "RTX A6000": 48,
    "RTX 6000 Ada": 48,
    "RTX PRO 6000": 96,
    "A10": 24,
    "A40": 48,
    "A100 40GB": 40,
    "A100": 80,
    "H100": 80,
    "H200": 141,
    "L4": 24,
    "L40": 48,
    "L40S": 48,
    "P100": 16,
    "T4": 16,
    "V100": 16,
    "V100 32GB": 32,
}
USABLE = 0.985  # of it: the driver keeps some to itself
