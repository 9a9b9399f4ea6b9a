"""AdaCoor: the optimizer, as torch sees it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from kohya_ext.optim import accumulator, blockwise, loading, settings
from kohya_ext.optim.eager import SkipCount, SlicedStep
from kohya_ext.optim.plan import Due, GroupPlan
from kohya_ext.tensors.compiled import untraced
from kohya_ext.tensors.elements import repeats


class AdaCoor(torch.optim.Optimizer):
    """Adagrad with learning rate lr * sqrt(eps), epsilon sqrt(eps) and an accumulator of 2 bytes a weight.

    With v the sum of the squared gradients of an element, a step is

        v = v + vt_rate * g**2
        p = p * (1 - lr * sqrt(eps) * weight_decay) - lr * sqrt(eps) * g / (sqrt(v) + sqrt(eps))

    With float32 weights, lr 1 and the defaults its trajectory is that of the published AdaCoor, bit for bit: 16 bits
    hold eps * v in bfloat16, with the roundings of that optimizer. A gradient element that is not finite, or whose
    square is not, leaves its weight and its state as they were; `skipped` counts them.

    Args:
        params: dense float16, bfloat16, float32 or float64 tensors of any shape, or groups of them. Every argument
            below can differ from group to group.
        lr: factor of the update, at least 0. The published optimizer ignores it.
        eps: its root is the longest step at lr 1, and the size of gradient above which steps are adapted. Above 0, as a
            bfloat16 too.
        weight_decay: decoupled weight decay, at least 0, relative to lr * sqrt(eps).
        vt_rate: factor of what each gradient adds to the accumulator, at least 0.
        state_bits: 32, 16 or 8 for each element of the accumulator; float64 weights always get 64. 8 bits take one
            float32 scale for each 256 elements as well, and are always rounded stochastically.
        stochastic_state: round a 16-bit accumulator stochastically, which keeps it unbiased.
        stochastic_weights: round float16 and bfloat16 weights stochastically, without which they stop moving.
        seed: of all rounding, which depends on (seed, step, parameter index, element) and nothing else.
        maximize: ascend.
        foreach: gather small tensors into one step. None: on a GPU, unless `fused`.
        fused: True for compiled kernels, which need a C++ compiler or Triton. None: on a GPU, where they
            work and have the same bits, for large tensors, unless `foreach` is given; on a CPU torch's own fused
            Adagrad, where it does the same (32 bits).
        auto_lr: put the distance that a tensor's weights have moved so far in the place of sqrt(eps), which then is the
            first guess of it. `lr` 1 is right for most trainings; another one multiplies. Takes 1/32 byte a weight; a
            16-bit accumulator is rounded stochastically then.
        momentum: share of the mean of the latest updates that each step keeps, at least 0 and below 1. It builds up: in
            step t of a tensor it is t / (t + 60), until that is more. Above 0 it takes 2 bytes a weight, rounded
            stochastically; 4 with state_bits=32.

    Raises:
        TypeError: an argument, or a parameter, of a type that cannot be used; it is named.
        ValueError: a number out of range, arguments that exclude each other, a parameter whose elements share memory.

    Reference:
        Duchi, Hazan, Singer: Adaptive Subgradient Methods for Online Learning and Stochastic Optimization, 2011,
        https://jmlr.org/papers/v12/duchi11a.html; decoupled decay: https://arxiv.org/abs/1711.05101; 8 bits in blocks:
        https://arxiv.org/abs/2110.02861; auto_lr: Khaled, Mishchenko, Jin: DoWG Unleashed, 2023,
        https://arxiv.org/abs/2305.16284.
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
        auto_lr: bool = False,
        momentum: float = 0.0,
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
            "auto_lr": auto_lr,
            "momentum": momentum,
            "code_book": blockwise.BOOK,  # of 8-bit states, for `load_state_dict`; not an argument
        }
        settings.check(defaults)
        self._set_up()
        super().__init__(params, defaults)
        self._hide_no_momentum()

    def _set_up(self) -> None:
        self.skip_count = SkipCount()
        self._sliced = SlicedStep(self.skip_count)
        self._plans: dict[int, GroupPlan] = {}
        self._places: dict[int, tuple[int, int]] = {}

    def _hide_no_momentum(self) -> None:
        """torch's cycling schedulers ask `defaults` for a momentum, and would set one of .95 where there is none."""
        if not self.defaults.get("momentum"):
            self.defaults.pop("momentum", None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        if not hasattr(self, "_sliced"):  # a copy or an unpickled one; `load_state_dict` comes here too
            self._set_up()
        entries = state.get("state", {})
        for parameter, loaded in entries.items():
            if isinstance(loaded, loading.Entries):  # from `load_state_dict`
                entries[parameter] = loaded.values
        super().__setstate__(state)
        self._hide_no_momentum()
        for group in self.param_groups:  # an unpickled one of an earlier version has fewer settings
            group.setdefault("auto_lr", False)
            group.setdefault("momentum", 0.0)
            book = group.setdefault("code_book", 1)
            if book != blockwise.BOOK:
                for parameter in group["params"]:
                    accumulator.renew(self.state.get(parameter, {}), parameter, book)
                group["code_book"] = blockwise.BOOK

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
        if isinstance(param_group, dict):
            param_group.setdefault("momentum", self.defaults.get("momentum", 0.0))
        super().add_param_group(param_group)
        try:
            settings.check(self.param_groups[-1])
            settings.check_parameters(self.param_groups[-1], before)
            settings.make_plain(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    # ------------------------------------------------------------------ stepping

    @untraced
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter that has a gradient.

        Args:
            closure: computes the loss and the gradients, and is called first; None where the gradients are there.

        Returns:
            What `closure` returns, None without one.

        Raises:
            RuntimeError: a gradient that is not dense, a shape that has changed, or weights whose elements have come to
                share memory; no parameter has been stepped then.
            TypeError, ValueError: a setting that has become one which the constructor refuses, or other `state_bits`
                (only `load_state_dict` converts accumulators); likewise.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = 0
        due: list[list[Due]] = []
        for group in self.param_groups:
            due.append(self._due(group["params"], first))
            first += len(group["params"])
        stepping = [(self._plan_of(number), members) for number, members in enumerate(due) if members]
        elements = sum(plan.step(members, self.state) for plan, members in stepping)
        if elements:
            self.skip_count.end_step(elements)
        return loss

    @untraced
    @torch.no_grad()
    def step_param(self, parameter: Tensor, group: dict[str, Any] | None = None) -> None:
        """Step one parameter, as soon as its gradient is there (fused backward). Nothing without a gradient.

        Args:
            parameter: one of this optimizer's.
            group: accepted for the sake of callers who hold one; the settings are those of the parameter's own group
                today, which `load_state_dict` may have replaced since.

        Raises:
            ValueError: a parameter of another optimizer; else as in `step`.
            RuntimeError, TypeError: as in `step`.
        """
        if parameter.grad is None:
            return
        number, index = self._place_of(parameter)
        due = self._due([parameter], index)
        if due:
            self._plan_of(number).step(due, self.state)

    def _due(self, parameters: list[Tensor], first: int) -> list[Due]:
        """What a step of these parameters takes; those without a gradient or without elements are skipped.

        Raises RuntimeError for a gradient that is not dense, and where weights can no longer be stepped in place.
        """
        states = self.state
        due: list[Due] = []
        for index, parameter in enumerate(parameters, start=first):
            gradient = parameter.grad
            if gradient is None:
                continue
            shape, state = parameter.shape, states.get(parameter)
            vt = state.get("vt") if state else None
            fits = vt is None or vt.shape == shape or accumulator.fits(vt, parameter)
            shared = not parameter.is_contiguous() and repeats(parameter)
            if gradient.layout != torch.strided or gradient.shape != shape or not fits or shared:
                raise RuntimeError(_misfit(index, parameter, gradient, vt))
            if parameter.numel():
                due.append((index, parameter, gradient, state))
        return due

    def _plan_of(self, number: int) -> GroupPlan:
        """How this group is stepped, decided again only when one of its settings has changed."""
        group = self.param_groups[number]
        now = settings.values(group)
        plan = self._plans.get(number)
        if plan is None or plan.settings != now:
            settings.check_again(group, number)
            rule = settings.rule_of(group)
            if plan is None or plan.state_bits != rule.state_bits:
                self._check_widths(number)
            plan = GroupPlan(now, rule, group["foreach"], group["fused"], self._sliced, self.skip_count)
            self._plans[number] = plan
        return plan

    def _check_widths(self, number: int) -> None:
        """Raise ValueError where accumulators have not the width that their group says: a state would be misread."""
        group = self.param_groups[number]
        for parameter in group["params"]:
            vt = self.state[parameter].get("vt") if parameter in self.state else None
            if vt is not None and not accumulator.is_of(vt, group["state_bits"]):
                raise ValueError(
                    f"state_bits of group {number} is {group['state_bits']} now, but its accumulators are {vt.dtype}; "
                    "to convert them, load the state_dict() into an AdaCoor that is made with other state_bits"
                )

    def _place_of(self, parameter: Tensor) -> tuple[int, int]:
        """Number of its group, and index among all parameters."""
        first = [0, *itertools.accumulate(len(group["params"]) for group in self.param_groups)]
        place = self._places.get(id(parameter))
        if place is None or not self._is_at(*place, first, parameter):
            self._places.clear()  # groups or their parameters have changed, or this is the first call
            for number, group in enumerate(self.param_groups):
                for index, member in enumerate(group["params"], start=first[number]):
                    self._places[id(member)] = (number, index)
            place = self._places.get(id(parameter))
        if place is None:
            raise ValueError(f"a parameter of shape {tuple(parameter.shape)} is not one of this optimizer's")
        return place

    def _is_at(self, number: int, index: int, first: list[int], parameter: Tensor) -> bool:
        if not (number < len(self.param_groups) and first[number] <= index < first[number + 1]):
            return False
        return self.param_groups[number]["params"][index - first[number]] is parameter

    # ------------------------------------------------------------------ state

    def load_state_dict(self, state_dict: Any) -> None:
        """Continue from a `state_dict()`, of this class or of the published AdaCoor, bit for bit.

        Unlike torch's, this does not cast the accumulator to the type of the weights. An accumulator of another width
        is converted, and that is said in a warning. `state_bits`, `foreach` and `fused` stay those of this object; all
        other settings become the saved ones, as torch has it, and a warning names those that differ, `lr` aside. From
        a state of the published optimizer only the accumulators are taken. Hooks run as torch's optimizers run them.

        Args:
            state_dict: its groups hold as many parameters as those of this optimizer, in the same order.

        Raises:
            ValueError: what does not fit or is damaged, by name; the optimizer is then as it was before.
        """
        converted: list[int] = []
        replaced: list[tuple[str, str]] = []

        def read(_: torch.optim.Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            loaded = loading.read(given, self.param_groups)
            converted.extend(loaded.converted)
            replaced.extend(loaded.replaced)
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
        if replaced:
            given, saved = (", ".join(texts) for texts in zip(*replaced, strict=True))
            warnings.warn(
                f"AdaCoor: the run continues with {saved}, as its state was saved, not with {given}; for those, start "
                "from the saved weights without the state, or set them in param_groups after loading it",
                UserWarning,
                stacklevel=2,
            )
        if converted:
            widths_now = " and ".join(map(str, sorted(set(converted))))
            warnings.warn(
                f"AdaCoor: the accumulators of {len(converted)} parameters were converted to {widths_now} bits; "
                "the run continues, but not bit for bit",
                UserWarning,
                stacklevel=2,
            )


def _misfit(index: int, parameter: Tensor, gradient: Tensor, vt: Tensor | None) -> str:
    """Why this parameter cannot be stepped."""
    if gradient.layout != torch.strided:
        return (
            f"AdaCoor cannot use the gradient of parameter {index}: it is {gradient.layout}; "
            "set sparse=False where the parameter is made"
        )
    if repeats(parameter):
        return (
            f"parameter {index} has shape {tuple(parameter.shape)} and stride {tuple(parameter.stride())} now, "
            "by which elements share memory; train a clone"
        )
    return (
        f"parameter {index} has shape {tuple(parameter.shape)} now, its gradient {tuple(gradient.shape)}"
        + ("" if vt is None else f" and its accumulator {tuple(vt.shape)}")
        + "; make a new optimizer after changing the shape of weights"
    )
