"""Settings that do not go together, and known faults of releases, judged on what the form holds with a preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from kohya_ext.presets.convert import optimizer_argument, optimizer_words, parse_number
from kohya_ext.presets.findings import Finding, Level
from kohya_ext.presets.joined_words import apart
from kohya_ext.presets.keys import ADAPTIVE, EXTRA, KEYS_OF_FLAGS, OPTIMIZER_WHEN_ABSENT, RATE_ONE, RATES, flags_in
from kohya_ext.presets.rates import GUIDES_EPS, MOST_STEPS, STEPS_OF_RATE, equivalent, matching
from kohya_ext.presets.release import Release
from kohya_ext.pysource.arguments import Argument
from kohya_ext.spec.adacoor import LEAST_EPS
from kohya_ext.spec.conflicts import SETTINGS, conflicts
from kohya_ext.spec.flags import (
    BY_KEY,
    ENABLE_EMA,
    FLAGS,
    NO_VALIDATION,
    SWITCH,
    VALIDATE,
    faults,
    is_ours,
    without_ema,
    without_validation,
)
from kohya_ext.spec.optimizers import OPTIMIZERS, Optimizer, ours

Values = Mapping[str, Any]

HIGH_RATE = 0.1
RATE_IS_STEP = frozenset(name.casefold() for name in (*STEPS_OF_RATE, "Adafactor", "AdamWScheduleFree"))
USUAL_STEPS = 2000  # where a preset leaves it to the number of images
# the GUI has words of its own for the default, or means accelerate, which takes others
GUI_TRANSLATES = ("save_model_as", "max_token_length", "dynamo_backend")
FUSED_OPTIMIZERS = ("adafactor",)  # of Kohya's
DEFECT = "release-defect"

Rule = Callable[[Values, Release], Iterator[Finding]]

# Rules on the form. Those on what the script gets have a list of their own (`training_rules`): they take a `ScriptRun`,
# which only a release that starts the form gives. A rule belongs there wherever the arguments tell enough.
RULES: list[Rule] = []


def rule(function: Rule) -> Rule:
    """Have `contradictions` ask this function too: it yields what is wrong with the values in that release."""
    RULES.append(function)
    return function


def contradictions(values: Values, release: Release) -> Iterator[Finding]:
    """What cannot work, or not as meant."""
    for one in RULES:
        yield from one(values, release)


def _optimizer(values: Values) -> str:
    return str(values.get("optimizer") or "").casefold().removeprefix("kohya_ext.optim.")


def _number(values: Values, key: str) -> float:
    return parse_number(values.get(key) or 0) or 0


@rule
def _rates(values: Values, release: Release) -> Iterator[Finding]:
    yield from rate_findings(values, release)


def rate_findings(values: Values, release: Release) -> Iterator[Finding]:
    """What the learning rates come to with their optimizer. values: by the GUI's keys; a rate may be a list."""
    optimizer, own = _optimizer(values), ours(values.get("optimizer"))
    for key in RATES:
        if values.get(key) is None:
            continue
        given = values[key] if isinstance(values[key], list) else [values[key]]
        rate = max((parse_number(one or 0) or 0 for one in given), default=0)
        if own is not None and _asks("auto_lr", True, values):
            yield from _factor_of_a_found_rate(own, key, rate, values)
        elif own is not None:
            yield from _our_rate(own, key, rate, values, release)
        elif rate >= HIGH_RATE and not _finds_its_rate(optimizer, values):
            known = optimizer in RATE_IS_STEP or not optimizer
            what = "destroys the model within a few steps" if known else "is more than most optimizers bear"
            effect = f"a rate of {rate} with {values.get('optimizer') or OPTIMIZER_WHEN_ABSENT} {what}"
            level: Level = "error" if known else "warning"
            yield Finding(level, "rate-too-high", key, values[key], effect, "1e-6 for AdamW, 1e-7 for Lion")


