"""The accelerator of a run: where settings are checked first, networks are found, and states are saved and loaded."""

from __future__ import annotations

import argparse
import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from kohya_ext.runtime import averaging, guard, measuring, options, sampling, telemetry, validation_options
from kohya_ext.runtime.run import run, stop, warn_again_at_end
from kohya_ext.runtime.safe_save import unwinding_on_sigterm
from kohya_ext.spec.optimizers import ours


def prepare_accelerator(original: Callable[..., Any], args: argparse.Namespace, *rest: Any, **named: Any) -> Any:
    """Kohya's `prepare_accelerator(args)`. It runs before the models are loaded, so bad settings end the run here."""
    telemetry.report_skips()  # of a training before this one in the same process
    run.begin()
    settings = options.read(args)
    options.check(args)
    log_every = options.log_every(args)
    telemetry.require_logs(args, log_every)
    validating = validation_options.read(args)
    resume = options.exact_resume(args)
    asked = settings is not None or log_every or validating or resume is not None
    if asked or ours(getattr(args, "optimizer_type", None)):
        guard.stop_at_faults()
        _load_all()
    if resume is not None:
        from kohya_ext.runtime import resume_start  # here: it needs torch

        script = resume_start.check(args)
    result = original(args, *rest, **named)
    accelerator = result[0] if isinstance(result, tuple) else result  # sd-scripts v0.6 returns (it, unwrap_model)
    optimizer = ours(getattr(args, "optimizer_type", None))
    if getattr(args, "deepspeed", False) and (asked or optimizer):
        _leave_models_whole(args)
    if getattr(args, "deepspeed", False) and optimizer:
        _let_any_optimizer_be_offloaded(accelerator)
    telemetry.begin(accelerator, log_every)
    measuring.begin(args, accelerator)
    if settings is not None:
        _refuse_fsdp(accelerator)
        averaging.begin(args, settings)
        sampling.wrap_sampler_of_script()
        _watch(accelerator, args, settings)
    if validating is not None:
        from kohya_ext.runtime import validation  # it needs torch

        validation.begin(args, validating, accelerator)
    if resume is not None:
        resume_start.begin(args, resume, accelerator, script)
    return result


def _refuse_fsdp(accelerator: Any) -> None:
    """Kohya's scripts let the first process save a model alone, of which it then has only a part."""
    if str(getattr(accelerator, "distributed_type", "")).endswith("FSDP"):
        stop(
            "--enable_ema does not work with FSDP, as Kohya's scripts cannot save a model that it has divided: "
            "start them with --deepspeed --zero_stage 3, which divides it as well"
        )


def _leave_models_whole(args: argparse.Namespace) -> None:
    """Have transformers make models as it does without DeepSpeed; they are divided when the training begins.

    With ZeRO 3 it divides them at once, whatever `--zero3_init_flag` says, and Kohya cannot load weights into those.
    """
    if getattr(args, "zero3_init_flag", False):
        return
    for name in ("transformers.integrations.deepspeed", "transformers.deepspeed"):
        forget = getattr(sys.modules.get(name), "unset_hf_deepspeed_config", None)
        if callable(forget):
            forget()


def _let_any_optimizer_be_offloaded(accelerator: Any) -> None:
    """Without this setting DeepSpeed offloads its own Adam only."""
    settings = getattr(getattr(accelerator.state, "deepspeed_plugin", None), "deepspeed_config", None)
    if isinstance(settings, dict):
        settings.setdefault("zero_force_ds_cpu_optimizer", False)


def _load_all() -> None:
    """Import whatever this run may need, before a model is loaded: the package may be updated or removed meanwhile.

    Stops the run where a module of ours is damaged.
    """
    try:
        for name in ("optim", "ema", "resume", "validation", "runtime"):
            package = importlib.import_module(f"kohya_ext.{name}")
            for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
    except Exception as error:
        stop(
            f"--enable_ema and AdaCoor cannot be used, kohya_ext is damaged ({type(error).__name__}: {error}); "
            f"`{sys.executable} -m kohya_ext doctor` has details"
        )


def _watch(accelerator: Any, args: argparse.Namespace, settings: options.EmaOptions) -> None:
    """Wrap the *instance's* prepare and save/load_state: this is the one accelerator of the run."""
    from kohya_ext.runtime import savers
    from kohya_ext.runtime.ema_outputs import Twins
    from kohya_ext.runtime.zero import is_engine

    twins = Twins(args, settings)
    savers.wrap_saver_of_embeddings(twins)
    savers.wrap_saver_of_lllite(twins)
    prepare, save_state, load_state = accelerator.prepare, accelerator.save_state, accelerator.load_state

    @functools.wraps(prepare)
    def prepare_and_meet(*models: Any, **named: Any) -> Any:
        for model in models:
            averaging.meet(model)
            for part in (model, *_models_within(model)):
                savers.wrap_saver_of_network(part, twins)
                savers.wrap_writers(part, args, twins)
        result = prepare(*models, **named)
        for thing in result if isinstance(result, (tuple, list)) else (result,):
            if is_engine(thing):
                averaging.attach(thing, accelerator)
        return result

    @functools.wraps(save_state)
    def save_state_of_raw(*where: Any, **named: Any) -> Any:
        with unwinding_on_sigterm(), averaging.raw_weights():
            result = save_state(*where, **named)
            _save_ema(_folder(where, named))
        return result

    @functools.wraps(load_state)
    def load_state_and_average(*where: Any, **named: Any) -> Any:
        result = load_state(*where, **named)
        averaging.load_state(_folder(where, named))
        return result

    accelerator.prepare = prepare_and_meet
    accelerator.save_state = save_state_of_raw
    accelerator.load_state = load_state_and_average


def _models_within(model: Any) -> list[Any]:
    """The models that Kohya has wrapped into one, for DeepSpeed."""
    get_models = getattr(model, "get_models", None)
    return list(get_models().values()) if callable(get_models) else []


def _save_ema(folder: str | None) -> None:
    """Write the EMA into a state; where that fails, the state stays as upstream made it, and training continues."""
    try:
        averaging.save_state(folder)
    except Exception as error:  # a full disk, mostly
        warn_again_at_end(
            f"the state {folder} contains no EMA ({type(error).__name__}: {error}): "
            "a run resumed from it starts a new one"
        )


def _folder(where: tuple[Any, ...], named: dict[str, Any]) -> str | None:
    folder = where[0] if where else named.get("output_dir", named.get("input_dir"))
    return None if folder is None else str(folder)
