"""One value of a TOML file as an argument of a training script: what is wrong with it, and what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from kohya_ext.core.errors import UsageError, did_you_mean
from kohya_ext.presets.check import says_nothing
from kohya_ext.presets.convert import FALSE_WORDS, TRUE_WORDS, parse_number
from kohya_ext.presets.dataset_schema import matches
from kohya_ext.presets.findings import Level
from kohya_ext.presets.keys import RATES, WHOLE
from kohya_ext.presets.rules import GUI_TRANSLATES
from kohya_ext.presets.toml_document import alike
from kohya_ext.pysource.arguments import Argument

SEVERAL = ("*", "+")
# Arguments that every run computes with: of the wrong type they end it. Others may belong to what is switched off.
ALWAYS_USED = frozenset(
    {
        "learning_rate",
        "learning_rate_te",
        "learning_rate_te1",
        "learning_rate_te2",
        "unet_lr",
        "text_encoder_lr",
        "network_alpha",
        "network_dim",
        "max_train_steps",
        "max_train_epochs",
        "max_data_loader_n_workers",
        "seed",
        "min_snr_gamma",
        "noise_offset",
        "gradient_accumulation_steps",
        "lr_warmup_steps",
    }
)
STRICT_CHOICES = ("loss_type", "mixed_precision")  # other values end the run; elsewhere they count as the default
# Settings that end a run only together with others: of the Huber losses, and of the noise of SD and SDXL.
HUBER, HUBER_LOSSES = "huber_schedule", ("huber", "smooth_l1")
ROUNDS = "multires_noise_iterations"
FAMILIES = ("flux_", "sd3_", "lumina_", "anima_", "hunyuan_")  # whose scripts make their noise otherwise
SIZES = ("resolution", "validation_resolution")  # texts like 1024,1024


@dataclass(frozen=True)
class Fault:
    """What is wrong with a value, as a finding has it."""

    level: Level
    rule: str
    effect: str
    fix: str


def fault_of(value: Any, argument: Argument, types: str | None) -> Fault | None:
    """What is wrong with a value. types: what the data set classes want of it, None where they do not get it."""
    if isinstance(value, dict):
        return None
    if argument.nargs in SEVERAL:
        return _several(value, argument)
    if argument.name in SIZES:
        return (
            None
            if isinstance(value, str)
            else Fault("error", "resolution", "training stops: it splits a text at its comma", _quoted(value))
        )
    if types is not None and not matches(value, types) and not (value == "" and argument.type == "str"):
        effect = f"training stops: the data set takes {types} only, not {_kind(value)}"
        return Fault("error", "wrong-type", effect, _better(value, argument))
    if argument.type == "bool":
        return _switch(value)
    if argument.type in ("int", "float"):
        return _number(value, argument)
    return _text(value, argument)


def weighed(fault: Fault, key: str, values: Mapping[str, Any], script: str) -> Fault:
    """The fault with its level in view of the other settings."""
    if key == HUBER and values.get("loss_type") in HUBER_LOSSES:
        return replace(fault, level="error", effect=f"training stops: the loss {values['loss_type']} needs a schedule")
    if key == ROUNDS and values[key] and not isinstance(values[key], bool) and not script.startswith(FAMILIES):
        return replace(fault, level="error", effect="training stops: so many rounds of noise must be a whole number")
    return fault


def _kind(value: Any) -> str:
    return {bool: "a switch", int: "a whole number", float: "a fraction", str: "a text", list: "a list"}.get(
        type(value), "this"
    )


def _quoted(value: Any) -> str:
    sizes = value if isinstance(value, list) else [value]
    return f'write "{",".join(str(size) for size in sizes)}", with quotes'


def _better(value: Any, argument: Argument) -> str:
    usable, converted = converted_value(value, argument)
    return f"write {_shown(converted)}" if usable else f"give it a value of type {argument.type}"


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _switch(value: Any) -> Fault | None:
    if isinstance(value, bool) or value in (0, 1, ""):
        return None
    if isinstance(value, str) and value.strip().casefold() in FALSE_WORDS:
        return Fault("error", "text-for-switch", f"a text that is not empty counts as on, {value!r} too", "write false")
    return Fault(
        "warning", "wrong-type", f"{_kind(value)} where true or false belongs: it counts as on", "write true or false"
    )


def _number(value: Any, argument: Argument) -> Fault | None:
    used = argument.name in ALWAYS_USED
    level: Level = "error" if used else "warning"
    if value == "":
        strict = argument.name in RATES or argument.name == "network_dim"
        effect = f"an empty text where a number belongs: training {'stops' if strict else 'may stop'}"
        return Fault("error" if strict else "warning", "text-for-number", effect, "remove it, or give it a number")
    if isinstance(value, str):
        effect = (
            f"{_kind(value)} where a number belongs; no file is converted: training {'stops' if used else 'may stop'}"
        )
        return Fault(level, "text-for-number", effect, _better(value, argument))
    if isinstance(value, list):
        return Fault(
            level,
            "wrong-type",
            f"a list where one number belongs: training {'stops' if used else 'may stop'}",
            "give it one number",
        )
    if isinstance(value, bool):
        return Fault(
            "warning", "wrong-type", f"a switch where a number belongs: it counts as {int(value)}", "give it a number"
        )
    if argument.type == "int" and isinstance(value, float):
        strict = argument.name in WHOLE
        effect = f"a fraction where a whole number belongs: training {'stops' if strict else 'may stop'}"
        return Fault("error" if strict else "warning", "not-whole", effect, _better(value, argument))
    return _choice(value, argument)


def _text(value: Any, argument: Argument) -> Fault | None:
    if isinstance(value, str) and argument.type not in ("str", "Path"):
        effect = "a text that only a command line has converted: training stops"
        return Fault(
            "error" if argument.name in ALWAYS_USED else "warning", "text-for-number", effect, "write a number"
        )
    if isinstance(value, str) or value is False:
        return _choice(value, argument) if value else None
    if argument.type != "str":  # a converter of the script's own, which takes numbers, too
        return None
    return Fault("warning", "wrong-type", f"{_kind(value)} where a text belongs: training may stop", f'write "{value}"')


def _choice(value: Any, argument: Argument) -> Fault | None:
    if argument.choices is None or value in argument.choices or argument.name in GUI_TRANSLATES:
        return None
    if says_nothing(argument.name, value):
        return None
    offered = ", ".join(str(one) for one in argument.choices if one is not None)
    level: Level = "error" if argument.name in STRICT_CHOICES else "warning"
    effect = (
        "not one of its choices, and in a file nobody checks it"
        if level == "warning"
        else "training stops: not one of its choices"
    )
    return Fault(level, "not-offered", effect, f"one of: {offered}")


def _several(value: Any, argument: Argument) -> Fault | None:
    numeric = argument.type in ("int", "float")
    if isinstance(value, list):
        wrong = [item for item in value if isinstance(item, str) is numeric]
        if not wrong:
            return None
        wanted = "numbers" if numeric else "texts"
        effect = f"training stops: the list takes {wanted}, and {wrong[0]!r} is {_kind(wrong[0])}"
        return Fault("error", "wrong-type", effect, _better(value, argument))
    if value == "" or value is False:
        return None
    if isinstance(value, str):
        effect = "training stops: a list of texts belongs here, and a text is taken letter by letter"
        return Fault("error", "text-for-list", effect, _better(value, argument))
    if numeric and argument.name == "text_encoder_lr":
        return None  # one rate for all text encoders
    return Fault(
        "warning", "wrong-type", f"{_kind(value)} where a list belongs: training may stop", _better(value, argument)
    )


def converted_value(value: Any, argument: Argument) -> tuple[bool, Any]:
    """Whether a value has a form that the argument takes, and that form; a right one comes back as it is."""
    if argument.nargs in SEVERAL:
        return True, _listed(value, argument)
    if argument.name in SIZES and not isinstance(value, (str, bool)):
        return True, ",".join(str(size) for size in (value if isinstance(value, list) else [value]))
    if isinstance(value, (list, dict)):
        return False, value
    if argument.type == "bool":
        word = str(value).strip().casefold()
        return word in TRUE_WORDS or word in FALSE_WORDS, word in TRUE_WORDS
    if argument.type in ("int", "float"):
        number = parse_number(value) if value != "" else None
        if number is None or (argument.type == "int" and number != int(number)):
            return False, value
        return True, int(number) if argument.type == "int" else value if isinstance(value, (int, float)) else number
    if argument.type == "str" and not isinstance(value, (str, bool)):
        return True, str(value)
    return True, value


def typed_values(
    fields: Mapping[str, str], script: str, arguments: Mapping[str, Argument], names: Mapping[str, str]
) -> dict[str, Any]:
    """Arguments given as text, by name, as a file of settings holds them.

    Args:
        fields: as the user names them.
        script: that takes them.
        arguments: all that it has.
        names: other names of arguments -> their own.

    Raises:
        UsageError: the script has no such argument, or it does not take the value.
    """
    typed = {}
    for key, text in fields.items():
        name = names.get(key, key)
        if name not in arguments:
            raise UsageError(f"{key}: {script} has no such argument{did_you_mean(name, arguments)}")
        usable, typed[name] = converted_value(text, arguments[name])
        if not usable:
            raise UsageError(f"{key}={text}: not a value of this argument")
    return typed


def _listed(value: Any, argument: Argument) -> Any:
    if isinstance(value, str):
        value = list(value.split())
    if not isinstance(value, list):
        return value
    if argument.type in ("int", "float"):
        numbers = [parse_number(item) for item in value]
        return alike([item if number is None else number for item, number in zip(value, numbers, strict=True)])
    return [str(item) for item in value]
