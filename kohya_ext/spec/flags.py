"""Our flags on every training script: the one table of them.

It feeds argparse, the run's options, `presets check`, the fields in the GUI and the reference page; a new flag is one
more row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from kohya_ext.spec.outputs import MOST_EMAS

Values = Mapping[str, Any]

EMA, TELEMETRY, VALIDATION, RESUME = "EMA", "telemetry", "validation", "exact resume"
POWER = "power"  # the schedule that has a width
SECTION = "EMA (kohya_ext)"  # of the GUI, with the fields


@dataclass(frozen=True)
class Kind:
    """What values a flag takes: one of choices, a number, or nothing (a switch).

    type: argparse's. convert: value -> value; raises ValueError with what is expected. most: how many values it takes;
    of more than one `convert` gives a tuple.

    Kohya reads its TOML files into the same namespace as the command line without converting, and a preset holds text,
    so `convert` takes whatever it is given.
    """

    type: Callable[[str], Any] | None
    convert: Callable[[Any], Any]
    choices: tuple[str, ...] = ()
    numbers: Range | None = None
    most: int = 1

    @property
    def several(self) -> bool:
        """Whether it takes more than one value."""
        return self.most > 1

    @property
    def expected(self) -> str:
        """Which values it takes, in words."""
        if self.numbers is not None:
            return self.numbers.expected + (f", or {self.most} different ones" if self.several else "")
        return f"expected one of {', '.join(self.choices)}" if self.choices else "expected no value"


def _switch(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in ("true", "false", "1", "0", ""):
        raise ValueError("expected true or false")
    return text in ("true", "1")


def _number(value: Any, expected: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(expected)
    return number


@dataclass(frozen=True)
class Range:
    """The numbers that a flag takes. expected: them in words. excluded: a bound that is not one of them."""

    expected: str
    least: float = 0.0
    most: float = math.inf
    excluded: float | None = None
    whole: bool = False

    def convert(self, value: Any) -> Any:
        """The number in a value; raises ValueError with what is expected."""
        number = _number(value, self.expected)
        if not self.least <= number <= self.most or number == self.excluded or (self.whole and number != int(number)):
            raise ValueError(self.expected)
        return int(number) if self.whole else number


def _in(numbers: Range) -> Kind:
    return Kind(int if numbers.whole else float, numbers.convert, numbers=numbers)


def _whole_from(least: int) -> Kind:
    return _in(Range(f"expected a whole number of at least {least}", least, whole=True))


def _some(numbers: Range, most: int) -> Kind:
    """One to `most` different numbers, in a list or in a text with blanks or commas between them."""

    def convert(value: Any) -> tuple[Any, ...]:
        given = value.replace(",", " ").split() if isinstance(value, str) else value
        found = tuple(numbers.convert(one) for one in (given if isinstance(given, (list, tuple)) else [given]))
        if not 0 < len(found) <= most or len(set(found)) < len(found):
            raise ValueError(kind.expected)
        return found

    kind = Kind(int if numbers.whole else float, convert, numbers=numbers, most=most)
    return kind


DECAYS = Range("expected a number from 0 up to, not including, 1 (0.9995 is usual)", most=1.0, excluded=1.0)
WIDTHS = Range("expected a number above 0 and up to 0.28 (0.05 to 0.15 is usual)", most=0.28, excluded=0.0)
NOT_NEGATIVE = Range("expected a number of at least 0")


def _one_of(*choices: str) -> Kind:
    def convert(value: Any) -> str:
        if value not in choices:
            raise ValueError(kind.expected)
        return str(value)

    kind = Kind(None, convert, choices)
    return kind


def _folder(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected the path of a folder")
    return value


WITH_SAVES = "save"  # instead of a number of steps


def _steps_or_saves(value: Any) -> int:
    """The steps from one to the next, 0 for "with each save"."""
    return 0 if value == WITH_SAVES else int(_STEPS.convert(value))


_STEPS = Range(f"expected a whole number of at least 1, or {WITH_SAVES}", 1, whole=True)
STEPS_OR_SAVES = Kind(str, _steps_or_saves)
SWITCH = Kind(None, _switch)
FOLDER = Kind(str, _folder)
SHARES = Range("expected a number from 0 up to, not including, 1 (0.1 is a tenth)", most=1.0, excluded=1.0)


@dataclass(frozen=True)
class Flag:
    """One flag. name: with its dashes. default: what a run uses when it is not given, None where that depends.

    since: the version of kohya_ext that has it first. help: as argparse prints it ("%%" for a percent sign).
    label: of its field in the GUI; "" where it has none.
    """

    name: str
    feature: str
    kind: Kind
    default: Any
    since: str
    help: str
    label: str = ""

    @property
    def key(self) -> str:
        """Its name in Kohya's `args`, in a TOML and in a preset's additional parameters."""
        return self.name.removeprefix("--")

    @property
    def info(self) -> str:
        """Its help as a text under a field of the GUI."""
        text = self.help.replace("%%", "%")
        return f"{text[:1].upper()}{text[1:]}"

    @property
    def settings(self) -> dict[str, Any]:
        """The arguments of argparse's `add_argument`. No default: "not given" must be told from it."""
        if self.kind is SWITCH:
            return {"action": "store_true", "help": self.help}
        given = {"choices": list(self.kind.choices)} if self.kind.choices else {"type": self.kind.type}
        several = {"nargs": "+"} if self.kind.several else {}
        return {**given, **several, "help": self.help}

    def read(self, values: Values) -> Any:
        """Its value in `values`, converted; the default where there is none. Raises ValueError: what is expected."""
        value = values.get(self.key)
        return self.default if value is None else self.kind.convert(value)

    def fault(self, values: Values) -> str | None:
        """Why its value in `values` cannot be taken; None when it can."""
        try:
            self.read(values)
        except ValueError as error:
            return f"{self.name} is {values[self.key]!r}: {error}"
        return None


