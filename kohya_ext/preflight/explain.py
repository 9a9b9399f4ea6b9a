"""What upstream raised, in its words and in the user's: which setting it is about, and what to change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kohya_ext.core.errors import did_you_mean
from kohya_ext.preflight.commands import Planned
from kohya_ext.presets.findings import Finding
from kohya_ext.presets.keys import EXTRA
from kohya_ext.presets.training_rules import key_of

_IN_CODE = re.compile(r"\bargs\.(\w+)")
_FLAG = re.compile(r"--(\w+)")
_WORD = re.compile(r"\b[a-z][a-z0-9]*(?:_[a-z0-9]+)+\b|\blora_type\b", re.IGNORECASE)
_JAPANESE = re.compile(r"\s*/\s*[^/]*[\u3040-\u30ff\u4e00-\u9fff].*$", re.DOTALL)
_USAGE = re.compile(r"^(?:\S+\.py: )?error: (.+)$", re.MULTILINE)
_NOISE = re.compile(r"^\s*$|it/s\]|^\s*File \"|Traceback|^\s*\^+$")
_WARNED = re.compile(r":\d+: \w*Warning: ")  # by Python, which shows the line of code after it
_MISSING = re.compile(r"No module named '([\w.]+)'")
# Modules that are the checkout's own, and packages that are called otherwise than their module.
KOHYAS = ("networks", "library", "tools", "finetune")
PACKAGES = {"lycoris": "lycoris-lora"}
LONGEST = 500  # characters of upstream's message

# Errors that speak of a value and not of the setting: what they say -> the arguments to ask for, in this order.
HINTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"max_size should be larger than the (width|height) of max_reso", ("max_bucket_reso", "resolution")),
    (r"max_size should be larger than the min_size", ("min_bucket_reso", "max_bucket_reso")),
    (r"min_bucket_reso|max_bucket_reso", ("min_bucket_reso", "max_bucket_reso", "resolution")),
    (r"bucket_reso_steps|is not divisible by|divisible by", ("bucket_reso_steps", "resolution")),
    (r"has no attribute '(\w+)'.*|module 'torch.optim'", ("optimizer_type",)),
    (r"unexpected keyword argument|got an unexpected", ("optimizer_args", "network_args", "lr_scheduler_args")),
    (r"not enough values to unpack|malformed node|invalid syntax", ("optimizer_args", "network_args")),
    (r"is not a valid SchedulerType|SchedulerType", ("lr_scheduler",)),
    (r"No module named 'networks|No module named 'lycoris", ("network_module",)),
    (r"No xformers", ("xformers", "mem_eff_attn")),
    (r"No (lion|dadaptation|prodigy|bitsandbytes|schedulefree|\w+optim)", ("optimizer_type",)),
    (r"No data found|no images?\b|画像がありません|num_samples", ("train_data_dir", "in_json", "dataset_config")),
    (
        r"No such file or directory: .*\.(png|jpe?g|webp|bmp|avif|npz)\b",
        ("in_json", "dataset_config", "train_data_dir"),
    ),
    (r"subsets|image_dir|dataset", ("dataset_config", "train_data_dir")),
)


@dataclass(frozen=True)
class StartError:
    """Why a run would not start. argument: of the script; field: the GUI's, or the argument where there is no GUI.

    type, message, where: what upstream raised, shortened to one language, and its file and line.
    """

    type: str
    message: str
    where: str
    argument: str
    field: str
    value: Any
    fix: str

    def as_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return dict(vars(self))


def start_error(report: Mapping[str, Any], planned: Planned, arguments: Sequence[str]) -> StartError | None:
    """The error of a child's report, None where the script came as far as it should.

    Args:
        report: see `kohya_ext.tracing.main`.
        planned: what was run.
        arguments: all that the script has.
    """
    error = report.get("error")
    if not error:
        return None
    message = _message(error, report)
    names = _named(error, message, planned.training.given(), arguments)
    argument = names[0] if names else ""
    field = key_of(argument, planned.form) if argument else ""
    finding = _finding(planned.findings, [argument, *names], field)
    shown = field or (finding.key if finding else "")
    value = planned.form.get(shown, planned.training.value(argument) if argument else None)
    return StartError(
        str(error["type"]),
        message,
        str(error.get("where", "")),
        argument,
        shown,
        value,
        _fix(finding, shown, names, error, arguments),
    )


def _message(error: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """In one language, without the launcher's noise."""
    said = str(report.get("said", ""))
    logged = [one["message"] for one in report.get("log", []) if one["level"] in ("ERROR", "CRITICAL")]
    if error["type"] == "SystemExit":
        usage = _USAGE.findall(said)
        text = usage[-1] if usage else logged[-1] if logged else _last_line(said) or str(error["message"])
    elif error["type"] == "ended":
        text = logged[-1] if logged else _last_line(said) or "the script ended before it trained, and said nothing"
    else:
        text = str(error["message"]) or (logged[-1] if logged else str(error.get("code", "")).splitlines()[:1] or "")
        text = text if isinstance(text, str) else "".join(text)
    text = _JAPANESE.sub("", text).strip()[:LONGEST]
    image = str(error.get("image") or "")
    return f"{text} ({image})" if image and image not in text and error["type"] != "SystemExit" else text


