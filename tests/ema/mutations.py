"""Faults that an average of weights can have, each as one change to our code, and the tests that must notice it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """file: below kohya_ext. old, new: a text that stands there once, its successor. tests: for pytest."""

    cause: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "the start model keeps its share: the bias is not divided out",
        "ema/schedules.py",
        "return math.expm1(rate) / math.expm1(update * rate)",
        "return -math.expm1(rate)",
        "tests/ema/test_schedules.py -k debiased",
    ),
    Mutation(
        "a constant target is not reached: the weights of the lerp are exchanged",
        "ema/blend.py",
        "                shadow.lerp_(weights, update.weight)\n",
        "                shadow.lerp_(weights, 1 - update.weight)\n",
        "tests/ema/test_shadow.py -k random_walk",
    ),
    Mutation(
        "over a random walk the EMA is off: small tensors are blended with the weight of every update",
        "ema/blend.py",
        "torch._foreach_lerp_(own, weights, update.weight)",
        "torch._foreach_lerp_(own, weights, 0.1)",
        "tests/ema/test_shadow.py -k 'closed_form or random_walk'",
    ),
    Mutation(
        "an interval makes the EMA longer: the decay of the steps in between is not multiplied (constant)",
        "ema/schedules.py",
        "return 1.0 if self.decay == 0 else -math.expm1(every * math.log(self.decay))",
        "return 1.0 if self.decay == 0 else -math.expm1(math.log(self.decay))",
        "tests/ema -k interval",
    ),
    Mutation(
        "an interval makes the EMA longer (debiased)",
        "ema/schedules.py",
        "rate = every * math.log(self.decay)",
        "rate = math.log(self.decay)",
        "tests/ema -k interval",
    ),
    Mutation(
        "a bfloat16 average is rounded to nearest: it stands still",
        "ema/blend.py",
        "shadow.copy_(round_stochastically(own, words, torch.bfloat16))",
        "shadow.copy_(own)",
        "tests/ema/test_shadow.py -k unbiased",
    ),
    Mutation(
        "stochastic rounding is biased: always up",
        "ema/blend.py",
        "            words = random_words(key, element_indices(start, shadow.numel(), shadow.device))\n",
        "            words = random_words(key, element_indices(start, shadow.numel(), shadow.device)) | 0xFFFF\n",
        "tests/ema/test_shadow.py -k unbiased",
    ),
    Mutation(
        "sharded weights: what was put together from the EMA is computed with after the swap",
        "ema/gathering.py",
        "        finally:\n            _discard_gathered(model)\n",
        "        finally:\n            pass\n",
        "tests/ema/test_sharded.py -k 'samples and 2-'",
    ),
    Mutation(
        "sharded weights: a part of the EMA is written as if it were the whole",
        "ema/checkpoint.py",
        "    if any(is_sharded(shadow) for shadow in shadows.values()):\n",
        "    if False:\n",
        "tests/ema/test_sharded.py -k never_written",
    ),
    Mutation(
        "plain 16-bit shadows are let through",
        "ema/parameters.py",
        "    if dtype == torch.bfloat16 and stochastic:\n",
        "    if dtype in (torch.bfloat16, torch.float16):\n",
        "tests/ema/test_shadow.py -k refused",
    ),
    Mutation(
        "an EMA that stands still stops nothing",
        "ema/health.py",
        "                raise FrozenShadowError(",
        "                FrozenShadowError(",
        "tests/ema/test_health.py -k 'stands_still or would_be_found'",
    ),
    Mutation(
        "a false stop at a learning rate of 0: weights that did not move count",
        "ema/health.py",
        "if _moved([sample.weights for sample in before], [sample.weights for sample in now]) and not _moved(",
        "if not _moved(",
        "tests/ema/test_health.py -k false_alarm",
    ),
    Mutation(
        "a false stop before a late start, and between the updates of an interval: steps count, not updates",
        "ema/health.py",
        "        if self._shadow.updates < 1:\n            return\n        if self._sample is None:\n"
        "            self._begin()\n        elif self._shadow.updates - self._seen >= self._after:",
        "        if self._sample is None:\n"
        "            self._begin()\n        elif self._shadow.step - self._seen >= self._after:",
        "tests/ema/test_health.py -k false_alarm",
    ),
    Mutation(
        "a NaN in a large tensor enters the EMA",
        "ema/blend.py",
        "        elif not self._guarded or math.isfinite(float(weights.sum())):",
        "        elif True:",
        "tests/ema/test_shadow.py -k non_finite",
    ),
    Mutation(
        "a NaN in a small tensor enters the EMA",
        "ema/blend.py",
        "if math.isfinite(float(torch.stack(torch._foreach_norm(weights)).sum())):",
        "if weights:",
        "tests/ema/test_shadow.py -k non_finite",
    ),
    Mutation(
        "a NaN enters the EMA in the compiled pass",
        "ema/compiled.py",
        "            finite = upcast.abs() < math.inf\n",
        "            finite = torch.ones_like(upcast, dtype=torch.bool)\n",
        "tests/ema/test_compiled.py --slow -k agree",
    ),
    Mutation(
        "of the tensors of a compiled pass only the first few are blended",
        "ema/compiled.py",
        "    for first in range(0, len(weights), GROUP):\n",
        "    for first in range(0, GROUP, GROUP):\n",
        "tests/ema/test_compiled.py --slow -k agree",
    ),
    Mutation(
        "of two averages in one pass both get the weight of the first",
        "ema/compiled.py",
        "    scalars = [_scalar(number, first.dtype, first.device) for number in numbers]\n",
        "    scalars = [_scalar(numbers[0], first.dtype, first.device) for _ in numbers]\n",
        "tests/ema/test_joint.py --slow",
    ),
    Mutation(
        "an average of other weights joins the pass",
        "ema/joint.py",
        "any(other is not weights for",
        "any(other is None for",
        "tests/ema/test_joint.py",
    ),
    Mutation(
        "what is left over from the rows of a compiled pass is not blended",
        "ema/compiled.py",
        "    _guarded_lerp([_ends(own) for own in shadows], _ends(weights), scalars)\n",
        "",
        "tests/ema/test_compiled.py --slow -k agree",
    ),
    Mutation(
        "where torch cannot compile, large averages stand still",
        "ema/blend.py",
        "        return self._use_compiled\n\n    def _blend_small",
        "        return True\n\n    def _blend_small",
        "tests/ema/test_compiled.py -k cannot_compile",
    ),
    Mutation(
        "steps are averaged before Kohya has changed the weights (norms, frozen rows): at once, not deferred",
        "runtime/tracks.py",
        'optimizer has made a step."""\n        self._behind = True\n',
        'optimizer has made a step."""\n        self.made().update()\n',
        "tests/runtime/test_average.py -k changes_after",
    ),
    Mutation(
        "weights that are frozen at the first step stay out for good (DyLoRA)",
        "runtime/tracks.py",
        "            frozen_too=True,",
        "            frozen_too=False,",
        "tests/runtime/test_average.py -k thawed",
    ),
    Mutation(
        "weights are averaged, or exchanged, while a thread of Kohya's moves their block",
        "runtime/block_moves.py",
        "                    wait(block)\n",
        "                    pass\n",
        "tests/runtime/test_blockswap.py",
    ),
    Mutation(
        "in a fused backward pass a parameter is averaged before its step",
        "runtime/optimizers.py",
        "        step_param(parameter, group)\n        average.after_step_of(parameter)\n",
        "        average.after_step_of(parameter)\n        step_param(parameter, group)\n",
        "tests/runtime/test_average.py -k fused",
    ),
    Mutation(
        "a save that fails leaves the EMA in the weights",
        "ema/shadow.py",
        "            yield\n        finally:\n            self.swap_out()\n",
        "            yield\n        finally:\n            pass\n        self.swap_out()\n",
        "tests/ema/test_swap.py tests/runtime/test_average.py -k exception",
    ),
    Mutation(
        "raw bfloat16 weights or their average come back with other bits",
        "ema/swap.py",
        " - (low >= _HALF).to(torch.int32)",
        "",
        "tests/ema/test_swap.py -k bfloat16",
    ),
    Mutation(
        "the resume state holds the EMA in place of the raw weights",
        "runtime/accelerators.py",
        "with unwinding_on_sigterm(), averaging.raw_weights():",
        "with unwinding_on_sigterm():",
        "tests/runtime/test_state.py -k within",
    ),
    Mutation(
        "a resumed average counts its steps from 0",
        "ema/shadow.py",
        "        self.step = step\n",
        "        self.step = 0\n",
        "tests/runtime/test_state.py tests/ema/test_checkpoint.py -k 'uninterrupted or same_bits'",
    ),
    Mutation(
        "SIGTERM within a save ends the process on the spot",
        "runtime/safe_save.py",
        "    signal.signal(signal.SIGTERM, unwind)\n",
        "",
        "tests/runtime/test_interrupted_saves.py -k sigterm",
    ),
    Mutation(
        "the savers of sd-scripts 0.6 write the EMA's file in place",
        "runtime/checkpoints.py",
        "in place\n    whole = nullcontext() if savers else safe_save.whole_files()",
        "in place\n    whole = nullcontext()",
        "tests/runtime/test_interrupted_saves.py -k 'old'",
    ),
    Mutation(
        "EMA files outlive their raw twins",
        "runtime/ema_outputs.py",
        "            self._rotate(file, average.suffix)\n",
        "            pass\n",
        "tests/runtime/test_saving.py -k rotated",
    ),
    Mutation(
        "textual inversion saves the raw rows twice",
        "runtime/savers.py",
        "            call.arguments[_PARAMETER] = rows_of_average(average, raw)\n",
        "            call.arguments[_PARAMETER] = raw\n",
        "tests/runtime/test_script_miniatures.py -k 'saves and v26-train_textual'",
    ),
    Mutation(
        "16-bit differences are not scaled: float16's small numbers are coarse",
        "ema/snapshot.py",
        "        shift = min(_LARGEST_SHIFT, _HIGHEST - math.frexp(largest)[1]) if largest else 0\n",
        "        shift = 0\n",
        "tests/ema/test_snapshot.py -k 'any_size or sixteen'",
    ),
    Mutation(
        "the snapshot of the step that a run is resumed from is never written",
        "runtime/snapshots.py",
        "if (self.folder / snapshot_file(self.place, step)).is_file() else step - 1",
        "or step - 1",
        "tests/runtime/test_snapshots.py -k due",
    ),
    Mutation(
        "a resumed run keeps the snapshots of a future that it does not have",
        "runtime/snapshots.py",
        "            if at > step and is_main_process():\n",
        "            if False:\n",
        "tests/runtime/test_snapshots.py -k drops",
    ),
    Mutation(
        "a transposed weight is written as it was in training",
        "posthoc/reconstruction.py",
        "goal.view(piece.shape[::-1]).copy_(flat.view(piece.shape).t())",
        "goal.copy_(flat)",
        "tests/posthoc/test_reconstruction.py -k transposes",
    ),
    Mutation(
        "in a fused backward pass snapshots are a step behind",
        "runtime/average.py",
        "            track.catch_up()\n            self.between_steps(",
        "            self.between_steps(",
        "tests/runtime/test_snapshots.py -k fused",
    ),
    Mutation(
        "samples are drawn from the raw weights whatever --ema_sample says",
        "runtime/sampling.py",
        "    with average.in_place():\n        return _abandonable(original, call)\n",
        "    return _abandonable(original, call)\n",
        "tests/runtime/test_saving.py -k samples_from_both",
    ),
)
