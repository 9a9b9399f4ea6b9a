"""Averages of sharded weights (torch's DTensor, as `fully_shard` makes them): each process keeps those of its part."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kohya_ext.tensors.elements import is_sharded, local


def sharded_like(part: Tensor, parameter: Any) -> Tensor:
    """This process's part of an average as a tensor that is sharded as the parameter is; as it is for a plain one."""
    if not is_sharded(parameter):
        return part
    joined: Tensor = type(parameter).from_local(
        part,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return joined


def own_part(saved: Any, parameter: Any) -> Tensor:
    """A copy of what this process keeps of a saved average. Takes no communication.

    Args:
        saved: the whole average, or one that is sharded as the parameter is.
        parameter: that it is the average of.

    Raises:
        ValueError: it is sharded in another way.
    """
    if is_sharded(saved):
        if not is_sharded(parameter) or _division(saved) != _division(parameter):
            raise ValueError("EMA state that is sharded in another way than the weights: save it whole")
        return local(saved).detach().clone()
    if not is_sharded(parameter):
        copied: Tensor = saved.detach().clone()
        return copied
    from torch.distributed.tensor import DTensor, Replicate

    mesh = parameter.device_mesh
    whole = DTensor.from_local(saved.detach().to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False)
    part: Tensor = whole.redistribute(mesh, parameter.placements).to_local().clone()
    return part


def _division(tensor: Any) -> tuple[Any, Any]:
    return tensor.device_mesh, tuple(tensor.placements)
