"""Two steps of the training loop, phase by phase: forward, backward, optimizer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kohya_ext.spec.preflight import CACHING_METHODS
from kohya_ext.tracing.between_steps import ask_for_it
from kohya_ext.tracing.facts import Facts
from kohya_ext.tracing.ledger import ACTIVATIONS, EMA, GRADIENTS, OPTIMIZER, TEXT_ENCODERS, VAE, WEIGHTS, Ledger
from kohya_ext.tracing.milestones import STEPS, Reached

ENOUGH = 2  # optimizer steps: the first makes the optimizer's state, the second has all of it with the activations
FORWARD, BACKWARD, STEP, ENCODING = "forward", "backward", "optimizer", "caching"
MOST_ACCUMULATED = 2  # batches a step: a third adds nothing to the peak


class Steps:
    """Follows the loop. done: optimizer steps so far. over: there are enough of them; the script may still save.

    ema_free_share: what an EMA has to leave free of a card, else it goes to the host; None where it was told its place.
    """

    def __init__(self, ledger: Ledger, facts: Facts) -> None:
        self.ledger, self.facts = ledger, facts
        self.done = 0
        self.ema_free_share: float | None = None
        self.begun = self.over = False
        self._told = False  # of the end of the batch that is under way

    def begin(self) -> None:
        """The loop begins: what is alive is filed by what it is."""
        if self.begun:
            return
        self.begun = True
        for parameter, name in self.facts.parameters():
            part = VAE if "vae" in name.casefold() else TEXT_ENCODERS if _only_encodes(parameter, name) else WEIGHTS
            self.ledger.file(parameter, part)
            if parameter.requires_grad and hasattr(parameter, "register_post_accumulate_grad_hook"):
                parameter.register_post_accumulate_grad_hook(self._file_gradient)
        self.ledger.enter(FORWARD, ACTIVATIONS)

    def _file_gradient(self, parameter: Any) -> None:
        if parameter.grad is not None:
            self.ledger.file(parameter.grad, GRADIENTS)

    def file_gradients(self, groups: Iterable[dict[str, Any]]) -> None:
        """An optimizer is about to step: some scripts have put copies in the place of what backward made."""
        for group in groups:
            for parameter in group["params"]:
                self._file_gradient(parameter)

    def finish(self, optimizer_steps: bool) -> None:
        """A step of the schedule ends each iteration."""
        self._told = True
        self._file_state()
        self.done += optimizer_steps
        self.stop_if_over()
        if self.done >= ENOUGH:
            self.over = True
            ask_for_it(self.facts.args)
        self.ledger.enter(FORWARD, ACTIVATIONS)

    def end_batch(self, optimizer_step: bool) -> None:
        """What is done with a batch is over. Schedule-free optimizers have no schedule that has told of it."""
        if not self._told:
            self.finish(optimizer_step)
        self._told = False

    def stop_if_over(self) -> None:
        """No batch is taken any more once there are enough steps."""
        if self.over:
            raise Reached(STEPS)

    def _file_state(self) -> None:
        for optimizer in self.facts.optimizers:
            for state in getattr(optimizer, "state", {}).values():
                for value in state.values() if isinstance(state, dict) else ():
                    self.ledger.file(value, OPTIMIZER)
        for shadow in _shadows():
            self.ema_free_share = shadow.leaves_free
            for _, _, average in shadow.pairs():
                self.ledger.file(average, EMA)


def _only_encodes(parameter: Any, name: str) -> bool:
    return "text" in name.casefold() and "LoRA" not in name and not parameter.requires_grad


def _shadows() -> Iterator[Any]:
    from kohya_ext.runtime.run import run

    for track in (track for average in run.averages for track in average.tracks):
        if track.shadow is not None:
            yield track.shadow


def follow(ledger: Ledger, facts: Facts) -> Steps:
    """Wrap what accelerate hands to a script, so that phases show.

    Args:
        ledger: gets the phases.
        facts: know the models and optimizers.
    """
    import accelerate
    from accelerate.scheduler import AcceleratedScheduler

    steps = Steps(ledger, facts)
    _within(accelerate.Accelerator, "backward", ledger, BACKWARD, ACTIVATIONS)
    _within(accelerate.optimizer.AcceleratedOptimizer, "step", ledger, STEP, OPTIMIZER)
    take = accelerate.optimizer.AcceleratedOptimizer.step

    @functools.wraps(take)
    def take_with_gradients(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.file_gradients(self.param_groups)
        return take(self, *args, **kwargs)

    accelerate.optimizer.AcceleratedOptimizer.step = take_with_gradients
    schedule = AcceleratedScheduler.step
    initialise = accelerate.Accelerator.__init__

    @functools.wraps(schedule)
    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = schedule(self, *args, **kwargs)
        steps.finish(bool(self.gradient_state.sync_gradients))
        return result

    @functools.wraps(initialise)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "gradient_accumulation_steps" in kwargs:
            kwargs["gradient_accumulation_steps"] = min(int(kwargs["gradient_accumulation_steps"]), MOST_ACCUMULATED)
        initialise(self, *args, **kwargs)

    AcceleratedScheduler.step = stepped
    accelerate.Accelerator.__init__ = init
    _end_batches(accelerate.Accelerator, steps)
    return steps


def _end_batches(accelerator: Any, steps: Steps) -> None:
    """Scripts do all with a batch but saving and sampling within `accumulate`."""
    original = accelerator.accumulate

    @functools.wraps(original)
    @contextlib.contextmanager
    def accumulate(self: Any, *models: Any) -> Iterator[None]:
        with original(self, *models):
            yield
        steps.end_batch(bool(self.sync_gradients))

    accelerator.accumulate = accumulate


def _within(owner: Any, name: str, ledger: Ledger, phase: str, part: str) -> None:
    original: Callable[..., Any] = getattr(owner, name)

    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = (ledger.phase, ledger.part)
        ledger.enter(phase, part)
        try:
            return original(*args, **kwargs)
        finally:
            ledger.enter(*before)

    setattr(owner, name, call)


def cache_in_phase(group: type, ledger: Ledger) -> None:
    """Let a data set group cache for the largest batch alone, in a phase of its own.

    Args:
        group: the class.
        ledger: gets the phase.
    """
    for name in CACHING_METHODS:
        if hasattr(group, name):
            _within(group, name, ledger, ENCODING, ACTIVATIONS)
            _of_largest_batch(group, name)


def _of_largest_batch(group: Any, name: str) -> None:
    original = getattr(group, name)

    @functools.wraps(original)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        with contextlib.ExitStack() as stack:
            for dataset in self.datasets:
                stack.enter_context(_largest_only(dataset))
            return original(self, *args, **kwargs)

    setattr(group, name, call)


@contextlib.contextmanager
def _largest_only(dataset: Any) -> Iterator[None]:
    data = dataset.image_data
    keys = _largest_keys(dataset)
    dataset.image_data = {key: info for key, info in data.items() if key in keys} or data
    try:
        yield
    finally:
        dataset.image_data = data


def largest_batch(dataset: Any) -> int:
    """The position of the batch with the most pixels."""
    indices = getattr(dataset, "buckets_indices", None)
    if not indices:
        return 0

    def pixels(number: int) -> int:
        index = indices[number]
        width, height = dataset.bucket_manager.resos[index.bucket_index]
        members = len(dataset.bucket_manager.buckets[index.bucket_index])
        start = index.batch_index * index.bucket_batch_size
        return int(width * height * min(index.bucket_batch_size, members - start))

    return max(range(len(indices)), key=pixels)


def _largest_keys(dataset: Any) -> set[str]:
    indices = getattr(dataset, "buckets_indices", None)
    if not indices:
        return set(dataset.image_data)
    index = indices[largest_batch(dataset)]
    start = index.batch_index * index.bucket_batch_size
    return set(dataset.bucket_manager.buckets[index.bucket_index][start : start + index.bucket_batch_size])


def give_largest(group: Any) -> None:
    """Let a data set group give its largest batch whatever is asked for: the one that was cached for."""

    def item(self: Any, number: int) -> Any:
        if not hasattr(self, "largest"):
            dataset = max(self.datasets, key=len)
            self.largest = dataset[largest_batch(dataset)]
        return self.largest

    group.__getitem__ = item
