"""Which settings have values that are nobody else's: they are neither taken from presets nor recorded."""

from __future__ import annotations

KOHYAS = ("huggingface_token", "wandb_api_key")  # of Kohya, today
_ENDINGS = ("token", "key", "password", "secret")  # of those, and of what a fork may add


def is_secret(key: str) -> bool:
    """Whether the value of this setting or flag must not be recorded."""
    return key.lower().endswith(_ENDINGS)
