"""The guide's presets, fitted to the GUI that is installed. Reads Kohya's files as text; never imports torch.

The modules are imported on first use: the installer imports this package on every command, and most need no preset.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kohya_ext.checkout.checkout import Checkout


def collect(checkout: Checkout, *, xformers: bool | None = None) -> dict[str, bytes]:
    """The preset files that belong into a checkout: posix path relative to its root -> bytes.

    They are complete and valid for the GUI that is installed there; empty without a GUI. Presets that need
    something the release lacks are skipped; `kohya_ext.presets.collection.collect_all` also says why.

    xformers: whether the environment that trains has the package; None = not known. See `machine.has_xformers`.
    """
    from kohya_ext.presets.collection import collect_all

    return collect_all(checkout, xformers=xformers).files