ENABLE_EMA = Flag(
    "--enable_ema", EMA, SWITCH, False, "0.1.0",
    "keep an exponential moving average (EMA) of the trained weights and save it next to them", "Enable EMA",
)  # fmt: skip
DECAY = Flag(
    "--ema_decay", EMA, _in(DECAYS), 0.9995, "0.1.0",
    "decay of the EMA for each optimizer step (default 0.9995)", "EMA decay",
)  # fmt: skip
SCHEDULE = Flag(
    "--ema_schedule", EMA, _one_of("debiased", "constant", "warmup", "exp", POWER), "debiased", "0.1.0",
    "how the EMA starts: debiased (default) removes the start model's share, constant is the plain EMA", "EMA schedule",
)  # fmt: skip
SIGMA_REL = Flag(
    "--ema_sigma_rel", EMA, _some(WIDTHS, MOST_EMAS), None, "0.1.0",
    "relative width of the EMA for --ema_schedule power, 0 to 0.28; with two, a second EMA is saved as NAME-ema2",
    "EMA width (power)",
)  # fmt: skip
EXP_BETA = Flag(
    "--ema_exp_beta", EMA, _in(NOT_NEGATIVE), None, "0.1.0",
    "old command lines: selects the schedule exp (0: warmup)",
)  # fmt: skip
SNAPSHOT_EVERY = Flag(
    "--ema_snapshot_every", EMA, STEPS_OR_SAVES, None, "0.2.0",
    "every N optimizer steps and at the end, or with each save (save): write a snapshot of each EMA, from which "
    "`kohya-ext ema` makes EMAs of other lengths",
)  # fmt: skip
SNAPSHOT_DTYPE = Flag(
    "--ema_snapshot_dtype", EMA, _one_of("float32", "float16", "bfloat16"), "float32", "0.2.0",
    "dtype of snapshots: float32 (default), or half as large: 16-bit differences from the weights at the first of them",
)  # fmt: skip
SNAPSHOT_KEEP = Flag(
    "--ema_snapshot_keep", EMA, _whole_from(2), None, "0.2.0",
    "keep only the newest N snapshots of each EMA (default: all)",
)  # fmt: skip
LOG_EVERY = Flag(
    "--kohya_ext_log_every", TELEMETRY, _whole_from(0), 0, "0.1.0",
    "every N steps, log the effective learning rate and the share of weights that moved (default 0: never)",
    "Log effective rate every N steps",
)  # fmt: skip
VALIDATE = Flag(
    "--kohya_ext_validate", VALIDATION, FOLDER, None, "0.2.0",
    "folder of held-out images with captions: measure the script's own loss on them, with fixed noise and timesteps",
)  # fmt: skip
VALIDATION_SPLIT = Flag(
    "--kohya_ext_validation_split", VALIDATION, _in(SHARES), 0.0, "0.2.0",
    "instead of --kohya_ext_validate: hold this share of the training images out (default 0: none)",
)  # fmt: skip
VALIDATE_EVERY = Flag(
    "--kohya_ext_validate_every", VALIDATION, _whole_from(0), 0, "0.2.0",
    "validate every N optimizer steps (default 0: at the end of each epoch); the start and the end always",
)  # fmt: skip
VALIDATION_TIMESTEPS = Flag(
    "--kohya_ext_validation_timesteps", VALIDATION, _whole_from(1), 4, "0.2.0",
    "timesteps at which each held-out image is measured, one in each of N equal parts of the range (default 4)",
)  # fmt: skip
VALIDATION_SEED = Flag(
    "--kohya_ext_validation_seed", VALIDATION, _whole_from(0), 0, "0.2.0",
    "seed of the noise and timesteps of validation, and of the split (default 0)",
)  # fmt: skip
SAVE_BEST = Flag(
    "--save_best", VALIDATION, SWITCH, False, "0.2.0",
    "keep a copy, NAME-best, of the saved checkpoint with the lowest validation loss, raw or EMA",
)  # fmt: skip
EXACT_RESUME = Flag(
    "--kohya_ext_exact_resume", RESUME, SWITCH, False, "0.2.0",
    "with --save_state and --resume: a resumed run continues with the next batch, as if it had not been interrupted; "
    "--max_train_steps is the total",
)  # fmt: skip
SAVE_ON_SIGNAL = Flag(
    "--kohya_ext_save_on_signal", RESUME, SWITCH, False, "0.2.0",
    "on SIGTERM or SIGINT, save a state after the optimizer step and stop with exit code 75; implies "
    "--kohya_ext_exact_resume",
)  # fmt: skip

