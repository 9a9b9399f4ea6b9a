"""What `kohya-ext lora` says about a file that it has written: ranks, errors, shares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kohya_ext.core.console import Output
    from kohya_ext.lora import resize as resizing
    from kohya_ext.lora.assemble import FinishedModule, Written
    from kohya_ext.lora.extract import Extraction
    from kohya_ext.lora.outside import ModelChange

WORST_SHOWN = 5


def describe(out: Output, written: Written, of: str) -> None:
    """Ranks, size and error of a file, and its worst modules."""
    ranks = sorted({kept.rank for kept in written.modules})
    span = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"
    out.item("written", f"{written.path}: {len(written.modules)} modules, {span}, {written.size / 1e6:.1f} MB")
    out.item("error", f"{written.error:.2%} of {of} is lost; the worst modules:")
    worst = sorted(written.modules, key=lambda kept: -kept.error)[:WORST_SHOWN]
    for kept in worst:
        out.item("", f"{kept.error:7.2%}  rank {kept.rank:<4} {kept.module.name}")


def print_modules(out: Output, result: resizing.Resized) -> None:
    """A row for every module of a resized LoRA."""
    width = max(len(kept.module.name) for kept in result.written.modules)
    out.row(f"{'module':<{width}}  rank        sum kept  norm kept  max/min    alpha")
    for kept in result.written.modules:
        out.row(f"{kept.module.name:<{width}}  {_row(kept, result)}")


def _row(kept: FinishedModule, result: resizing.Resized) -> str:
    values = result.spectra[kept.module.name]
    total = float(values.sum())
    part = float(values[: kept.rank].sum()) / total if total else 1.0
    norm = float(values[: kept.rank].norm() / values.norm()) if total else 1.0
    least = float(values[kept.rank - 1])
    ratio = f"{float(values[0]) / least:9.1f}" if least else "        -"
    before = result.ranks_before[kept.module.name]
    return f"{before:>4} -> {kept.rank:<4} {part:7.1%}   {norm:7.1%} {ratio}  {kept.alpha:9.4g}"


def document(written: Written) -> dict[str, Any]:
    """The file for scripts."""
    return {
        "path": str(written.path),
        "size": written.size,
        "error": written.error,
        "modules": {
            kept.module.name: {
                "rank": kept.rank,
                "alpha": kept.alpha,
                "error": kept.error,
                "method": kept.module.method,
            }
            for kept in written.modules
        },
    }


def extracted(out: Output, result: Extraction) -> dict[str, Any]:
    """Say what an extraction wrote and what is not in its files; the same for scripts."""
    if result.unchanged:
        out.item("unchanged", f"{len(result.unchanged)} modules do not differ and are skipped")
    files = []
    for written in result.files:
        describe(out, written, "the change")
        share, lost = result.change.kept(written), result.change.lost(written)
        out.item("share", f"{share:.2%} of the whole change is in the file, {lost:.2%} is lost (squared norms)")
        files.append({**document(written), "share": share, "lost": lost})
    return {"unchanged": list(result.unchanged), "change": _outside(out, result.change), "files": files}


def _outside(out: Output, change: ModelChange) -> dict[str, Any]:
    """Say what no module of the files covers, and what would take it in; the same for scripts."""
    parts = [
        {"kind": part.kind, "share": part.energy / change.total, "tensors": part.tensors, "flag": part.flag}
        for part in change.outside
    ]
    if parts:
        out.item("outside", f"{sum(part.energy for part in change.outside) / change.total:.2%}, in other tensors:")
    for part in parts:
        out.item("", f"{part['share']:7.2%}  {part['kind']}: {part['flag'] or 'a LoRA has no place for them'}")
    if change.uncompared:
        out.item("not compared", f"{change.uncompared} tensors that only one model has under this name, or with NaN")
    return {"squared_norm": change.total, "outside": parts, "not_compared": change.uncompared}
