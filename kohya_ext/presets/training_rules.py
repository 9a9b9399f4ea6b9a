"""What stops a training or trains something else, judged on the arguments that the script gets.

Whatever the script says about its arguments by itself is read from its text (`pysource.assertions`). The rules here are
for what it finds out only with a data set, an optimizer or a network present, or does not notice at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from kohya_ext.presets.argument_faults import value_faults
from kohya_ext.presets.convert import parse_number
from kohya_ext.presets.dataset_schema import argument_types, matches
from kohya_ext.presets.findings import Finding, Level
from kohya_ext.presets.keys import ADAPTIVE, EXTRA, KEYS_OF_FLAGS, RATE_ONE, WHOLE
from kohya_ext.presets.launch_command import GIVEN, WEIGHTS
from kohya_ext.presets.loop_faults import loop_faults
from kohya_ext.presets.machine import SDPA, WITHOUT, XFORMERS
from kohya_ext.presets.network_choice import network_faults, pinned_lycoris
from kohya_ext.presets.optimizer_choice import malformed, scheduler_faults, text_faults, unknown_optimizer, word_faults
from kohya_ext.presets.own_optimizer import own_optimizer_faults
from kohya_ext.presets.release import Release
from kohya_ext.presets.rules import DEFECT
from kohya_ext.presets.script_run import ScriptRun
from kohya_ext.pysource.assertions import Refusal, refusals
from kohya_ext.pysource.values import Unknown
from kohya_ext.spec.flags import is_ours
from kohya_ext.spec.kohyas_optimizers import ONE_RATE
from kohya_ext.spec.optimizers import ours

Form = Mapping[str, Any]
TrainingRule = Callable[[ScriptRun, Form, Release], Iterator[Finding]]

TRAINING_RULES: list[TrainingRule] = []
LOW_RATE = 0.1  # what sd-scripts itself calls too low for an optimizer that finds its rate
TEXT_ENCODER_RATES = ("learning_rate_te", "learning_rate_te1", "learning_rate_te2")
# Those of diffusers and transformers; a release may know others.
SCHEDULERS = (
    "constant",
    "constant_with_warmup",
    "cosine",
    "cosine_warmup_with_min_lr",
    "cosine_with_min_lr",
    "cosine_with_restarts",
    "inverse_sqrt",
    "linear",
    "piecewise_constant",
    "polynomial",
    "reduce_lr_on_plateau",
    "warmup_stable_decay",
)
CHANGE_UNSEEN = "caption_dropout_every_n_epochs"  # the one that no release checks
CAPTION_CHANGES = (
    "shuffle_caption",
    "caption_dropout_rate",
    "caption_tag_dropout_rate",
    "token_warmup_step",
    CHANGE_UNSEEN,
)
# In the scripts that drop captions after all, from their cached outputs.
_CACHE_WITH_DROPOUT = re.compile(r"is_text_encoder_output_cacheable\(\s*cache_supports_dropout=True")
_STEPS = re.compile(r"^(?!\s*#).*\.verify_bucket_reso_steps\((\d+)\)", re.MULTILINE)


def training_rule(function: TrainingRule) -> TrainingRule:
    """Have `training_findings` ask this function too."""
    TRAINING_RULES.append(function)
    return function


def training_findings(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """What is wrong with a training. form: what the GUI's fields hold."""
    for one in TRAINING_RULES:
        yield from one(training, form, release)


def key_of(argument: str, form: Form) -> str:
    """The key of the field that an argument comes from; "additional parameters" where it is written there."""
    if f"--{argument}" in str(form.get(EXTRA) or ""):
        return EXTRA
    named = KEYS_OF_FLAGS.get(argument, argument)
    keys = [key for key in form if key in (argument, named) or key.endswith(f"_{argument}")]
    return next((key for key in keys if form[key]), keys[0] if keys else named)


