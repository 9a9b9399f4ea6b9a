"""What must not travel with a preset: secrets, and what belongs to one machine or one person."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from kohya_ext.presets.convert import FALSE_WORDS
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.keys import PATHS, PERSONAL, SECRETS

TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b|\b[0-9a-f]{40}\b")  # of Hugging Face; of Weights & Biases
PATH = re.compile(r"""(?:^|(?<=[\s="']))(?:/[\w.@+-]+/|~/|\\\\\w|[A-Za-z]:[\\/])""")
SECRET_FLAGS = frozenset(f"--{key}" for key in SECRETS)
FLAG_KEYS = ("additional_parameters", "extra_accelerate_launch_args")  # command lines inside a preset
KEPT = ("model_list", "training_preset")  # names of what every GUI has
_UNSAID = "..."


def private_findings(values: Mapping[str, Any], shared: Collection[str] = ()) -> Iterator[Finding]:
    """Secrets, paths and personal settings, by key and by what texts look like. Secrets are not repeated.

    shared: texts that are the same on every machine, such as the names of models on the hub.
    """
    for key in sorted(values, key=str):
        value = values[key]
        if not isinstance(value, str) or not value or value in shared:
            continue
        if holds_secret(key, value) or TOKEN.search(value) or (key in FLAG_KEYS and _secret_words(value)):
            effect = "whoever gets the file gets the secret"
            yield Finding("error", "secret", key, _UNSAID, effect, "remove it from the file and revoke it")
        elif key in SECRETS:
            yield Finding("note", "neutral-key", key, value, "no secret: the value asks for nothing", "remove it")
        elif key in PATHS or (key not in PERSONAL and PATH.search(value)):
            yield Finding("warning", "path", key, value, "a path of the machine it was made on", "remove it")
        elif key in PERSONAL and key not in KEPT:
            effect = "belongs to one machine, account or run"
            yield Finding("note", "personal", key, value, effect, "remove it to share the preset")


def holds_secret(key: str, value: Any) -> bool:
    """Whether a setting that may be a secret is one: old presets have the text "False" where there is none."""
    return key in SECRETS and bool(value) and str(value).strip().casefold() not in FALSE_WORDS


def without_secrets(key: str, value: Any) -> Any:
    """A value without the secrets in it: words of a command line are taken out, any other text goes whole."""
    if not isinstance(value, str):
        return value
    if key not in FLAG_KEYS:
        return "" if TOKEN.search(value) else value
    secret = _secret_words(value)
    kept = [word for at, word in enumerate(value.split()) if at not in secret]
    return " ".join(kept) if secret else value


def without_paths(key: str, value: Any) -> Any:
    """A value without the paths in it: of a command line the flags that take them, any other text goes whole."""
    if not isinstance(value, str) or not PATH.search(value):
        return value
    if key not in FLAG_KEYS:
        return ""
    kept: list[str] = []
    for word in value.split():
        if not PATH.search(word):
            kept.append(word)
        elif not word.startswith("--") and kept and kept[-1].startswith("--") and "=" not in kept[-1]:
            kept.pop()  # the flag whose value this is
    return " ".join(kept)


def _secret_words(text: str) -> set[int]:
    """The places of the words that hold a secret, their flags included."""
    words = text.split()
    found = {at for at, word in enumerate(words) if TOKEN.search(word)}
    for at, word in enumerate(words):
        if word.split("=")[0] in SECRET_FLAGS:
            found |= {at} if "=" in word else {at, min(at + 1, len(words) - 1)}
    found |= {at - 1 for at in found if at and words[at - 1].startswith("--") and not words[at].startswith("--")}
    return found