def _last_line(said: str) -> str:
    every = said.splitlines()
    warnings = {number for number, line in enumerate(every) if _WARNED.search(line)}
    shown = {number + 1 for number in warnings if every[number + 1 : number + 2] and every[number + 1][:1] == " "}
    lines = [line.strip() for number, line in enumerate(every) if number not in warnings | shown]
    return next((line for line in reversed(lines) if not _NOISE.search(line)), "")


def _named(error: Mapping[str, Any], message: str, given: Mapping[str, Any], arguments: Sequence[str]) -> list[str]:
    """The arguments that an error is about; those that were given first."""
    known = {*arguments, *given}
    code = str(error.get("code", ""))
    words = [*_FLAG.findall(message), *_WORD.findall(message)]
    first = [word for word in dict.fromkeys(words) if word in known]
    hints = [name for pattern, names in HINTS if re.search(pattern, message, re.IGNORECASE) for name in names]
    hinted = [name for name in hints if _says_something(given.get(name))]
    from_code = [name for name in dict.fromkeys(_IN_CODE.findall(code)) if name in known]
    flags = [name for name in _FLAG.findall(message) if name not in known]  # unrecognized ones
    ordered = [*flags, *first, *from_code, *hinted]
    asked = [name for name in ordered if name in flags or _says_something(given.get(name))]
    return list(dict.fromkeys([*asked, *ordered]))


def _says_something(value: Any) -> bool:
    return value not in (None, False, "", 0)


def _finding(findings: Sequence[Finding], names: Sequence[str], field: str) -> Finding | None:
    errors = [one for one in findings if one.level == "error"]
    return next((one for one in errors if one.key in (field, *names) and one.key), None)


def _fix(
    finding: Finding | None, field: str, names: Sequence[str], error: Mapping[str, Any], arguments: Sequence[str]
) -> str:
    imports = error["type"] in ("ModuleNotFoundError", "ImportError")
    missing = _MISSING.search(str(error["message"])) if imports else None
    package = missing[1].partition(".")[0] if missing else ""
    if package and (not field or package not in KOHYAS):
        other = f", or change {field}" if field else ""
        name = PACKAGES.get(package, package)
        return f"Kohya's environment lacks the package {name}: finish Kohya's own setup, or install it there{other}"
    if error.get("image") and error["type"] not in ("SystemExit", "FileNotFoundError"):
        return "repair or remove that image; `kohya-ext audit` finds all that cannot be read"
    if finding is not None:
        return finding.fix
    if not field:
        return ""
    others = [name for name in names[1:3] if name != field]
    close = "" if field in arguments or field != names[0] else did_you_mean(field, arguments)
    if field == EXTRA:
        return f"remove {names[0]} from {EXTRA}, or correct it{did_you_mean(names[0], arguments)}"
    if close:
        return f"correct {field}{close}"
    return f"change {' or '.join([field, *others])}"
