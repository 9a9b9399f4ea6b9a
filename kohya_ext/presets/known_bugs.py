"""Known faults of releases that a preset runs into, whatever else is right about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kohya_ext.presets.findings import Finding
from kohya_ext.presets.release import Release

RULE = "release-defect"


def release_defects(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    """values: what the form holds once the preset is loaded."""
    yield from training_defects(values, release)
    yield from _warm_up(release)


def training_defects(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    """Those that training runs into, with or without the GUI."""
    if release.schema.tab != "finetune" or values.get("dataset_config"):
        return
    if release.wants_cached_latents and values.get("cache_latents") is not True:
        effect = (
            "the training script stops with AttributeError: this sd-scripts needs cached latents with metadata files"
        )
        fix = "switch cache_latents on and random_crop off, or use another sd-scripts"
        yield Finding("error", RULE, "cache_latents", values.get("cache_latents"), effect, fix)
    prepared = values.get("create_buckets") is True and values.get("use_latent_files") == "Yes"
    if release.refuses_no_upscale and prepared and values.get("bucket_no_upscale") is True:
        effect = "the training script stops with AssertionError: the buckets were prepared already"
        yield Finding("error", RULE, "bucket_no_upscale", True, effect, "switch bucket_no_upscale off")


def _warm_up(release: Release) -> Iterator[Finding]:
    warmup = release.schema.fields.get("lr_warmup")
    if warmup is None or warmup.component != "Slider" or not isinstance(warmup.default, str):
        return
    if release.gradio is not None and release.gradio >= 6:
        effect = "the slider starts as a text, which gradio 6 refuses: every click in the tab fails"
        fix = (
            "put `lr_warmup = 0` under [basic] in config.toml next to the GUI; `kohya-ext install --fix-warmup` does it"
        )
        yield Finding("error", RULE, "lr_warmup", warmup.default, effect, fix)
