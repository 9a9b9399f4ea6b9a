"""What validation meets of Kohya: its data sets made from a blueprint, its recorder of losses, and a training loop.

Names, signatures and the order of calls are Kohya's; the model is one weight matrix.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import accelerate
import pytest
import torch

from kohya_ext.runtime import accelerators, averaging, heldout, loader
from kohya_ext.runtime.run import run

SIDE = 4


@dataclass
class DreamBoothSubsetParams:
    image_dir: str = ""
    num_repeats: int = 1
    shuffle_caption: bool = False
    flip_aug: bool = False
    caption_dropout_rate: float = 0.0
    caption_extension: str = ".caption"
    is_reg: bool = False
    class_tokens: str | None = None
    cache_info: bool = False


@dataclass
class DreamBoothDatasetParams:
    batch_size: int = 1
    validation_split: float = 0.0


@dataclass
class SubsetBlueprint:
    params: Any


@dataclass
class DatasetBlueprint:
    is_dreambooth: bool
    is_controlnet: bool
    params: Any
    subsets: list[SubsetBlueprint]


@dataclass
class DatasetGroupBlueprint:
    datasets: list[DatasetBlueprint]


class BucketBatchIndex(NamedTuple):
    bucket_index: int
    bucket_batch_size: int
    batch_index: int


@dataclass
class ImageInfo:
    image_key: str
    num_repeats: int
    is_reg: bool = False
    latents: Any = None


@dataclass
class Subset:
    image_dir: str
    num_repeats: int
    flip_aug: bool
    is_reg: bool
    caption_extension: str
    img_count: int = 0


class BaseDataset:
    """Two buckets, by the length of the name; each image is made from its name."""

    def __init__(self, subsets: list[Subset], batch_size: int, validation_split: float) -> None:
        self.subsets, self.batch_size = subsets, batch_size
        self.image_data: dict[str, ImageInfo] = {}
        self.image_to_subset: dict[str, Subset] = {}
        for subset in subsets:
            for path in sorted(Path(subset.image_dir).glob("*.png")):
                self.image_data[str(path)] = ImageInfo(str(path), subset.num_repeats, subset.is_reg)
                self.image_to_subset[str(path)] = subset
                subset.img_count += 1
        self.num_train_images = sum(info.num_repeats for info in self.image_data.values() if not info.is_reg)
        self.num_reg_images = sum(info.num_repeats for info in self.image_data.values() if info.is_reg)

    def make_buckets(self) -> None:
        names = [name for name, info in self.image_data.items() for _ in range(info.num_repeats)]
        buckets = [[name for name in names if len(name) % 2 == parity] for parity in (0, 1)]
        self.bucket_manager = argparse.Namespace(buckets=buckets)
        self.buckets_indices = [
            BucketBatchIndex(number, self.batch_size, start)
            for number, bucket in enumerate(buckets)
            for start in range(-(-len(bucket) // self.batch_size))
        ]

    def set_seed(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return len(self.buckets_indices)

    def __getitem__(self, number: int) -> dict[str, Any]:
        index = self.buckets_indices[number]
        start = index.batch_index * index.bucket_batch_size
        names = self.bucket_manager.buckets[index.bucket_index][start : start + index.bucket_batch_size]
        images = []
        for name in names:
            image = self.image_data[name].latents
            if image is None:
                image = torch.full((SIDE,), sum(map(ord, Path(name).stem)) / 1000)
            if self.image_to_subset[name].flip_aug and random.random() < 0.5:
                image = image.flip(0)
            images.append(image)
        return {"latents": torch.stack(images), "image_keys": names}


class DreamBoothDataset(BaseDataset):
    pass


class FineTuningDataset(BaseDataset):
    pass


class DatasetGroup(torch.utils.data.ConcatDataset):
    def new_cache_latents(self, model: Any, accelerator: Any) -> None:
        for dataset in self.datasets:
            for name, info in dataset.image_data.items():
                info.latents = sum(map(ord, Path(name).stem)) / 1000 + 0.01 * torch.randn(SIDE)


def generate_dataset_group_by_blueprint(dataset_group_blueprint: DatasetGroupBlueprint) -> tuple[Any, Any]:
    config = sys.modules["library.config_util"]
    datasets = []
    for blueprint in dataset_group_blueprint.datasets:
        known = Subset.__dataclass_fields__
        subsets = [
            Subset(**{name: value for name, value in asdict(one.params).items() if name in known})
            for one in blueprint.subsets
        ]
        datasets.append(config.DreamBoothDataset(subsets, **asdict(blueprint.params)))
    seed = random.randint(0, 2**31)
    for dataset in datasets:
        dataset.make_buckets()
        dataset.set_seed(seed)
    return DatasetGroup(datasets), None


class LossRecorder:
    def __init__(self) -> None:
        self.loss_list: list[float] = []
        self.loss_total = 0.0

    def add(self, *, epoch: int, step: int, loss: float) -> None:
        if epoch == 0:
            self.loss_list.append(loss)
        else:
            self.loss_total -= self.loss_list[step]
            self.loss_list[step] = loss
        self.loss_total += loss

    @property
    def moving_average(self) -> float:
        return self.loss_total / len(self.loss_list)


@dataclass
class Trained:
    """What a run leaves behind. seen: what the script has logged, at which step."""

    weights: torch.Tensor
    ema: torch.Tensor | None
    bias: Any = None
    seen: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    images: list[list[str]] = field(default_factory=list)
    rng: Any = None
    average: float = 0.0
    saved: dict[str, torch.Tensor] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)


class Collator:
    def __init__(self) -> None:
        self.current_step = multiprocessing.Value("i", 0)

    def __call__(self, examples: list[Any]) -> Any:
        return examples[0] | {"counted": self.current_step.value}


class Tracker:
    name = "little"

    def __init__(self, seen: list[tuple[int, dict[str, float]]]) -> None:
        self.seen = seen

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.seen.append((step or 0, values))


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the modules where Kohya's would be."""
    config = ModuleType("library.config_util")
    for kind in (
        DreamBoothSubsetParams,
        DreamBoothDatasetParams,
        SubsetBlueprint,
        DreamBoothDataset,
        FineTuningDataset,
    ):
        setattr(config, kind.__name__, kind)
    config.generate_dataset_group_by_blueprint = generate_dataset_group_by_blueprint  # type: ignore[attr-defined]
    util = ModuleType("library.train_util")
    util.LossRecorder = LossRecorder  # type: ignore[attr-defined]
    for module in (ModuleType("library"), config, util):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def arguments(folder: Path, **settings: Any) -> argparse.Namespace:
    values = {
        "output_dir": str(folder / "out"), "output_name": "dog", "max_train_epochs": 2, "max_train_steps": 0,
        "gradient_accumulation_steps": 1, "optimizer_type": "SGD", "workers": 0, "resume": None, "logging_dir": None,
        "save_every_n_epochs": None, "save_every_n_steps": None, "cache": False, "flip": False, "repeats": 1,
        "learning_rate": 0.05, "batch": 1,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **settings})


