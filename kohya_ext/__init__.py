"""kohya_ext: AdaCoor, EMA and the guide's presets for every Kohya_ss from v21.8 to today.

Importing this package is cheap on purpose: the Kohya GUI and every DataLoader worker import it, so nothing here may
load torch. The parts that need torch are `kohya_ext.optim` and `kohya_ext.ema`.
"""

from kohya_ext.core.about import VERSION

__version__ = VERSION

__all__ = ["__version__"]
