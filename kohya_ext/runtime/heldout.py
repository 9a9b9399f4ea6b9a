"""The held-out images of a run: a data set of Kohya's own making, next to the one that it trains on.

Kohya builds its data sets from a blueprint, in one function that all releases share. It is called a second time with a
blueprint of the held-out images: same resolution, buckets and caption settings, but one image a batch, without
repeats, augmentation, shuffled or dropped captions. They are cached, where the training's are, by the same calls. None
of this disturbs the random numbers of the training.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kohya_ext.files.image_suffixes import SUFFIXES
from kohya_ext.runtime import validation_options
from kohya_ext.runtime.randomness import undisturbed
from kohya_ext.runtime.run import run, say, stop, warn_again_at_end
from kohya_ext.runtime.validation_options import ValidationOptions
from kohya_ext.spec.hooks import DATASET_CLASSES, DATASET_GROUP, DATASET_METHODS, DATASET_MODULE

_MARK = "__kohya_ext_held_out__"
# settings of a subset -> what they are for held-out images; those that a release lacks are skipped
_PLAIN = {
    "num_repeats": 1,
    "shuffle_caption": False,
    "color_aug": False,
    "flip_aug": False,
    "face_crop_aug_range": None,
    "random_crop": False,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "caption_tag_dropout_rate": 0.0,
    "token_warmup_step": 0,
    "is_reg": False,
    "cache_info": False,
    "validation_split": 0.0,
}


class HeldOut:
    """The held-out images, in the order of their names. group: Kohya's data sets of them."""

    def __init__(self, group: Any) -> None:
        self.group = group
        found = [(name, number) for number, name in enumerate(_names(group))]
        self._places = [number for _, number in sorted(found)]
        self.names = [name for name, _ in sorted(found)]

    def batch(self, number: int) -> Any:
        """The batch of one image as Kohya's loader hands it to the script, on the CPU; recreated at each call."""
        return self.group[self._places[number]]


def notice(args: argparse.Namespace) -> None:
    """The command line has been parsed into `args`: watch for the data sets, if they ask for validation."""
    run.arguments, run.given, run.held_out = args, dict(vars(args)), None
    if not validation_options.asked(args):
        return
    try:
        module = importlib.import_module(DATASET_MODULE)
        build = getattr(module, DATASET_GROUP)
    except (ImportError, AttributeError):
        return  # `require` tells, when it is known what the run needs
    if not hasattr(build, _MARK):
        setattr(module, DATASET_GROUP, _building_both(module, build))


def require() -> HeldOut:
    """The held-out images of this run. Stops it where its script has built no data sets in the known way."""
    if run.held_out is None:
        stop(
            f"validation cannot be used: this script has not built its data set through {DATASET_MODULE}, so its "
            "images are not known; remove --kohya_ext_validate or --kohya_ext_validation_split"
        )
    held_out: HeldOut = run.held_out
    return held_out


def mirror(group_class: type, seed: int) -> None:
    """From now on, what prepares the training's images (caches of latents and of text encoders) prepares ours too."""
    for name in DATASET_METHODS:
        method = getattr(group_class, name, None)
        if callable(method):
            run.replace(group_class, name, _for_both(method, seed))


def _for_both(method: Callable[..., Any], seed: int) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(group: Any, *args: Any, **named: Any) -> Any:
        result = method(group, *args, **named)
        held_out = run.held_out
        if held_out is not None and group is not held_out.group:
            with undisturbed(seed):
                method(held_out.group, *args, **named)
        return result

    return call