def _our_rate(own: Optimizer, key: str, rate: float, values: Values, release: Release) -> Iterator[Finding]:
    """What a rate means with an optimizer of ours, told in the rate of AdamW that moves the weights as far."""
    given = 0 if _number(values, "max_train_epochs") else _number(values, "max_train_steps")
    steps = int(given) if 1 <= given <= MOST_STEPS else USUAL_STEPS
    chosen = optimizer_argument(values.get("optimizer_args"), "eps")
    eps = chosen if chosen is not None and LEAST_EPS <= chosen <= 1 else GUIDES_EPS
    like = equivalent(rate, steps, eps)
    effect = f"{own.name} at {rate:g} moves the weights in {steps:,} steps as far as AdamW at {like:.1e}"
    rule_name = f"{own.name.lower()}-rate"
    guides = f"set it to {own.rate:g}, the guide's"
    if like >= HIGH_RATE / 10:
        yield Finding("error", rule_name, key, values[key], f"{effect}: the model is destroyed", guides)
    elif 0 < rate < HIGH_RATE:
        fix = f"{guides}, or for what AdamW does at {rate:g} {_written(key, matching(rate, steps, eps), release)}"
        yield Finding("error", rule_name, key, values[key], f"{effect}: it learns next to nothing", fix)
    elif rate and rate != own.rate:
        fix = "none, if it is meant; `kohya-ext presets rate` tells the one for a rate of AdamW that you know"
        if release.schema.tab == "lora":
            fix += f"; for 1e-4, usual for LoRA, {_written(key, matching(1e-4, steps, eps), release)}"
        yield Finding("note", rule_name, key, values[key], effect, fix)


def _factor_of_a_found_rate(own: Optimizer, key: str, rate: float, values: Values) -> Iterator[Finding]:
    """What a rate means where our optimizer finds one itself: a factor."""
    if not rate or rate == own.rate:
        return
    effect = f"{own.name} with auto_lr=True finds its rate, and {rate:g} multiplies it"
    fix = f"set it to {own.rate:g}, or remove auto_lr=True where a rate is known"
    level: Level = "note"
    if rate < HIGH_RATE:
        level, effect = "error", f"{effect}: it learns next to nothing"
    elif rate > 1 / HIGH_RATE:
        level, effect = "warning", f"{effect}: it may destroy the model"
    yield Finding(level, f"{own.name.lower()}-rate", key, values[key], effect, fix)


def _written(key: str, rate: float, release: Release) -> str:
    """What to write where; the GUI's fields for learning rates end at 1."""
    field = release.schema.fields.get(key)
    if field is not None and field.maximum is not None and rate > field.maximum:
        return f"write --{key} {rate:.2g} into the additional parameters (the field ends at {field.maximum:g})"
    return f"set it to {rate:.2g}"


def _finds_its_rate(optimizer: str, values: Values) -> bool:
    """Whether the learning rate only scales a rate that the optimizer finds itself."""
    relative = optimizer == "adafactor" and not _asks("relative_step", False, values)
    short = optimizer.rpartition(".")[2]  # of whichever library
    return relative or optimizer in RATE_ONE or short in RATE_ONE or short.startswith(ADAPTIVE)


def _asks(name: str, value: bool, values: Values) -> bool:
    """Whether the optimizer's arguments, a text or a list of texts, set this one so."""
    return optimizer_words(values.get("optimizer_args")).get(name, "").casefold() == str(value).casefold()


@rule
def _refiner(values: Values, _: Release) -> Iterator[Finding]:
    key = "pretrained_model_name_or_path"
    name = str(values.get(key) or "").casefold()
    if "refiner" in name.replace("\\", "/").rpartition("/")[2] and "xl" in name:
        effect = "training stops: sd-scripts cannot load SDXL's refiner, which lacks the first text encoder"
        yield Finding(
            "error", "training-stops", key, values[key], effect, "choose SDXL's base model, or a model made of it"
        )


@rule
def _divisors(values: Values, release: Release) -> Iterator[Finding]:
    """Numbers that the GUI divides by; from gradio 4 on the field keeps its smallest value."""
    for key in ("train_batch_size", "gradient_accumulation_steps"):
        if release.gradio == 3 and key in values and parse_number(values[key]) == 0:
            effect = "Start training fails: the GUI divides by it"
            yield Finding("error", "gui-refuses", key, values[key], effect, "set it to 1")


@rule
def _cached_latents(values: Values, _: Release) -> Iterator[Finding]:
    cached = values.get("cache_latents") or values.get("cache_latents_to_disk")
    for key, what in (("random_crop", "crop"), ("color_aug", "colour")):
        if cached and values.get(key) is True:
            effect = f"the training script stops: cached latents cannot change their {what}"
            yield Finding("error", "cached-latents", key, True, effect, "switch caching or this off")


