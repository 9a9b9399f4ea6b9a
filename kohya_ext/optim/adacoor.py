"""AdaCoor: the optimizer, as torch sees it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kohya_ext.optim import accumulator, compiled, loading, settings, torch_adagrad
from kohya_ext.optim.eager import SlicedStep
from kohya_ext.optim.foreach import Job, step_many
from kohya_ext.optim.functional import Rule
from kohya_ext.optim.nonfinite import SkipCount
from kohya_ext.tensors.elements import flat_views, overlap


class AdaCoor(torch.optim.Optimizer):
    """Adagrad with learning rate lr * sqrt(eps), epsilon sqrt(eps) and an accumulator of 2 bytes a weight.

    With float32 weights, lr 1 and the defaults its trajectory is that of the published AdaCoor, bit for bit.

    params: parameters or groups; every argument below can differ from group to group.
    lr: multiplies the update (the published one ignores it). eps: see above; must be positive.
    weight_decay: decoupled; each step multiplies weights by 1 - lr * sqrt(eps) * weight_decay.
    vt_rate: multiplies what each gradient adds to the accumulator.
    state_bits: 32, 16 or 8 for each element of the accumulator; float64 weights always get 64. 8 bits are always
    rounded stochastically. stochastic_state: round 16 bits stochastically, which keeps the accumulator unbiased.
    stochastic_weights: round float16 and bfloat16 weights stochastically, without which they stop moving.
    seed: of all rounding, which depends on (seed, step, parameter index, element) and nothing else.
    maximize: ascend. foreach: gather small tensors (on a GPU unless False). fused: True for compiled kernels (needs
    a C++ compiler or Triton); None for torch's own fused Adagrad where it does the same (32 bits, CPU).

    A gradient element that is not finite, or whose square is not, leaves its weight and its state as they were;
    `skipped` counts them. Raises TypeError and ValueError that name the argument or the parameter.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1.0,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        vt_rate: float = 1.0,
        state_bits: int = 16,
        stochastic_state: bool = False,
        stochastic_weights: bool = True,
        seed: int = 0,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "eps": eps,
            "weight_decay": weight_decay,
            "vt_rate": vt_rate,
            "state_bits": state_bits,
            "stochastic_state": stochastic_state,
            "stochastic_weights": stochastic_weights,
            "seed": seed,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
        }
        settings.check(defaults)
        self._set_up()
        super().__init__(params, defaults)

    def _set_up(self) -> None:
        self.skip_count = SkipCount()
        self._sliced = SlicedStep(self.skip_count)
        self._places: dict[int, tuple[int, int]] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "_sliced"):  # a copy or an unpickled one; `load_state_dict` comes here too
            self._set_up()
        entries = state.get("state", {})
        for parameter, loaded in entries.items():
            if isinstance(loaded, loading.Entries):  # from `load_state_dict`
                entries[parameter] = loaded.values
        super().__setstate__(state)

    @property
    def skipped(self) -> int:
        """How many gradient elements were not usable so far. Waits for the device."""
        return self.skip_count.total()

    @property
    def skipped_steps(self) -> int:
        """How many calls of `step` found no usable element: clipping spreads one NaN over all. Waits for the device."""
        return self.skip_count.whole_steps()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its settings are checked like the constructor's. Nothing is added when they are refused."""
        before = sum(len(group["params"]) for group in self.param_groups)
        super().add_param_group(param_group)
        try:
            settings.check(self.param_groups[-1])
            settings.check_parameters(self.param_groups[-1], before)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    # ------------------------------------------------------------------ stepping

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient. Returns what `closure` returns, if there is one.

        Raises RuntimeError, before any parameter is stepped, where a gradient or a state cannot be used.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        number = 0
        due: list[list[_Due]] = []
        for group in self.param_groups:
            found = [self._due(parameter, index) for index, parameter in enumerate(group["params"], start=number)]
            due.append([one for one in found if one is not None])
            number += len(found)
        for group, members in zip(self.param_groups, due, strict=True):
            rule = settings.rule_of(group)
            together: list[Job] = []
            for member in members:
                self._step_one(member, group, rule, together)
            self._step_together(group, rule, together)
        elements = sum(one.parameter.numel() for members in due for one in members)
        if elements:
            self.skip_count.end_step(elements)
        return loss

    @torch.no_grad()
    def step_param(self, parameter: Tensor, group: dict[str, Any] | None = None) -> None:
        """Step one parameter, as soon as its gradient is there (fused backward). Nothing without a gradient.

        group: accepted for the sake of callers who hold one; the settings are those of the parameter's own group
        today, which `load_state_dict` may have replaced since.
        """
        if parameter.grad is None:
            return
        group_number, index = self._place_of(parameter)
        due = self._due(parameter, index)
        if due is not None:
            own = self.param_groups[group_number]
            self._step_one(due, own, settings.rule_of(own), None)

    def _step_one(self, due: _Due, group: dict[str, Any], rule: Rule, together: list[Job] | None) -> None:
        """Step a parameter, or add it to `together`, if given, where it is to be stepped with others."""
        index, parameter, gradient, state = due
        if state is None:
            state = self.state[parameter]
        if "vt" not in state:
            state["step"] = 0
            state.update(accumulator.fresh(parameter, rule.state_bits))
        state["step"] += 1
        with _flattened(parameter, gradient, state["vt"]) as flat:
            weights, grad, vt = flat.views
            job = Job(weights, grad, {**state, "vt": vt}, state["step"], index)
            if together is not None and flat.in_place and self._is_gathered(group, rule, job):
                together.append(job)
            else:
                self._dispatch(group, rule, job)

    def _due(self, parameter: Tensor, index: int) -> _Due | None:
        """What a step of this parameter takes; None without a gradient or without elements.

        Raises RuntimeError for a gradient that is not dense, and where weights have changed their shape.
        """
        gradient = parameter.grad
        if gradient is None:
            return None
        if gradient.layout != torch.strided:
            raise RuntimeError(
                f"AdaCoor cannot use the gradient of parameter {index}: it is {gradient.layout}; "
                "set sparse=False where the parameter is made"
            )
        shape, state = parameter.shape, self.state.get(parameter)
        vt = state.get("vt") if state else None
        if gradient.shape != shape or (vt is not None and vt.shape != shape and not accumulator.fits(vt, parameter)):
            raise RuntimeError(
                f"parameter {index} has shape {tuple(shape)} now, its gradient {tuple(gradient.shape)}"
                + ("" if vt is None else f" and its accumulator {tuple(vt.shape)}")
                + "; make a new optimizer after changing the shape of weights"
            )
        return _Due(index, parameter, gradient, state) if parameter.numel() else None

    @staticmethod
    def _is_gathered(group: dict[str, Any], rule: Rule, job: Job) -> bool:
        if gathers(group, job.weights.device) or _is_compiled(group, job):
            return True
        return job.weights.numel() <= torch_adagrad.SMALL and _takes_torchs_kernel(group, rule, job)

    def _step_together(self, group: dict[str, Any], rule: Rule, jobs: list[Job]) -> None:
        """Step what `_is_gathered`."""
        if len(jobs) > 1 and overlap([job.weights for job in jobs]):  # what is gathered is read before it is written
            for job in jobs:
                self._dispatch(group, rule, job)
            return
        gathered = [job for job in jobs if gathers(group, job.weights.device)]
        step_many(self._sliced, rule, gathered)
        if group["fused"]:
            self._step_compiled(rule, jobs)
        else:
            small = [job for job in jobs if not gathers(group, job.weights.device)]
            torch_adagrad.step_many(self._sliced, rule, small)

    def _step_compiled(self, rule: Rule, jobs: list[Job]) -> None:
        for count in compiled.step_many(rule, jobs):
            self.skip_count.add_count(count)

    def _dispatch(self, group: dict[str, Any], rule: Rule, job: Job) -> None:
        if _takes_torchs_kernel(group, rule, job):
            torch_adagrad.step_(self._sliced, rule, job.weights, job.gradient, job.state["vt"])
        elif _is_compiled(group, job):
            self._step_compiled(rule, [job])
        else:
            self._sliced.step(rule, job.weights, job.gradient, job.state, job.step, job.index)

    def _place_of(self, parameter: Tensor) -> tuple[int, int]:
        place = self._places.get(id(parameter))
        if place is None:
            index = 0
            for number, group in enumerate(self.param_groups):
                for member in group["params"]:
                    self._places[id(member)] = (number, index)
                    index += 1
            place = self._places.get(id(parameter))
        if place is None:
            raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not one of this optimizer's")
        return place

    # ------------------------------------------------------------------ state

    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from a `state_dict()`, of this class or of the published AdaCoor, bit for bit.

        Unlike torch's, this does not cast the accumulator to the type of the weights. An accumulator of another width
        is converted, and that is said in a warning. `state_bits`, `foreach` and `fused` stay those of this object; from
        a state of the published optimizer only the accumulators are taken. Hooks run as torch's optimizers run them.
        Raises ValueError that names what does not fit or is damaged; the optimizer is then as it was before.
        """
        converted: list[int] = []

        def read(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            loaded = loading.read(given, self.param_groups)
            converted.extend(loaded.converted)
            return {"param_groups": loaded.groups, "state": loaded.state}

        if not isinstance(state_dict, dict):
            raise ValueError(f"not the state of an optimizer: a {type(state_dict).__name__}")
        if hasattr(self, "register_load_state_dict_pre_hook"):
            # the last of these hooks: it is given what the others made of the state, and nothing has been changed yet
            last = self.register_load_state_dict_pre_hook(read)
            try:
                super().load_state_dict(state_dict)
            finally:
                last.remove()
        else:  # before torch 2.1 there are no such hooks
            super().load_state_dict(read(self, state_dict))
        if converted:
            widths_now = " and ".join(map(str, sorted(set(converted))))
            warnings.warn(
                f"AdaCoor: the accumulators of {len(converted)} parameters were converted to {widths_now} bits; "
                "the run goes on, but not bit for bit",
                UserWarning,
                stacklevel=2,
            )


def gathers(group: dict[str, Any], device: torch.device) -> bool:
    """Whether small tensors are stepped together: where asked for, and, as torch's optimizers do, on any GPU."""
    if group["foreach"] is None:
        return device.type != "cpu" and not group["fused"]
    return bool(group["foreach"])