def _building_both(module: Any, build: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(build)
    def build_both(blueprint: Any, *rest: Any, **named: Any) -> Any:
        options = validation_options.read(run.arguments) if validation_options.asked(run.arguments) else None
        if options is None:
            return build(blueprint, *rest, **named)
        _refuse(blueprint)
        withheld: set[str] = set()
        with _withholding(module, options, withheld) if options.share else _everything():
            result = build(blueprint, *rest, **named)
        if options.share and not withheld:
            stop("there are fewer than two training images, so none can be held out: add images, or give a folder")
        if isinstance(result, tuple) and len(result) > 1 and result[1] is not None:
            stop("the data set's validation_split is Kohya's own validation: use that or kohya_ext's, not both")
        ours = _of_folder(module, blueprint, options) if options.folder else _of_split(blueprint)
        with (
            undisturbed(options.seed),
            _withholding(module, options, withheld, only=True) if withheld else _everything(),
        ):
            built = build(ours, *rest, **named)
        run.held_out = HeldOut(built[0] if isinstance(built, tuple) else built)
        _tell(run.held_out, options)
        _warn_of_trained(run.held_out, result[0] if isinstance(result, tuple) else result)
        return result

    setattr(build_both, _MARK, True)
    return build_both


def _refuse(blueprint: Any) -> None:
    if any(getattr(dataset, "is_controlnet", False) for dataset in blueprint.datasets):
        stop("validation does not work with conditioning images (conditioning_data_dir); remove one of them")


def _tell(held_out: HeldOut, options: ValidationOptions) -> None:
    where = options.folder or "the training images"
    if not held_out.names:
        stop(f"there are no images to hold out in {where}")
    if len(held_out.names) < 2:
        say("validation: one held-out image tells nothing about others; hold out 8 or more")
    count = len(held_out.names) * options.timesteps
    images = f"{len(held_out.names)} image{'s' if len(held_out.names) > 1 else ''}"
    say(f"validation: {images} held out from {where}, {count} measurements each time")


def _warn_of_trained(held_out: HeldOut, group: Any) -> None:
    """Say so where the folder of held-out images has some that are trained on as well."""
    trained = {os.path.realpath(name) for dataset in group.datasets for name in getattr(dataset, "image_data", ())}
    both = sum(os.path.realpath(name) in trained for name in held_out.names)
    if both:
        warn_again_at_end(
            f"{both} of the {len(held_out.names)} held-out images are trained on as well, so the validation loss does "
            "not show how well the model generalizes: move them out of the training folder"
        )


def _of_folder(module: Any, blueprint: Any, options: ValidationOptions) -> Any:
    """A blueprint of the held-out folder: its images, and those of each folder in it."""
    model = blueprint.datasets[0]
    if len(blueprint.datasets) > 1:
        say("validation: held-out images are prepared by the settings of the first data set")
    settings = model.subsets[0].params
    extension = getattr(settings, "caption_extension", None) or getattr(run.arguments, "caption_extension", None)
    folders = [folder for folder in _folders(Path(options.folder or "")) if _has_images(folder)]
    subsets = [
        module.SubsetBlueprint(
            _made(
                module.DreamBoothSubsetParams, settings, image_dir=str(folder),
                class_tokens=folder.name.partition("_")[2] or None if folder.name.partition("_")[0].isdigit() else None,
                caption_extension=extension or ".caption", **_PLAIN,
            )
        )
        for folder in folders
    ]  # fmt: skip
    if not subsets:
        stop(f"there are no images to hold out in {options.folder}")
    params = _made(module.DreamBoothDatasetParams, model.params, batch_size=1, validation_split=0.0)
    return replace(
        blueprint,
        datasets=[replace(model, is_dreambooth=True, is_controlnet=False, params=params, subsets=subsets)],
    )


def _of_split(blueprint: Any) -> Any:
    """The training's blueprint for the images that were taken out of it."""
    datasets = []
    for dataset in blueprint.datasets:
        subsets = [
            replace(subset, params=_made(type(subset.params), subset.params, **_PLAIN))
            for subset in dataset.subsets
            if not getattr(subset.params, "is_reg", False)
        ]
        params = _made(type(dataset.params), dataset.params, batch_size=1)
        datasets.append(replace(dataset, params=params, subsets=subsets))
    return replace(blueprint, datasets=datasets)


def _made(kind: Any, model: Any, **values: Any) -> Any:
    """A `kind` with the settings of `model` that it has, and these values where it knows them."""
    known = {field.name for field in fields(kind)}
    settings = {field.name: getattr(model, field.name) for field in fields(model)} | values
    return kind(**{name: value for name, value in settings.items() if name in known})


def _folders(folder: Path) -> list[Path]:
    return [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


@contextmanager
def _everything() -> Iterator[None]:
    yield


@contextmanager
def _withholding(module: Any, options: ValidationOptions, withheld: set[str], *, only: bool = False) -> Iterator[None]:
    """While this lasts, data sets lose the held-out images before they make buckets; with `only`, all others.

    withheld: which; filled in as the data sets of the training come along.
    """
    from kohya_ext.validation.measurements import held_out

    replaced: list[tuple[Any, bool, Any]] = []

    def choosing(make_buckets: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(make_buckets)
        def choose_and_make(dataset: Any, *args: Any, **named: Any) -> Any:
            if not only:
                names = [key for key, info in dataset.image_data.items() if not info.is_reg]
                withheld.update(held_out(names, options.share, options.seed))
            _drop(dataset, [key for key in dataset.image_data if (key in withheld) != only])
            return make_buckets(dataset, *args, **named)

        return choose_and_make

    try:
        for name in DATASET_CLASSES:
            kind = getattr(module, name)
            replaced.append((kind, "make_buckets" in vars(kind), kind.make_buckets))
            kind.make_buckets = choosing(kind.make_buckets)
        yield
    finally:
        for kind, own, method in replaced:
            if own:
                kind.make_buckets = method
            else:
                del kind.make_buckets


def _drop(dataset: Any, keys: list[str]) -> None:
    for key in keys:
        info, subset = dataset.image_data.pop(key), dataset.image_to_subset.pop(key)
        subset.img_count -= 1
        if info.is_reg:
            dataset.num_reg_images -= info.num_repeats
        else:
            dataset.num_train_images -= info.num_repeats


def _names(group: Any) -> Iterator[str]:
    """The images of the batches, in their order: one each."""
    for dataset in group.datasets:
        for index in dataset.buckets_indices:
            bucket = dataset.bucket_manager.buckets[index.bucket_index]
            yield bucket[index.batch_index * index.bucket_batch_size]