@rule
def _precision(values: Values, _: Release) -> Iterator[Finding]:
    for key, precision in (("full_fp16", "fp16"), ("full_bf16", "bf16")):
        if values.get(key) is True and values.get("mixed_precision") not in (precision, None):
            effect = f"the training script stops: {key} needs mixed precision {precision}"
            yield Finding("error", "precision", key, True, effect, f"set mixed_precision to {precision}")
    if values.get("full_fp16") is True and _optimizer(values) != "adamw8bit":
        effect = "fp16 weights give NaN with most optimizers; the guide saw it work with AdamW8bit only"
        yield Finding("warning", "full-fp16", "full_fp16", True, effect, "use AdamW8bit, or switch it off")


@rule
def _fused(values: Values, release: Release) -> Iterator[Finding]:
    flag = flags_in(values.get(EXTRA)).get("fused_backward_pass") is True
    if not (values.get("fused_backward_pass") is True or flag):
        return
    key = EXTRA if flag else "fused_backward_pass"
    optimizer, own = _optimizer(values), ours(values.get("optimizer"))
    if optimizer not in FUSED_OPTIMIZERS and not (own and own.fused):
        names = ["Adafactor", *(one.name for one in OPTIMIZERS if one.fused and release.patched)]
        effect = f"the training script stops: the fused backward pass works with {' and '.join(names)} only"
        yield Finding("error", "fused-optimizer", key, values[key], effect, "change the optimizer or switch it off")
    if own and not own.loss_scaling and values.get("mixed_precision") == "fp16":
        effect = "training stops: loss scaling of fp16 cannot be undone for gradients that are used at once"
        yield Finding("error", "fused-fp16", key, values[key], effect, "set mixed_precision to bf16 or no")
    if _number(values, "gradient_accumulation_steps") > 1:
        effect = "the training script stops: gradients that are used at once cannot be accumulated"
        yield Finding("error", "fused-accumulation", key, values[key], effect, "set gradient_accumulation_steps to 1")
    if _number(values, "fused_optimizer_groups") > 0:
        effect = "two ways of fusing exclude each other"
        yield Finding("error", "fused-groups", key, values[key], effect, "set fused_optimizer_groups to 0")


@rule
def _unpatched(values: Values, release: Release) -> Iterator[Finding]:
    if release.patched:
        return
    fix = "run `kohya-ext install` for this checkout"
    own = ours(values.get("optimizer"))
    if own is not None and values.get("optimizer") != own.path:
        effect = "kohya_ext is not installed here: the training script does not know the optimizer and stops"
        yield Finding("error", "not-installed", "optimizer", values.get("optimizer"), effect, fix)
    for name in flags_in(values.get(EXTRA)):
        if is_ours(name):
            effect = f"kohya_ext is not installed here: the training script refuses --{name}"
            yield Finding("error", "not-installed", EXTRA, f"--{name}", effect, fix)


@rule
def _our_flags(values: Values, release: Release) -> Iterator[Finding]:
    """Flags of ours that stop the run, or that nothing listens to: by the table that the run itself uses."""
    if not release.patched:
        return
    given = flags_in(values.get(EXTRA))
    for name in given:
        if is_ours(name) and name not in BY_KEY and "--" not in name:  # with dashes inside: two, by `_joined`
            near = get_close_matches(name, BY_KEY, n=1)
            fix = f"--{near[0]} is the nearest" if near else "remove it"
            yield Finding("error", "ema", EXTRA, f"--{name}", f"the training script refuses --{name} and stops", fix)
    for flag in FLAGS:
        if flag.kind is SWITCH and given.get(flag.key, True) is not True:
            effect = f"training stops: {flag.name} takes no value"
            yield Finding("error", "ema", EXTRA, flag.name, effect, f"write {flag.name} alone, or remove it")
    for flag, fault in faults(given):
        yield Finding("error", "ema", EXTRA, flag.name, f"training stops: {fault}", "change it, or remove it")
    ignored = without_ema(given)
    if ENABLE_EMA.key not in given and ignored is not None:
        effect = f"{ignored} without --enable_ema does nothing: no EMA is kept"
        yield Finding("warning", "ema", EXTRA, ignored, effect, "add --enable_ema, or remove it")
    ignored = without_validation(given)
    if ignored is not None:
        yield Finding("warning", "validation", EXTRA, ignored, f"{ignored} {NO_VALIDATION}", f"add {VALIDATE.name} DIR")
    if ENABLE_EMA.key not in given:
        return
    settings = {name: values.get(KEYS_OF_FLAGS.get(name, name)) for name in SETTINGS} | given
    for conflict in conflicts(settings):
        yield Finding("error", "ema", EXTRA, conflict.flag, f"training stops: {conflict.effect}", conflict.fix)