FLAGS: tuple[Flag, ...] = (
    ENABLE_EMA,
    DECAY,
    SCHEDULE,
    Flag(
        "--ema_update_every", EMA, _whole_from(1), 1, "0.1.0",
        "update the EMA every N optimizer steps, decay compensated (default 1)",
    ),
    Flag(
        "--ema_start_step", EMA, _whole_from(0), 0, "0.1.0",
        "exclude the first N optimizer steps from the EMA (default 0)", "EMA start step",
    ),
    Flag(
        "--ema_device", EMA, _one_of("auto", "cuda", "cpu"), "auto", "0.1.0",
        "where the EMA is kept: auto (default) takes the GPU if at least 20 %% of its memory stays free", "EMA device",
    ),
    Flag(
        "--ema_dtype", EMA, _one_of("float32", "bfloat16"), "float32", "0.1.0",
        "dtype of the EMA (default float32; bfloat16 is rounded stochastically)",
    ),
    Flag(
        "--ema_save", EMA, _one_of("beside", "only"), "beside", "0.1.0",
        "beside (default): save the EMA as NAME-ema next to the raw weights; only: just the EMA, as NAME",
    ),
    Flag(
        "--ema_sample", EMA, _one_of("raw", "ema", "both"), "raw", "0.1.0",
        "weights that sample images are made from (default raw)", "Sample from",
    ),
    SIGMA_REL,
    SNAPSHOT_EVERY,
    SNAPSHOT_DTYPE,
    SNAPSHOT_KEEP,
    EXP_BETA,
    Flag(
        "--ema_save_only_ema_weights", EMA, SWITCH, False, "0.1.0",
        "old command lines: the same as --ema_save only",
    ),
    LOG_EVERY,
    VALIDATE,
    VALIDATION_SPLIT,
    VALIDATE_EVERY,
    VALIDATION_TIMESTEPS,
    VALIDATION_SEED,
    SAVE_BEST,
    EXACT_RESUME,
    SAVE_ON_SIGNAL,
)  # fmt: skip
SNAPSHOT_SETTINGS = (SNAPSHOT_DTYPE, SNAPSHOT_KEEP)  # of the snapshots
TWO_SCHEDULES = f"{SCHEDULE.name} and the old {EXP_BETA.name} both choose a schedule; give one of them"
WIDTH_WITHOUT_POWER = f"{SIGMA_REL.name} belongs to {SCHEDULE.name} {POWER}: give both or neither"
NO_SNAPSHOTS = f"does nothing without {SNAPSHOT_EVERY.name}: this run writes no snapshots"
TWO_VALIDATIONS = f"{VALIDATE.name} and {VALIDATION_SPLIT.name} both choose the held-out images; give one of them"
NO_VALIDATION = f"is set, but neither {VALIDATE.name} nor {VALIDATION_SPLIT.name}: this run validates nothing"
NO_EMA = f"is set, but {ENABLE_EMA.name} is not: this run keeps no EMA"
BY_KEY = {flag.key: flag for flag in FLAGS}
PREFIXES = ("enable_ema", "ema_", "kohya_ext_")  # of nearly all of them, so that a mistyped one is known for ours

