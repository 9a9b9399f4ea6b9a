"""Kohya's Python read as text: parsed, and interpreted as far as a form or a command depends on it, never run."""
