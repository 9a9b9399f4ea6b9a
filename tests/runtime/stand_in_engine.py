"""A stand-in for DeepSpeed's engine, as far as we read it: one process, ZeRO 2 or 3, gradients that are given."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class StandInEngine:
    """Steps are `weights -= number of the step`; one that is not a boundary, or is to be skipped, changes nothing."""

    def __init__(self, module: nn.Module, stage: int) -> None:
        self.module, self._stage = module, stage
        self.global_steps = self.skipped_steps = 0
        self.boundary, self.overflow = True, False
        self.released = 0
        self._trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.flat = torch.cat([parameter.detach().reshape(-1).float() for parameter in self._trained])
        flats = {2: "single_partition_of_fp32_groups", 3: "fp32_partitioned_groups_flat"}
        self.optimizer: Any = SimpleNamespace(
            optimizer=SimpleNamespace(state={self.flat: {}}),
            grad_position={},
            get_param_id=id,
            **{flats[stage]: [self.flat]},
        )
        offset = 0
        for parameter in module.parameters():
            numel = parameter.numel()
            if stage == 3:
                self._divide(parameter)
            if not parameter.requires_grad:
                continue
            if stage == 3:
                self.optimizer.grad_position[id(parameter)] = (0, offset, numel)
            else:
                address = SimpleNamespace(start=0, numel=numel)
                own = self.flat[offset : offset + numel]
                parameter._hp_mapping = SimpleNamespace(lp_fragment_address=address, hp_fragment=own)
            offset += numel

    def _divide(self, parameter: Any) -> None:
        parameter.ds_id, parameter.ds_shape, parameter.ds_numel = id(parameter), parameter.shape, parameter.numel()
        parameter.ds_tensor = parameter.data.reshape(-1).clone()
        parameter.ds_tensor.ds_numel = parameter.numel()
        parameter.ds_process_group = None
        parameter.data = torch.empty(0, dtype=parameter.dtype)

    def zero_optimization_stage(self) -> int:
        return self._stage

    def empty_partition_cache(self) -> None:
        self.released += 1

    def step(self) -> None:
        if not self.boundary:
            return
        self.global_steps += 1
        if self.overflow:
            self.skipped_steps += 1
            return
        self.flat -= self.global_steps
        offset = 0
        for parameter in self._trained:
            target = parameter.ds_tensor if self._stage == 3 else parameter.data.view(-1)
            target.copy_(self.flat[offset : offset + target.numel()])
            offset += target.numel()

    def load_checkpoint(self, *_: Any) -> None:
        """States of the engine itself are not this test's."""