# Each stays away as a whole where a fork has a flag of the same name: half of it would be read from the fork's flag.
FEATURES = {
    feature: tuple(flag for flag in FLAGS if flag.feature == feature)
    for feature in (EMA, TELEMETRY, VALIDATION, RESUME)
}


def is_ours(key: str) -> bool:
    """Whether a key (a flag without its dashes) is one of these flags, or meant to be."""
    return key in BY_KEY or key.startswith(PREFIXES)


def faults(values: Values) -> Iterator[tuple[Flag, str]]:
    """What a run would refuse in our flags, {key: value} of those that were given: the flag, and why."""
    bad = [(flag, fault) for flag in FLAGS if (fault := flag.fault(values)) is not None]
    yield from bad
    if bad:
        return
    given = {flag.key for flag in FLAGS if values.get(flag.key) is not None}
    if VALIDATE.key in given and VALIDATION_SPLIT.read(values):
        yield VALIDATION_SPLIT, TWO_VALIDATIONS
    if not ENABLE_EMA.read(values):
        return
    if {SCHEDULE.key, EXP_BETA.key} <= given:
        yield EXP_BETA, TWO_SCHEDULES
    elif (SIGMA_REL.key in given) != (SCHEDULE.read(values) == POWER):
        yield SIGMA_REL, WIDTH_WITHOUT_POWER
    if SNAPSHOT_EVERY.key not in given:
        yield from ((flag, f"{flag.name} {NO_SNAPSHOTS}") for flag in SNAPSHOT_SETTINGS if flag.key in given)


def without_validation(values: Values) -> str | None:
    """The first flag of validation, with its dashes, that does nothing because no images are held out."""
    split = VALIDATION_SPLIT
    if values.get(VALIDATE.key) or split.fault(values) is not None or split.read(values):
        return None
    return next((flag.name for flag in FEATURES[VALIDATION] if values.get(flag.key) not in (None, False, 0)), None)


def without_ema(values: Values) -> str | None:
    """The first flag of the EMA, with its dashes, that does nothing because `--enable_ema` was not given."""
    for flag in FEATURES[EMA]:
        if flag is not ENABLE_EMA and values.get(flag.key) not in (None, False):
            return flag.name
    return None