@training_rule
def _refused_by_script(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """The script's own checks of its arguments."""
    if release.training is None or not training.arguments:
        return
    namespace = training.namespace()
    if release.patched and ours(namespace.get("optimizer_type")) is not None:
        namespace["optimizer_type"] = Unknown("ours")  # our hooks see to it that it may be fused
    for refusal in refusals(release.training, training.script, namespace):
        keys = list(dict.fromkeys(key_of(name, form) for name in refusal.arguments))
        key = next((one for one in keys if form.get(one)), keys[0])
        effect = f"{training.script} stops: {refusal.message}"
        yield Finding("error", "training-stops", key, form.get(key), effect, _fix(refusal, keys))


def _fix(refusal: Refusal, keys: list[str]) -> str:
    if {"network_train_unet_only", "cache_text_encoder_outputs"} <= set(refusal.arguments):
        return "set text_encoder_lr to 0 so that only the U-Net is trained, or switch the caching off"
    return f"change {' or '.join(keys)}"


@training_rule
def _words(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """Words of the command line that the script does not take."""
    for word in training.strays:
        name = word.partition("=")[0].removeprefix("--")
        if is_ours(name):
            continue
        key = _holding(word, form) or (key_of(name, form) if word.startswith("--") else EXTRA)
        shown = word.replace(GIVEN, str(form.get(key))) if word.endswith(GIVEN) else word
        effect = f"{training.script} stops: unrecognized arguments: {shown}"
        flag = next((one for one in training.arguments if one == name), None)
        near = get_close_matches(name, training.arguments, n=1)
        if not word.startswith("--") and (flag or near):
            fix = f"write --{flag or near[0]}"
        else:
            fix = (
                "remove it"
                if isinstance(form.get(key), str) or key not in form
                else f"set {key} to 0, or switch it off"
            )
        yield Finding("error", "unknown-flag", key, word if key == EXTRA else form.get(key), effect, fix)


def _holding(word: str, form: Form) -> str:
    """The key of the text that has a word in it, "" where the GUI itself writes it."""
    if word.endswith(GIVEN):
        return next((key for key in WEIGHTS if form.get(key)), "")
    texts = (EXTRA, "optimizer_args", "lr_scheduler_args", *form)
    return next((key for key in texts if isinstance(form.get(key), str) and word in form[key].split()), "")


@training_rule
def _whole_numbers(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """A file with settings is not converted: its fraction 64.5 reaches what counts with whole numbers."""
    numbers = {name for name, argument in training.arguments.items() if argument.type == "int"}
    fractions = {name: value for name, value in training.given.items() if name in numbers and isinstance(value, float)}
    types = argument_types(release.training) if fractions else {}
    for name, value in fractions.items():
        if name in WHOLE or not matches(value, types.get(name, "")):
            key = key_of(name, form)
            effect = f"{training.script} stops: {name} is {value}, and only a whole number will do"
            yield Finding("error", "not-whole", key, form.get(key), effect, f"write {round(value)}")


@training_rule
def _resolution(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    text = training.value("resolution")
    if not isinstance(text, str) or not text:
        return
    key = key_of("resolution", form)
    sizes = [parse_number(part) if part.strip() else None for part in text.split(",")]
    whole = [int(size) for size in sizes if isinstance(size, int) and size > 0]
    if len(whole) != len(sizes) or len(whole) > 2:
        effect = f"{training.script} stops: a resolution is one whole number, or two with a comma between them"
        numbers = re.findall(r"\d+", text)
        fix = f"write {','.join(numbers[:2])}" if numbers else "write 1024,1024"
        yield Finding("error", "resolution", key, form.get(key), effect, fix)
        return
    steps = training.value("bucket_reso_steps")
    low, high = training.value("min_bucket_reso"), training.value("max_bucket_reso")
    if not training.value("enable_bucket") or not all(isinstance(one, int) for one in (steps, low, high)) or steps < 1:
        return
    if low - low % steps > min(whole):
        effect = f"{training.script} stops: min_bucket_reso must be equal or less than resolution ({min(whole)})"
        key = key_of("min_bucket_reso", form)
        yield Finding("error", "bucket-range", key, form.get(key), effect, f"set it to {min(whole)} or less")
    if high + -high % steps < max(whole):
        effect = f"{training.script} stops: max_bucket_reso must be equal or greater than resolution ({max(whole)})"
        key = key_of("max_bucket_reso", form)
        yield Finding("error", "bucket-range", key, form.get(key), effect, f"set it to {max(whole)} or more")
    needed = _STEPS.search((release.training and release.training.read(training.script)) or "")
    if needed is not None and steps % int(needed.group(1)):
        effect = f"{training.script} stops: bucket_reso_steps must be a multiple of {needed.group(1)}"
        key = key_of("bucket_reso_steps", form)
        usual = "" if needed.group(1) == "64" else " or 64"
        yield Finding("error", "bucket-range", key, form.get(key), effect, f"set it to {needed.group(1)}{usual}")


@training_rule
def _nothing(training: ScriptRun, form: Form, _: Release) -> Iterator[Finding]:
    """Values with which a model is saved that nothing has trained."""
    epochs, steps = training.given.get("max_train_epochs"), training.given.get("max_train_steps")
    for name, value in (("max_train_epochs", epochs), *((("max_train_steps", steps),) if epochs is None else ())):
        if value is not None and parse_number(value) == 0:
            key = key_of(name, form)
            effect = f"{training.script} trains 0 steps and saves an untrained model: --{name}=0 is not `no limit`"
            fix = "leave it empty, or set it to the number that you want"
            yield Finding("error", "trains-nothing", key, form.get(key), effect, fix)
    rates = [training.value(name) for name in ("learning_rate", "unet_lr", "text_encoder_lr", *TEXT_ENCODER_RATES)]
    if "unet_lr" in training.arguments:
        own = [
            rate
            for rate in (training.value("unet_lr"), *_listed(training.value("text_encoder_lr")))
            if rate is not None
        ]
        own = own[:1] if training.value("network_train_unet_only") else own
        trained = own or [training.value("learning_rate")]
    else:
        trained = [rate for rate in rates if rate is not None]
    if trained and all(parse_number(rate) == 0 for rate in trained):
        key = "unet_lr" if "unet_lr" in form else "learning_rate"
        effect = f"every learning rate is 0: {training.script} saves an untrained model"
        yield Finding("error", "trains-nothing", key, form.get(key), effect, "set a learning rate")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@training_rule
def _optimizer_words(training: ScriptRun, form: Form, _: Release) -> Iterator[Finding]:
    """Arguments of optimizers and schedulers are split at `=`, and what follows is read as a Python literal."""
    sound: dict[str, list[str]] = {"optimizer_args": [], "lr_scheduler_args": []}
    for name in ("optimizer_args", "lr_scheduler_args"):
        key = key_of(name, form)
        for word in map(str, training.value(name) or ()):
            fault = malformed(word)
            if fault:
                effect = f"{training.script} stops: {word!r} {fault}"
                fix = "write key=value, as in weight_decay=0.01; texts in quotes"
                yield Finding("error", "optimizer-args", key, form.get(key), effect, fix)
            else:
                sound[name].append(word)
    key = key_of("optimizer_args", form)
    switches = {name for name, argument in training.arguments.items() if argument.type == "bool"}
    given = [word.partition("=")[0] for word in sound["optimizer_args"]]
    flags = [name for name in given if name in switches]
    for name in flags:
        effect = f"{training.script} stops: no optimizer has an argument {name}; it is a flag of the script"
        fix = f"remove it there, and set {name} itself"
        yield Finding("error", "optimizer-args", key, form.get(key), effect, fix)
    optimizer, scheduler = optimizer_of(training), str(training.value("lr_scheduler") or "")
    faults = [(key, one) for one in word_faults(optimizer, [name for name in given if name not in flags])]
    faults += [(key, one) for one in text_faults(optimizer, sound["optimizer_args"])]
    if not training.value("lr_scheduler_type"):
        names = [word.partition("=")[0] for word in sound["lr_scheduler_args"]]
        place = key_of("lr_scheduler_args", form)
        faults += [(place, one) for one in scheduler_faults(scheduler, optimizer, names)]
    for key, wrong in faults:
        stops = "stops" if wrong.level == "error" else "may stop"
        effect = f"{training.script} {stops}: {wrong.effect}" if wrong.stops else wrong.effect
        yield Finding(wrong.level, "optimizer-args", key, form.get(key), effect, wrong.fix)


def optimizer_of(training: ScriptRun) -> str:
    """The name of its optimizer, given by the older switches too; "" for the default."""
    switches = {"use_8bit_adam": "AdamW8bit", "use_lion_optimizer": "Lion"}
    return next((name for switch, name in switches.items() if training.value(switch)), "") or str(
        training.value("optimizer_type") or ""
    )


@training_rule
def _optimizer_name(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    name = optimizer_of(training)
    near = unknown_optimizer(name, release.training)
    if near is not None:
        key = key_of("optimizer_type", form)
        effect = f"{training.script} stops: {release.name} has no optimizer {name}"
        fix = f"choose {near}" if near else "choose one of the GUI's list, or give a class by its dotted path"
        yield Finding("error", "optimizer", key, form.get(key), effect, fix)


@training_rule
def _own_rate(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """Optimizers that find their rate multiply it by the given one, and use only one of several."""
    name = str(training.value("optimizer_type") or "")
    short = name.rpartition(".")[2].casefold()
    if not (short in RATE_ONE or short.startswith(ADAPTIVE)) or ours(name) is not None:
        return
    unused = _untrained(training)
    rates: dict[str, float] = {}
    for one in ("learning_rate", "unet_lr", "text_encoder_lr", *TEXT_ENCODER_RATES):
        key = key_of(one, form)
        number = parse_number(form.get(key)) if form.get(key) not in (None, "") else None
        if number is not None and one in training.given and one not in unused:
            rates[key] = number
    if "unet_lr" in rates:
        rates.pop("learning_rate", None)  # it serves only what has no rate of its own
    used = {key: rate for key, rate in rates.items() if rate}
    for key, rate in used.items():
        if rate <= LOW_RATE:
            effect = f"{name} multiplies the rate that it finds by {rate:g}: sd-scripts warns that it is too low"
            yield Finding("warning", "rate-too-low", key, form.get(key), effect, "set it to 1")
    if len(set(used.values())) > 1:
        several = ", ".join(f"{key} {rate:g}" for key, rate in used.items())
        stops = short in ONE_RATE
        effect = f"{training.script} stops at its first step: {name} takes" if stops else f"{name} takes"
        effect += f" one rate for everything, not {several}" if stops else f" one rate; of {several} the first counts"
        key = list(used)[1]
        level: Level = "error" if stops else "warning"
        yield Finding(level, "rates-differ", key, form.get(key), effect, "set all of them to 1")


def _untrained(training: ScriptRun) -> set[str]:
    """The rates of what this run does not train."""
    unused = set()
    if training.value("network_train_unet_only"):
        unused.add("text_encoder_lr")
    if training.value("network_train_text_encoder_only"):
        unused.add("unet_lr")
    if training.value("train_text_encoder") is False:
        unused.update(TEXT_ENCODER_RATES)
    return unused


@training_rule
def _text_encoders(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """The outputs of one that is trained cannot be cached, and a rate for one that is not trained does nothing."""
    network = [str(word).replace('"', "") for word in training.value("network_args") or ()]
    t5 = "train_t5xxl=True" in network and training.script.startswith(("flux", "sd3"))
    if t5 and training.value("cache_text_encoder_outputs"):
        effect = f"{training.script} stops: T5XXL is trained, so cache_text_encoder_outputs cannot be used"
        fix = "switch one of the two off"
        yield Finding("error", "training-stops", "train_t5xxl", form.get("train_t5xxl"), effect, fix)
    trains = training.value("train_text_encoder")
    rates = [name for name in TEXT_ENCODER_RATES[1:] if parse_number(form.get(name) or 0)]
    if training.script == "sdxl_train.py" and trains is False and release.schema.tab == "dreambooth" and rates:
        effect = "this release never passes --train_text_encoder to sdxl_train.py: the text encoders are not trained"
        fix = f"write --train_text_encoder into {EXTRA}, or set {' and '.join(rates)} to 0"
        yield Finding("warning", DEFECT, rates[0], form.get(rates[0]), effect, fix)


@training_rule
def _cached_captions(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """Captions whose outputs of the text encoder are cached cannot change."""
    if not training.value("cache_text_encoder_outputs"):
        return
    key = key_of("cache_text_encoder_outputs", form)
    script = (release.training and release.training.read(training.script)) or ""
    drops = _CACHE_WITH_DROPOUT.search(script) is not None
    for name in CAPTION_CHANGES:
        if not parse_number(training.value(name) or 0) or (drops and name == "caption_dropout_rate"):
            continue
        where, fix = key_of(name, form), f"switch {key} or {name} off"
        if name == CHANGE_UNSEEN:
            effect = f"{name} does nothing: {training.script} trains the cached captions in every epoch"
            yield Finding("warning", "cached-captions", where, form.get(where), effect, fix)
        else:
            effect = f"{training.script} stops: cached captions cannot change, as {name} would have them"
            yield Finding("error", "cached-captions", where, form.get(where), effect, fix)


@training_rule
def _scheduler(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """Schedulers that insist on an optimizer, or on no warm-up."""
    scheduler, optimizer = (str(training.value(name) or "").casefold() for name in ("lr_scheduler", "optimizer_type"))
    if scheduler.startswith("adafactor") and optimizer != "adafactor":
        effect = f"{training.script} stops: the scheduler {scheduler} works with the optimizer Adafactor only"
        fix = "choose constant or cosine, or the optimizer Adafactor"
        yield Finding("error", "scheduler", key_of("lr_scheduler", form), form.get("lr_scheduler"), effect, fix)
    name = str(training.value("lr_scheduler") or "")
    near = get_close_matches(name.casefold(), SCHEDULERS, n=1, cutoff=0.8)
    if near and name not in SCHEDULERS and not training.value("lr_scheduler_type"):
        effect = f"{training.script} stops: there is no scheduler {name}"
        key = key_of("lr_scheduler", form)
        yield Finding("error", "scheduler", key, form.get(key), effect, f"write {near[0]}")


@training_rule
def _by_argument(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """Values that argparse refuses, networks that the release cannot train, and what stops before the first step."""
    network = network_faults(training, pinned_lycoris(release.gui, release.training))
    loop = loop_faults(training, release.training, release.gui)
    for wrong in (*value_faults(training), *network, *own_optimizer_faults(training), *loop):
        held = [name for name in wrong.names if name in form]
        held = [EXTRA] if EXTRA in (key_of(name, form) for name in wrong.names) else held
        key = next((name for name in held if form[name]), held[0] if held else key_of(wrong.names[0], form))
        yield Finding(wrong.level, wrong.rule, key, form.get(key), wrong.effect, wrong.fix)


@training_rule
def _captions(training: ScriptRun, form: Form, _: Release) -> Iterator[Finding]:
    """Without an extension the script looks for files that few data sets have, and trains without captions."""
    name, elsewhere = "caption_extension", ("in_json", "dataset_config")
    argument = training.arguments.get(name)
    if argument is None or training.given.get(name) or any(training.given.get(key) for key in elsewhere):
        return
    if argument.default == ".caption":
        key = key_of(name, form)
        effect = "captions like a.txt are not read: without an extension sd-scripts looks for a.caption"
        yield Finding("note", "caption-files", key, form.get(key), effect, "write .txt, if your captions end so")


@training_rule
def _attention(training: ScriptRun, form: Form, release: Release) -> Iterator[Finding]:
    """A package that the environment lacks."""
    if release.xformers is False and training.value(XFORMERS):
        key = key_of(XFORMERS, form)
        yield Finding("error", "no-xformers", key, form.get(key), WITHOUT, f"choose {SDPA}, torch's own attention")