def train(folder: Path, args: argparse.Namespace) -> Trained:
    """A run as Kohya's scripts make one, on the images in folder/train."""
    for state in (accelerate.state.AcceleratorState, accelerate.state.GradientState, accelerate.state.PartialState):
        state._reset_state()
    random.seed(5)
    torch.manual_seed(5)
    heldout.notice(args)
    subset = SubsetBlueprint(
        DreamBoothSubsetParams(str(folder / "train"), flip_aug=args.flip, num_repeats=args.repeats)
    )
    blueprint = DatasetGroupBlueprint(
        [DatasetBlueprint(True, False, DreamBoothDatasetParams(batch_size=args.batch), [subset])]
    )
    group, _ = sys.modules["library.config_util"].generate_dataset_group_by_blueprint(blueprint)
    accelerator = accelerators.prepare_accelerator(
        lambda args: accelerate.Accelerator(cpu=True, gradient_accumulation_steps=args.gradient_accumulation_steps),
        args,
    )
    accelerator.trackers = []
    if args.cache:
        group.new_cache_latents(None, accelerator)
    model = torch.nn.Sequential(torch.nn.Linear(SIDE, SIDE), torch.nn.Dropout(0.2))
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    averaging.follow(optimizer)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    batches = torch.utils.data.DataLoader(
        group, batch_size=1, shuffle=True, collate_fn=Collator(), num_workers=args.workers
    )
    args.max_train_steps = args.max_train_epochs * -(-len(batches) // args.gradient_accumulation_steps)
    model, optimizer, batches, scheduler = accelerator.prepare(model, optimizer, batches, scheduler)
    result = Trained(torch.empty(0), None)
    accelerator.trackers = [Tracker(result.seen)]
    _loop(args, accelerator, model, optimizer, batches, scheduler, result)
    result.weights, result.bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    average = averaging.current()
    if average is not None:
        with average.in_place():
            result.ema = model[0].weight.detach().clone()
    result.rng, result.scheduler = (random.random(), torch.rand(3)), scheduler.state_dict()
    return result


def _loop(
    args: argparse.Namespace,
    accelerator: Any,
    model: Any,
    optimizer: Any,
    batches: Any,
    scheduler: Any,
    result: Trained,
) -> None:
    counter = batches.collate_fn.current_step
    recorder, global_step = sys.modules["library.train_util"].LossRecorder(), 0
    for epoch in range(args.max_train_epochs):
        model.train()
        for step, batch in enumerate(batches):
            counter.value = global_step
            with accelerator.accumulate(model):
                latents = batch["latents"]
                noise = torch.randn_like(latents)
                times = torch.randint(0, 1000, (len(latents),))
                share = (times / 1000)[:, None]
                loss = (model(latents * (1 - share) + noise * share) - noise).square().mean()
                accelerator.backward(loss)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad(set_to_none=True)
            if accelerator.sync_gradients:
                global_step += 1
                if args.save_every_n_steps and global_step % args.save_every_n_steps == 0:
                    result.saved[f"step {global_step}"] = model[0].weight.detach().clone()
            current_loss = loss.detach().item()
            recorder.add(epoch=epoch, step=step, loss=current_loss)
            result.average = recorder.moving_average
            logged = batch.get("counted", 0) if not args.workers else 0
            accelerator.log(
                {"counted": logged, "loss": current_loss, "average": recorder.moving_average}, step=global_step
            )
            result.images.append(batch["image_keys"])
            if global_step >= args.max_train_steps:
                break
        if args.save_every_n_epochs:
            result.saved[f"epoch {epoch + 1}"] = model[0].weight.detach().clone()


def reset() -> None:
    """Leave nothing of a run behind."""
    run.restore()
    run.averages = []
    run.validation = run.held_out = run.arguments = None
    assert not run.loader_layers and loader.POSITIONS