@rule
def _arguments(values: Values, release: Release) -> Iterator[Finding]:
    """Flags that the training script does not take, and values that the GUI takes and the script does not."""
    arguments = release.arguments_for(values)
    flags = {argument.flag for argument in arguments.values()}
    joined = dict(_joined(values, arguments))
    yield from joined.values()
    given = flags_in(values.get(EXTRA))
    for name in given if arguments else ():
        near = [flag for flag in flags if flag.startswith(f"--{name}")]  # argparse takes unique beginnings
        if f"--{name}" not in flags and len(near) != 1 and not is_ours(name) and name not in joined:
            effect = f"the training script refuses --{name} and stops"
            yield Finding("error", "unknown-flag", EXTRA, f"--{name}", effect, "remove it")
    for key, value in values.items():
        argument = arguments.get(key)
        if argument is None or value in ("", None, False) or key in GUI_TRANSLATES or key in joined:
            continue
        place = EXTRA if argument.flag.removeprefix("--") in given else key
        if isinstance(value, str) and argument.type in ("int", "float"):
            if parse_number(value) is None:
                effect = f"the training script stops: {argument.flag} takes a number"
                yield Finding("error", "argument-type", place, value, effect, "give it a number")
        elif argument.choices is not None and str(value) not in map(str, argument.choices) and place != EXTRA:
            offered = ", ".join(str(choice) for choice in argument.choices)
            effect = f"the training script may stop: {argument.flag} takes {offered}"
            yield Finding("warning", "unknown-value", key, value, effect, "use one of these")


def _joined(values: Values, arguments: Mapping[str, Argument]) -> Iterator[tuple[str, Finding]]:
    """(flag, finding) for each word of "additional parameters" that lacks a blank inside."""
    known, flag = {*(one.flag.removeprefix("--") for one in arguments.values()), *BY_KEY}, ""
    for word in str(values.get(EXTRA) or "").replace('"', "").split():
        flag = word[2:].partition("=")[0] if word.startswith("--") else flag
        meant = apart(word, known)
        if len(meant) < 2:
            continue
        argument = arguments.get(flag)
        swallowed = argument is not None and argument.type == "str" and argument.choices is None
        effect = f"a part of the text of --{flag}" if swallowed else "the training script refuses it and stops"
        effect = f"a blank is missing before {meant[1]}: {effect}"
        yield flag, Finding("error", "joined-words", EXTRA, word, effect, f"write {' '.join(meant)}")


def release_defects(values: Mapping[str, Any], release: Release) -> Iterator[Finding]:
    """Known faults of a release that a preset runs into, whatever else is right about it."""
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
        yield Finding("error", DEFECT, "cache_latents", values.get("cache_latents"), effect, fix)
    prepared = values.get("create_buckets") is True and values.get("use_latent_files") == "Yes"
    if release.refuses_no_upscale and prepared and values.get("bucket_no_upscale") is True:
        effect = "the training script stops with AssertionError: the buckets were prepared already"
        yield Finding("error", DEFECT, "bucket_no_upscale", True, effect, "switch bucket_no_upscale off")


def _warm_up(release: Release) -> Iterator[Finding]:
    warmup = release.schema.fields.get("lr_warmup")
    if warmup is None or warmup.component != "Slider" or not isinstance(warmup.default, str):
        return
    if release.gradio is not None and release.gradio >= 6:
        effect = "the slider starts as a text, which gradio 6 refuses: every click in the tab fails"
        fix = (
            "put `lr_warmup = 0` under [basic] in config.toml next to the GUI; `kohya-ext install --fix-warmup` does it"
        )
        yield Finding("error", DEFECT, "lr_warmup", warmup.default, effect, fix)
