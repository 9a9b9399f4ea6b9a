"""The EMA of a model whose parameters are divided among ranks: each rank averages the fragments that it keeps.

So it takes the shadow's bytes divided by the number of ranks. Whole tensors exist only while they are read, one after
the other: the state and the files hold them by the names of the parameters and so suit any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from kohya_ext.ema import checkpoint
from kohya_ext.ema.fragments import Fragment, Whole, cut, names_of, places, plan
from kohya_ext.ema.health import squared_norms
from kohya_ext.ema.peers import Card, Peers, card_from_json, card_to_json
from kohya_ext.ema.shadow import Shadow

# Hands an object to all ranks and returns those of all, by rank: a collective operation.
AllGather = Callable[[Any], Sequence[Any]]

WEIGHTS = "weights"


class Partition:
    """The fragments of this rank, and the way to those of the others.

    All ranks make theirs at the same time.

    Args:
        fragments: at most one of each parameter.
        rank: of this process, from 0.
        host: an address of this machine that the other ranks can reach.
        token: see `Peers`.
        gather: used once, here.
    """

    def __init__(self, fragments: Sequence[Fragment], rank: int, host: str, token: bytes, gather: AllGather) -> None:
        self.fragments = list(fragments)
        self._shadows: dict[str, Shadow] = {}
        self.peers = Peers(rank, host, token, self._elements, self._norms)
        card = card_to_json(Card(self.peers.address, places(self.fragments)))
        self.peers.meet([card_from_json(given) for given in gather(card)])
        self._rank = rank

    def averaged(self) -> list[tuple[str, Tensor]]:
        """What a shadow of this rank's fragments is made of."""
        return [(fragment.name, fragment.weights) for fragment in self.fragments if fragment.averaged]

    def keep(self, kind: str, shadow: Shadow) -> None:
        """From now on others may ask for this shadow's elements, as this kind."""
        self._shadows[kind] = shadow

    def wholes(self, *, averaged_only: bool) -> list[Whole]:
        """All parameters of the model, or all that are averaged."""
        return self._plan(names_of(self.peers.tables, averaged_only=averaged_only))

    def whole_tensors(self, kind: str, wholes: Sequence[Whole]) -> Iterator[Tensor]:
        """These parameters, whole and on the CPU: the raw ones for `WEIGHTS`, else the average of this kind.

        Raises PeerError where another rank has died.
        """
        return self.peers.fetch(kind, wholes)

    def distance(self, kind: str) -> tuple[float, float]:
        """(||average - weights|| ** 2, ||weights|| ** 2) over all ranks. Raises PeerError where one has died."""
        apart, size = zip(*self.peers.measure(kind), strict=True)
        return sum(apart), sum(size)

    def save(self, path: Path, kind: str) -> None:
        """Write an average's state, whole tensors by name. The file appears whole or not at all.

        Raises:
            OSError: it cannot be written.
            PeerError: another rank has died.
        """
        shadow = self._shadows[kind]
        wholes = self.wholes(averaged_only=True)
        forms = {whole.name: (shadow.dtype, whole.shape) for whole in wholes}
        settings = {key: value for key, value in shadow.state_dict().items() if key != "shadow"}
        checkpoint.save_streamed(path, settings, forms, self.whole_tensors(kind, wholes))

    def load(self, kind: str, state: Mapping[str, Any]) -> list[str]:
        """Continue an average from a state of any number of ranks, or of a model that was not divided.

        Returns and raises what `Shadow.load_state_dict` does; nothing is changed where it raises.
        """
        whole = checkpoint.tensors(state)
        mine = [fragment for fragment in self.fragments if fragment.averaged]
        known = {whole.name for whole in self.wholes(averaged_only=True)}
        unknown = [name for name in whole if name not in known]
        if unknown:
            raise ValueError(f"EMA state of another model: {len(unknown)} weights unknown, the first is {unknown[0]!r}")
        try:
            own = {fragment.name: elements for fragment, elements in cut(whole, mine)}
        except ValueError as error:
            raise ValueError(f"EMA state of another model: {error}") from error
        return self._shadows[kind].load_state_dict({**state, "shadow": own})

    def _norms(self, kind: str) -> tuple[float, float]:
        return squared_norms(self._shadows[kind])

    def _plan(self, names: Sequence[str]) -> list[Whole]:
        return plan(self.peers.tables, self._rank, names)

    def _elements(self, kind: str, index: int) -> Tensor:
        fragment = self.fragments[index]
        if kind == WEIGHTS or not fragment.averaged:
            return fragment.weights.detach()
        elements: Tensor = self._shadows[kind].average_of(fragment.name).reshape(-1)
        return elements
