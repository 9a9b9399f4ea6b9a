"""AdaCoor. Knows torch and nothing of Kohya."""

from kohya_ext.optim.adacoor import AdaCoor

__all__ = ["AdaCoor"]
