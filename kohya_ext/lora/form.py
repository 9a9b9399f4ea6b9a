"""How a resized LoRA must be written, so that the loaders of its format take every module at its scale.

With an alpha next to each module ranks may differ. Without, ComfyUI and sd-scripts take every product at scale 1, but
diffusers before 2026 takes alpha from one module for all and divides it by each one's rank: there all modules of a
network must have one rank, so lower ones are padded with zeros. diffusers does not load its own format with a `.alpha`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from kohya_ext.lora.assemble import FinishedModule, Keys, with_one_alpha
from kohya_ext.lora.factor_store import StoredModule
from kohya_ext.lora.pairs import LoraFile, Pair
from kohya_ext.lora.tensorfile import item_size


@dataclass(frozen=True)
class Form:
    """What the input is like. components: of indices into its pairs, one network each. dtype: of the new file, where a
    module has none of its own.
    """

    pairs: tuple[Pair, ...]
    components: tuple[tuple[int, ...], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, found: LoraFile, dtype: torch.dtype) -> Form:
        """The form of an opened LoRA."""
        places = {pair.name: index for index, pair in enumerate(found.pairs)}
        components = tuple(tuple(places[pair.name] for pair in pairs) for pairs in found.components().values())
        return cls(found.pairs, components, dtype)

    def groups(self) -> list[tuple[int, ...]]:
        """The modules that must have one rank: a whole network, or each for itself."""
        found: list[tuple[int, ...]] = []
        for component in self.components:
            found += [component] if self._one_rank(component) else [(index,) for index in component]
        return found

    def fitted(self, kept: Sequence[FinishedModule]) -> list[FinishedModule]:
        """Padding and alphas as the loaders need them."""
        result = [replace(item, up_dimensions=pair.up_dimensions) for item, pair in zip(kept, self.pairs, strict=True)]
        for component in self.components:
            widest = max(result[index].rank for index in component)
            if self._one_rank(component):
                for index in component:
                    result[index] = replace(result[index], padding=widest - result[index].rank)
            members = [index for index in component if self.pairs[index].keys.alpha or self._gets_alphas(kept)]
            for alike in {self._alpha(index) for index in members}:  # linear layers and convolutions may have their own
                group = [index for index in members if self._alpha(index) == alike]
                for index, item in zip(group, with_one_alpha([result[i] for i in group]), strict=True):
                    result[index] = item
        return result

    def keys(self, ranks: Sequence[int]) -> dict[str, Keys]:
        """The input's names, by module."""
        added = self._silent and self._kohya and len(set(ranks)) > 1
        return {
            pair.name: Keys(pair.keys.up, pair.keys.down, pair.keys.alpha or (f"{pair.name}.alpha" if added else None))
            for pair in self.pairs
        }

    def item_size(self, module: StoredModule) -> int:
        """Bytes of one number of the module in the file."""
        return item_size(module.dtype or self.dtype)

    @property
    def _silent(self) -> bool:
        return all(pair.keys.alpha is None for pair in self.pairs)

    @property
    def _kohya(self) -> bool:
        return all(pair.kohya for pair in self.pairs)

    def _gets_alphas(self, kept: Sequence[FinishedModule]) -> bool:
        return self._silent and self._kohya and len({item.rank for item in kept}) > 1

    def _alpha(self, index: int) -> float:
        """What the input has; 1 where all had none."""
        pair = self.pairs[index]
        return pair.scale * pair.rank if pair.keys.alpha else 1.0

    def _one_rank(self, component: Sequence[int]) -> bool:
        """True where loaders need it and the input has it."""
        pairs = [self.pairs[index] for index in component]
        silent = all(pair.keys.alpha is None for pair in pairs) and not all(pair.kohya for pair in pairs)
        return silent and len({pair.rank for pair in pairs}) == 1
