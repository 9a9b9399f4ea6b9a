"""The optimizers that we bring: the one table of them. A new one is a class in `kohya_ext.optim` and one more row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Optimizer:
    """One optimizer of ours.

    name: in the GUI's list and after `--optimizer_type`, in any case. path: the dotted one, which Kohya resolves.
    fused: it can step in the backward pass. loss_scaling: it can then undo the loss scaling of fp16. rate: the learning
    rate that is right for it. arguments: those that the guide gives it.
    """

    name: str
    path: str
    fused: bool = False
    loss_scaling: bool = False
    rate: float = 1.0
    arguments: dict[str, str] = field(default_factory=dict)

    @property
    def words(self) -> str:
        """Its arguments as the GUI takes them."""
        return " ".join(f"{name}={value}" for name, value in self.arguments.items())

    @property
    def setting(self) -> str:
        """What to choose in the GUI."""
        return f'optimizer "{self.name}", learning rate {self.rate:g}, optimizer arguments {self.words}'


ADACOOR = Optimizer("AdaCoor", "kohya_ext.optim.AdaCoor", fused=True, rate=1, arguments={"eps": "1e-8"})

OPTIMIZERS: tuple[Optimizer, ...] = (ADACOOR,)
NAMES = tuple(optimizer.name for optimizer in OPTIMIZERS)


def ours(text: Any) -> Optimizer | None:
    """The optimizer that `text` names, in any case and by its name or its path; None for one of Kohya's."""
    wanted = str(text or "").casefold()
    return next((one for one in OPTIMIZERS if wanted in (one.name.casefold(), one.path.casefold())), None)
