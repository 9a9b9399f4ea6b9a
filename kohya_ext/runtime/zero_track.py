"""The EMA of weights that DeepSpeed has divided among the ranks of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from torch import Tensor

from kohya_ext.ema import Shadow, checkpoint
from kohya_ext.ema.overlay import Overlay
from kohya_ext.ema.partitioned import WEIGHTS
from kohya_ext.runtime.run import stop
from kohya_ext.runtime.tracks import Track, TrackOwner
from kohya_ext.runtime.zero import Zero, without


class ZeroTrack(Track):
    """The shadow of this rank's partition. It is updated at once: what is changed after a step is lost with the next.

    Files are written by one rank, from whole tensors that it asks the others for.
    """

    def __init__(self, average: TrackOwner, optimizer: Any, zero: Zero) -> None:
        super().__init__(average, optimizer)
        self._zero = zero
        self._kind = f"ema{average.place}"
        self._exchange: Overlay | None = None

    @property
    def swapped(self) -> bool:
        """Whether the EMA, or whole raw weights, are in the parameters."""
        return self._exchange is not None and self._exchange.in_place

    def in_place(self) -> AbstractContextManager[None]:
        """The EMA is in what this rank computes with."""
        return self._parts_in_place() if self._zero.divides_model else self._overlay(self._averages(), apart=False)

    def for_saving(self) -> AbstractContextManager[None]:
        """The EMA is in the parameters, whole and in host memory."""
        return self._overlay(self._for_file(self._kind), apart=True)

    def raw(self) -> AbstractContextManager[None]:
        """Nothing to do: what DeepSpeed saves into a state are its own tensors, never exchanged."""
        if self.swapped:
            raise RuntimeError("the raw weights are needed while the EMA is in their place")
        return nullcontext()

    def raw_for_saving(self) -> AbstractContextManager[None]:
        """ZeRO 3: whole raw weights are in the parameters, in host memory."""
        if not self._zero.divides_model or self.swapped:
            return nullcontext()
        return self._overlay(self._for_file(WEIGHTS), apart=True)

    def entries(self) -> Iterator[tuple[str, Any, Any]]:
        """(name, weights, average), whole; while the EMA is saved, the weights are the EMA."""
        wholes = self._zero.partition.wholes(averaged_only=True)
        if self.swapped:  # while the EMA is saved
            for whole in wholes:
                value = self._zero.parameters[whole.name].detach()
                yield whole.name, value, value
            return
        weights = self._zero.partition.whole_tensors(WEIGHTS, wholes)
        averages = self._zero.partition.whole_tensors(self._kind, wholes)
        for whole, raw, average in zip(wholes, weights, averages, strict=True):
            yield whole.name, raw, average

    def norms(self) -> tuple[float, float]:
        """(||average - weights|| ** 2, ||weights|| ** 2), of all ranks together."""
        return self._zero.partition.distance(self._kind)

    def save_state(self, file: Path) -> None:
        """Write whole tensors by name: any number of ranks can go on from them."""
        if self.shadow is not None:
            self._zero.partition.save(file, self._kind)

    def everywhere(self, found: bool) -> bool:
        """Whether all ranks have found the files. Stops where only some have."""
        missing = without(found)
        if missing and len(missing) < len(self._zero.partition.peers.tables):
            stop(
                f"ranks {', '.join(map(str, missing))} do not find the EMA in the state that is resumed, others do: "
                "copy the folder to every machine of the run"
            )
        return not missing

    def load_state(self, file: Path) -> list[str]:
        """Go on from this rank's fragments of the tensors in it."""
        self.made()
        differences = self._zero.partition.load(self._kind, checkpoint.load(file))
        self._zero.partition.peers.advance()
        return differences

    def made(self) -> Shadow:
        """The shadow of this rank's fragments."""
        if self.shadow is None:
            self.shadow = self._shadow_of(self._zero.partition.averaged())
            self._zero.partition.keep(self._kind, self.shadow)
        return self.shadow

    # ------------------------------------------------------------------ inside

    def _averages(self) -> Iterator[tuple[Any, Tensor]]:
        wholes = self._zero.partition.wholes(averaged_only=True)
        tensors = self._zero.partition.whole_tensors(self._kind, wholes)
        for whole, tensor in zip(wholes, tensors, strict=True):
            yield self._zero.parameters[whole.name], tensor

    def _for_file(self, kind: str) -> Iterator[tuple[Any, Tensor]]:
        """(parameter, whole tensor) of all that a file may hold; in float32 where the file's dtype is chosen."""
        chosen = getattr(self.average.args, "save_precision", None) is not None
        wholes = self._zero.partition.wholes(averaged_only=not self._zero.divides_model)
        tensors = self._zero.partition.whole_tensors(kind, wholes)
        for whole, tensor in zip(wholes, tensors, strict=True):
            parameter = self._zero.parameters[whole.name]
            yield parameter, tensor if chosen and kind != WEIGHTS else tensor.to(parameter.dtype)

    @contextmanager
    def _overlay(self, values: Iterator[tuple[Any, Tensor]], *, apart: bool) -> Iterator[None]:
        self._exchange = Overlay(values, apart=apart)
        with self._exchange:
            yield

    @contextmanager
    def _parts_in_place(self) -> Iterator[None]:
        """ZeRO 3: each rank exchanges its own parts, from which all put together what they compute with."""
        shadow = self.made()
        self._zero.release()
        try:
            pairs = ((working, shadow.average_of(name)) for name, working in self._zero.working_fragments())
            with self._overlay(pairs, apart=False):
                yield
        finally:
            self._zero.release()
