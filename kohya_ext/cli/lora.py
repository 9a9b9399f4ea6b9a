"""`kohya-ext lora`: a LoRA from the difference of two models, and a LoRA at a lower rank."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kohya_ext.cli import lora_report as report
from kohya_ext.cli.common import add_json
from kohya_ext.core.console import Output, Progress
from kohya_ext.core.errors import DONE, UsageError

if TYPE_CHECKING:
    from kohya_ext.lora import extract as extracting
    from kohya_ext.lora import resize as resizing

DTYPES = ("fp16", "bf16", "fp32")
LIKES = ("guide-2023", "guide-current")
METHODS = ("auto", "exact", "randomized")
ENCODER_RULES = ("auto", "together", "all", "none")
DYNAMIC = ("sv_ratio", "sv_fro", "sv_cumulative")
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
DEFAULT_RANK = 128
GUIDE_2023_RANKS = (512, 16)


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the group."""
    group = subparsers.add_parser("lora", help="extract a LoRA from two models; resize one to a lower rank")
    verbs = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _register_extract(verbs)
    _register_resize(verbs)


def _register_extract(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser(
        "extract", help="extract what a fine-tune changed as a LoRA for sd-scripts, ComfyUI and diffusers"
    )
    add = verb.add_argument
    model = "a .safetensors file or a diffusers folder"
    add("--base", metavar="MODEL", required=True, type=Path, help=f"the model the fine-tune started from: {model}")
    add("--tuned", metavar="MODEL", required=True, type=Path, help="the fine-tuned model: the same kinds of input")
    add("--out", metavar="FILE", required=True, type=Path, help="the .safetensors file to write")
    add("--like", choices=LIKES, help="the guide's settings: 2023 = rank 512, then 16; current = rank 128; both fp16")
    add(
        "--rank",
        metavar="N[,N...]",
        type=_ranks,
        help="default 128; several: one file each, FILE-rankN.safetensors",
    )
    add("--conv-rank", metavar="N[,N...]", type=_ranks, help="include the residual blocks, 3x3 convolutions at rank N")
    add(
        "--energy",
        metavar="PART",
        type=_part,
        help="per module the lowest rank that keeps PART of its energy (squared norm)",
    )
    add("--size", metavar="BYTES", type=_size, help="choose ranks to fill a file of this size, e.g. 100MB")
    add("--alpha", metavar="X", type=_number, help="network alpha in the file; the effect is unchanged")
    add("--dtype", choices=DTYPES, help="dtype of the file (default fp16)")
    add(
        "--method",
        choices=METHODS,
        default="auto",
        help="auto: randomized where the rank is small compared with the matrix",
    )
    add("--text-encoders", choices=ENCODER_RULES, help="auto: each that changed; together: all if one did (sd-scripts)")
    add("--min-diff", metavar="X", type=_number, help="a text encoder has changed if a weight differs by more than X")
    add("--clamp-quantile", metavar="Q", type=_part, help="clamp the factors as sd-scripts does (its default is 0.99)")
    _add_common(verb)
    verb.set_defaults(run=extract)


def _register_resize(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    verb = verbs.add_parser("resize", help="reduce the rank of a LoRA, exactly; kohya's and PEFT's keys are kept")
    add = verb.add_argument
    add("input", metavar="IN", type=Path, help="the LoRA")
    add("output", metavar="OUT", type=Path, help="the .safetensors file to write")
    add("--rank", metavar="N", type=_rank, required=True, help="the new rank; an upper bound with --dynamic and --size")
    add("--conv-rank", metavar="N", type=_rank, help="rank of 3x3 convolutions (default: the same)")
    add("--dynamic", choices=DYNAMIC, help="choose a rank per module by sd-scripts' rules; needs --param")
    add("--param", metavar="X", type=_number, help="sv_ratio: largest to smallest kept; others: the part to keep")
    add("--size", metavar="BYTES", type=_size, help="choose ranks to fill a file of this size, e.g. 100MB")
    add("--dtype", choices=DTYPES, help="dtype of the file (default: the input's)")
    add("--report", action="store_true", help="print every module, not only the worst")
    _add_common(verb)
    verb.set_defaults(run=resize)


def _add_common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--device", default="auto", help="auto (CUDA if there is one), cpu, cuda, cuda:1, ...")
    verb.add_argument("--allow-pickle", action="store_true", help="also read .ckpt files, tensors only")
    verb.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    verb.add_argument(
        "--dry-run", action="store_true", help="read and check, show what would be written, write nothing"
    )
    add_json(verb)


def extract(arguments: argparse.Namespace) -> int:
    """Plan, say what goes in and what does not, extract, report."""
    from kohya_ext.files.disk import check_target
    from kohya_ext.lora import output_files

    out = Output("lora extract", arguments.json)
    _check_extract(arguments)
    targets = output_files(arguments.out, _ranks_of(arguments))
    for target in targets:
        check_target(target, arguments.overwrite or arguments.dry_run)
    for model in (arguments.base, arguments.tuned):
        _check_input(model, folder=True)

    from kohya_ext.lora import extract as extracting  # torch, which takes seconds: not before the arguments are right
    from kohya_ext.lora import workers

    settings = _extract_settings(arguments, out)
    _check_device(settings.device)
    found = extracting.plan(arguments.base, arguments.tuned, settings)
    out.item("base", f"{found.base.path} ({found.base.architecture.name})")
    out.item("tuned", f"{found.tuned.path}")
    for model in (found.base, found.tuned):
        if model.quantised:
            out.warn(
                f"{model.path} holds {model.quantised}: the rounding of these is part of the change where they differ"
            )
    for decision in found.decisions:
        out.item("encoder", f"{decision.title}: {decision.reason}")
        if decision.unseen:
            out.item("", decision.unseen)
    out.item("modules", f"{len(found.pairs)} to compare, on {workers.pick_device(settings.device)}")
    head = {
        "architecture": found.base.architecture.name,
        "text_encoders": [vars(decision) for decision in found.decisions],
    }
    if arguments.dry_run:
        for target in targets:
            out.item("would write", str(target))
        return out.finish(DONE, **head, modules=len(found.pairs), files=[str(target) for target in targets])
    began = time.monotonic()
    with Progress(shown=not arguments.json) as progress:
        result = extracting.run(found, arguments.out, settings, _modules(progress))
    seconds = time.monotonic() - began
    reported = report.extracted(out, result)
    out.item("done", f"{seconds:.1f} s")
    return out.finish(DONE, **head, **reported, seconds=round(seconds, 2))


def _extract_settings(arguments: argparse.Namespace, out: Output) -> extracting.ExtractSettings:
    from dataclasses import replace

    from kohya_ext.lora.extract import ExtractSettings

    settings = ExtractSettings(
        method=arguments.method, device=arguments.device, allow_pickle=arguments.allow_pickle,
        energy=arguments.energy, size=arguments.size,
    )  # fmt: skip
    if arguments.like == "guide-2023":
        settings = replace(settings, ranks=GUIDE_2023_RANKS, min_diff=1e-6, text_encoders="together")
    given: dict[str, Any] = {
        "ranks": _ranks_of(arguments), "conv_ranks": arguments.conv_rank, "text_encoders": arguments.text_encoders,
        "min_diff": arguments.min_diff, "alpha": arguments.alpha, "dtype": _dtype(arguments.dtype),
    }  # fmt: skip
    settings = replace(settings, **{key: value for key, value in given.items() if value is not None})
    if arguments.clamp_quantile is not None and arguments.clamp_quantile < 1:
        settings = replace(settings, clamp=arguments.clamp_quantile)
        out.warn("--clamp-quantile makes the LoRA worse; it is there only to compare with sd-scripts")
    return settings


def _ranks_of(arguments: argparse.Namespace) -> tuple[int, ...]:
    default = GUIDE_2023_RANKS if arguments.like == "guide-2023" else (DEFAULT_RANK,)
    return arguments.rank or default


def _check_extract(arguments: argparse.Namespace) -> None:
    """What can be told from the arguments alone, without torch. Raises UsageError."""
    ranks = _ranks_of(arguments)
    if arguments.alpha == 0:
        raise UsageError("--alpha 0 would switch every module off")
    if arguments.energy is not None and arguments.size is not None:
        raise UsageError("--energy and --size both choose ranks: give one of them")
    if (arguments.energy is not None or arguments.size is not None) and len(ranks) > 1:
        raise UsageError("--energy and --size make one file: give one --rank, the highest allowed")
    if len(arguments.conv_rank or ()) not in (0, 1, len(ranks)):
        raise UsageError("--conv-rank takes one number, or as many as --rank")


def _check_input(path: Path, *, folder: bool = False) -> None:
    """Refuse a model that is missing or damaged at once, without torch. Raises UsageError.

    folder: it may be one of diffusers, which is looked at later, as a pickle is.
    """
    from kohya_ext.tensors.header import is_pickle, read_header

    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if path.is_dir():
        if not folder:
            raise UsageError(f"{path} is a folder, a file is needed here")
    elif folder and path.name.endswith(".index.json"):
        raise UsageError(f"{path} is the index of a model in several files: name its folder, {path.parent}")
    elif not is_pickle(path):
        read_header(path)


def resize(arguments: argparse.Namespace) -> int:
    """Resize and report by module."""
    from kohya_ext.files.disk import check_target

    out = Output("lora resize", arguments.json)
    _check_resize(arguments)
    check_target(arguments.output, arguments.overwrite or arguments.dry_run)
    _check_input(arguments.input)

    from kohya_ext.lora import resize as resizing  # torch: not before the arguments are right

    settings = _resize_settings(arguments)
    _check_device(settings.device)
    found = resizing.opened(arguments.input, settings)
    ranks = sorted({pair.rank for pair in found.pairs})
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    out.item("input", f"{arguments.input}: {len(found.pairs)} modules, {span}")
    if ranks[-1] < settings.rank:
        out.warn(f"no module has a rank above {ranks[-1]}: --rank {settings.rank} reduces nothing")
    if arguments.dry_run:
        out.item("would write", str(arguments.output))
        return out.finish(DONE, modules=len(found.pairs), files=[str(arguments.output)])
    began = time.monotonic()
    with Progress(shown=not arguments.json) as progress:
        result = resizing.run(found, arguments.output, settings, _modules(progress))
    seconds = time.monotonic() - began
    for note in result.notes:
        out.item("note", note)
    if arguments.report:
        report.print_modules(out, result)
    report.describe(out, result.written, "the input")
    out.item("done", f"{seconds:.1f} s")
    return out.finish(
        DONE, **report.document(result.written), ranks_before=dict(result.ranks_before), seconds=round(seconds, 2)
    )


def _check_resize(arguments: argparse.Namespace) -> None:
    """What can be told from the arguments alone, without torch. Raises UsageError."""
    if (arguments.dynamic is None) != (arguments.param is None):
        raise UsageError("--dynamic and --param belong together, e.g. --dynamic sv_fro --param 0.9")
    if arguments.dynamic and arguments.size:
        raise UsageError("--dynamic and --size both choose ranks: give one of them")
    parameter = arguments.param or 0.0
    if arguments.dynamic == "sv_ratio" and parameter < 1:
        raise UsageError("--param of sv_ratio is a ratio of singular values, so at least 1")
    if arguments.dynamic in ("sv_fro", "sv_cumulative") and not 0 < parameter <= 1:
        raise UsageError(f"--param of {arguments.dynamic} is the part to keep, above 0 and at most 1")


def _resize_settings(arguments: argparse.Namespace) -> resizing.ResizeSettings:
    from kohya_ext.lora.resize import ResizeSettings

    return ResizeSettings(
        rank=arguments.rank, conv_rank=arguments.conv_rank, dynamic=arguments.dynamic, parameter=arguments.param or 0.0,
        size=arguments.size, dtype=_dtype(arguments.dtype), device=arguments.device,
        allow_pickle=arguments.allow_pickle,
    )  # fmt: skip


def _modules(progress: Progress) -> Callable[[int, int, str], None]:
    return lambda done, total, name: progress.show(done, total, f"{done}/{total} {name}")


def _dtype(name: str | None) -> Any:
    if name is None:
        return None
    import torch

    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[name]


def _check_device(name: str) -> None:
    import torch

    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise UsageError(f"--device {name}: torch has no such device") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch sees no CUDA device here")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: only cpu and cuda can do the float64 part")


def _rank(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("a rank is at least 1")
    return number


def _ranks(text: str) -> tuple[int, ...]:
    try:
        ranks = tuple(_rank(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of ranks such as 128,16") from error
    if len(set(ranks)) < len(ranks):
        raise argparse.ArgumentTypeError("each rank once")
    return ranks


def _part(text: str) -> float:
    number = _number(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError("above 0 and at most 1")
    return number


def _number(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise argparse.ArgumentTypeError("a number that is not negative")
    return number


def _size(text: str) -> int:
    match = re.fullmatch(r"\s*([\d.]+)\s*([kmg]i?)?b?\s*", text, re.IGNORECASE)
    try:
        size = int(float(match[1]) * UNITS[(match[2] or "").lower()]) if match else 0
    except ValueError:
        size = 0
    if size < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 100MB")
    return size
