"""What a preflight sees on the way: the data set as upstream read it, and what the optimizer was given."""

from __future__ import annotations

import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

TEXT = ".txt"  # what captions usually end with; not upstream's default
NETWORK_PART = re.compile(r"^(lora_(?:unet|te\d*)|lycoris_(?:unet|te\d*)|unet|text_encoders?\d*)")
PARTS = {
    "lora_unet": "LoRA, U-Net", "lora_te": "LoRA, text encoder", "lora_te1": "LoRA, text encoder 1",
    "lora_te2": "LoRA, text encoder 2", "lora_te3": "LoRA, text encoder 3", "unet": "U-Net",
    "text_encoder": "text encoder", "text_encoder1": "text encoder 1", "text_encoder2": "text encoder 2",
    "vae": "VAE", "network": "network", "flux": "FLUX", "mmdit": "MMDiT", "dit": "DiT",
}  # fmt: skip


@dataclass
class Facts:
    """groups: parameter groups of the optimizers; owners: id of a parameter -> what it is part of.

    mirrors: as of `kohya_ext.preflight.prepare.Workplace`, for folders that a data set configuration names.
    """

    datasets: list[Any] = field(default_factory=list)
    groups: list[dict[str, Any]] = field(default_factory=list)
    owners: dict[int, str] = field(default_factory=dict)
    optimizers: list[Any] = field(default_factory=list)
    models: dict[int, Any] = field(default_factory=dict)
    args: Any = None
    processes: int = 1
    total_steps: int = 0
    notes: list[str] = field(default_factory=list)
    optimizer: str = ""
    mirrors: dict[str, str] = field(default_factory=dict)

    def see_data(self, group: Any) -> None:
        """A data set group was made; with regularisation or validation there are several, the first one trains."""
        self.datasets.append(group)

    def see_optimizer(self, args: Any, optimizer: Any, processes: int) -> None:
        """The learning rate's schedule is asked for: all of args is final by now, and the optimizer is made."""
        self.args, self.processes = args, processes
        self.total_steps = int(getattr(args, "max_train_steps", 0) or 0)
        self.groups += optimizer.param_groups
        self.optimizers.append(optimizer)
        self.optimizer = type(getattr(optimizer, "optimizer", optimizer)).__name__
        self._name_owners()

    def _name_owners(self) -> None:
        """The script's own variables say what a module is: they are called alike in all releases."""
        import torch

        frame: Any = sys._getframe(1)
        while frame is not None:
            for name, value in list(frame.f_locals.items()):
                for number, module in enumerate(value if isinstance(value, (list, tuple)) else [value], 1):
                    if isinstance(module, torch.nn.Module):
                        called = f"{name.rstrip('s')}{number}" if isinstance(value, (list, tuple)) else name
                        self._own(called, module)
            frame = frame.f_back

    def parameters(self) -> Iterator[tuple[Any, str]]:
        """Every weight of the models that were seen, and what it is part of."""
        for module in self.models.values():
            for parameter in module.parameters():
                yield parameter, self.owners.get(id(parameter), "")

    def _own(self, name: str, module: Any) -> None:
        self.models[id(module)] = module
        for key, parameter in module.named_parameters():
            found = NETWORK_PART.match(key) if name == "network" else None
            part = found[1] if found else name
            if id(parameter) not in self.owners or name in PARTS:
                self.owners[id(parameter)] = PARTS.get(part, part)

    def as_json(self) -> dict[str, Any]:
        """All of it, as far as the script came."""
        found: dict[str, Any] = {"notes": self.notes, "mirrors": self.mirrors}
        if self.datasets:
            found["data"] = data_of(self.datasets[0])
        if self.args is not None:
            found["trained"] = list(self._trained())
            found["optimizer"] = self.optimizer
            found["steps"] = self._steps()
        return found

    def _steps(self) -> dict[str, Any]:
        args, batches = self.args, len(self.datasets[0]) if self.datasets else 0
        accumulation = max(int(getattr(args, "gradient_accumulation_steps", 1) or 1), 1)
        each = math.ceil(batches / max(self.processes, 1) / accumulation)
        total = self.total_steps
        return {
            "batches_per_epoch": batches,
            "steps_per_epoch": each,
            "total_steps": total,
            "epochs": math.ceil(total / each) if each else 0,
            "gradient_accumulation_steps": accumulation,
            "processes": self.processes,
        }

    def _trained(self) -> Iterator[dict[str, Any]]:
        counted: Counter[tuple[str, float]] = Counter()
        for group in self.groups:
            rate = float(group.get("initial_lr", group["lr"]))
            for parameter in group["params"]:
                part = self.owners.get(id(parameter), "model")
                counted[(part, rate)] += parameter.numel() if parameter.requires_grad else 0
        for (part, rate), weights in counted.items():
            yield {"part": part, "weights": weights, "learning_rate": rate}


def data_of(group: Any) -> dict[str, Any]:
    """Images, repeats, buckets and captions of a data set group, as upstream has read them."""
    sets = [_dataset(one) for one in group.datasets]
    images = [info for one in group.datasets for info in getattr(one, "image_data", {}).values()]
    captions = [str(info.caption) for info in images if isinstance(info.caption, str)]
    return {
        "images": len(images),
        "with_repeats": sum(int(info.num_repeats) for info in images),
        "captions": {
            "empty": sum(not caption.strip() for caption in captions) + len(images) - len(captions),
            "distinct": len(set(captions)),
            "longest": max(map(len, captions), default=0),
        },
        "datasets": sets,
    }


def _dataset(one: Any) -> dict[str, Any]:
    manager = getattr(one, "bucket_manager", None)
    buckets = []
    if manager is not None:
        for resolution, members in zip(manager.resos, manager.buckets, strict=False):
            if members:
                batches = math.ceil(len(members) / max(one.batch_size, 1))
                buckets.append({"resolution": list(resolution), "images": len(members), "batches": batches})
    return {
        "resolution": [getattr(one, "width", None), getattr(one, "height", None)],
        "batch_size": one.batch_size,
        "images": getattr(one, "num_train_images", 0),
        "regularisation_images": getattr(one, "num_reg_images", 0),
        "batches": len(one),
        "buckets": buckets,
        "subsets": [
            {
                "folder": getattr(subset, "image_dir", None),
                "images": getattr(subset, "img_count", 0),
                "repeats": getattr(subset, "num_repeats", 1),
                **_captions(one, subset),
            }
            for subset in getattr(one, "subsets", [])
        ],
    }


def _captions(dataset: Any, subset: Any) -> dict[str, Any]:
    """How many images of a folder have no caption file, and how many of them have one with another ending."""
    extension, homes = getattr(subset, "caption_extension", None), getattr(dataset, "image_to_subset", {})
    if not isinstance(extension, str) or not hasattr(subset, "class_tokens"):
        return {}
    own = [dataset.image_data[key] for key, home in homes.items() if home is subset and key in dataset.image_data]
    stems = [os.path.splitext(str(info.absolute_path))[0] for info in own]  # noqa: PTH122 - upstream does it so
    bare = [stem for stem in stems if not _has_caption(stem, extension)]
    return {
        "extension": extension,
        "without_caption": len(bare),
        "with_txt": sum(_has_caption(stem, TEXT) for stem in bare),
        "named": subset.class_tokens or "",
    }


def _has_caption(stem: str, extension: str) -> bool:
    return any(os.path.exists(f"{one}{extension}") for one in (stem, stem.removesuffix("_face_det")))  # noqa: PTH110
