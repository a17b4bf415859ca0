"""A cache for the embeddings of texts that no prompt stands in and no training changes.

Letters: K texts of a row, e width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from softprompt.backbones.unchanged import weights_mark
from softprompt.outputs import PromptOutput

Texts = tuple[tuple[int, ...], ...]
Key = TypeVar("Key", bound=Hashable)

_KEEP = 16
"""How many sets of texts the cache holds. A run has one, that of its task."""


class KeptTexts:
    """The embeddings of whole sets of texts, by their content and the version of the text tower's weights.

    parts  the modules that a text passes through. Changes that torch does not see (through NumPy) go unnoticed
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self.parts = parts
        self._kept: dict[tuple[Texts, object], Tensor] = {}

    def serve(self, prompt: PromptOutput) -> bool:
        """Whether the embeddings of texts depend neither on this prompt nor on a weight that is trained."""
        if prompt.tokens is not None or prompt.offset is not None or prompt.token_offset is not None:
            return False
        return not any(p.requires_grad for part in self.parts for p in part.parameters())

    def __call__(
        self, sets: Mapping[Key, Texts], embed: Callable[[Mapping[Key, Texts]], dict[Key, Tensor]]
    ) -> dict[Key, Tensor]:
        """The embeddings (K, e) of each set, without gradient. `embed` computes those that are not cached."""
        weights = weights_mark(p for part in self.parts for p in part.parameters())
        # Read once: another thread may clear the cache meanwhile.
        known = {key: self._kept.get((texts, weights)) for key, texts in sets.items()}
        found = {key: embedded for key, embedded in known.items() if embedded is not None}
        with torch.no_grad():
            new = embed({key: texts for key, texts in sets.items() if key not in found})
        for key, embedded in new.items():
            if len(self._kept) >= _KEEP:
                self._kept.clear()
            self._kept[sets[key], weights] = embedded
        return found | new