def _is_compiled(group: dict[str, Any], job: Job) -> bool:
    return bool(group["fused"]) and job.weights.numel() >= compiled.SMALLEST


def _takes_torchs_kernel(group: dict[str, Any], rule: Rule, job: Job) -> bool:
    free = group["fused"] is None and not group["foreach"]
    return free and torch_adagrad.available(rule, job.weights, job.gradient, job.state["vt"])


class _Due(NamedTuple):
    place: int
    parameter: Tensor
    gradient: Tensor
    state: dict[str, Any] | None


class _flattened:  # noqa: N801  (used as a context, like a function)
    """Weights, gradient and accumulator as flat, contiguous tensors: views, or else copies that are written back.

    Contiguous because torch's own kernels take that for granted: given a flat view with gaps, as `reshape` may return,
    they write into the gaps.
    """

    def __init__(self, weights: Tensor, gradient: Tensor, vt: Tensor) -> None:
        weights = weights.data
        self.in_place = True
        self._copied: Sequence[tuple[Tensor, Tensor]] = ()
        if weights.is_contiguous() and gradient.is_contiguous() and vt.is_contiguous():
            self.views = [weights.view(-1), gradient.view(-1), vt.view(-1)]
            return
        # codes are flat already, in the logical order of the elements
        views = flat_views(weights, gradient, vt) if vt.dtype != torch.uint8 else None
        self.views = views or [tensor.reshape(-1).contiguous() for tensor in (weights, gradient, vt)]
        if views is None:
            self.in_place = False
            copies = ((weights, self.views[0]), (vt, self.views[2]))
            self._copied = [(own, copy) for own, copy in copies if not own.is_contiguous()]

    def __enter__(self) -> _flattened:
        return self

    def __exit__(self, *exception: object) -> None:
        for own, copy in self._copied:
            own.copy_(copy.view(own.shape))
