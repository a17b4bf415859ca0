"""The text towers of dual encoders turn whole texts, begin and end tokens included, into embeddings.

The tower of CLIP is causal and read at the end-of-text token, so nothing behind that is run, and what texts have in common
at the front is run once for all of them. The tower of SigLIP reads both ways and sees its padding, and BERT and its
relatives see the whole text: there each text is run by itself.

Letters: n texts, N packed tokens, T positions, d width, e width of an embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.engine import (
    TreeCall,
    Views,
    attend_over_trees,
    build_tree,
    checkpointed_layers,
    embed_tree,
    frozen_linears,
    last_layer_only_at,
    make_recomputable,
    make_shortened,
    pack,
)
from softprompt.backbones.masked import MaskedBackbone
from softprompt.backbones.vocabulary import table_of
from softprompt.outputs import EncodedRow, PromptOutput


class TextTower(Protocol):
    """A tower that embeds texts. A text is the context of a row and carries the row's prompt.

    positions  length of the longest text in tokens; None: there is no limit
    """

    @property
    def positions(self) -> int | None: ...

    def embed(self, texts: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """The embeddings of texts, (n, e), not normalised. Differentiable in the prompt."""
        ...

    def whole(self, text: Sequence[int]) -> tuple[int, ...]:
        """The ids of a text with the padding that the tower sees."""
        ...

    def cost(self, text: EncodedRow) -> int:
        """How many tokens are run for a text, with tokens that it shares with others counted in full."""
        ...

    def with_settings(self, *, gradient_checkpointing: bool, compiled: bool) -> TextTower: ...


@dataclass(frozen=True)
class CausalTexts:
    """The tower of CLIP, read at the last token, which must be the end-of-text token."""

    model: Any
    projection: nn.Module
    views: Views
    compiled: bool = False
    checkpointing: bool = False

    @property
    def positions(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def embed(self, texts: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        rows = [replace(text, read=(len(text.context) - 1,)) for text in texts]
        tree = pack(rows, prompt, self.model.device)
        places: Any = self.model.embeddings.position_embedding
        embeds = embed_tree(self.model, tree, prompt) + places(tree.positions)  # (1, N, d)
        view = self.views["compiled" if self.compiled else "packed"]
        forward = view.model.encoder
        if self.compiled:
            forward = view.compiled(forward, dynamic=True)
        call = TreeCall(tree)
        with ExitStack() as stack:
            stack.enter_context(frozen_linears())
            if self.checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed_layers(frozen_linears))
            elif not self.compiled:
                stack.enter_context(last_layer_only_at(tree.read, tree.tokens))
            states = forward(inputs_embeds=embeds, attention_mask=None, prompt_tree=call).last_hidden_state[0]
        if not call.windows_seen:
            raise NotImplementedError("the attention of this text tower cannot be reached")
        ends = self.model.final_layer_norm(states.index_select(0, tree.read))  # (N, d) -> (n, d)
        projected: Tensor = self.projection(ends)
        return projected

    def whole(self, text: Sequence[int]) -> tuple[int, ...]:
        return tuple(text)

    def cost(self, text: EncodedRow) -> int:
        return len(text.context)

    def with_settings(self, *, gradient_checkpointing: bool, compiled: bool) -> CausalTexts:
        return replace(self, compiled=compiled, checkpointing=gradient_checkpointing)


@dataclass(frozen=True)
class PaddedTexts:
    """The tower of SigLIP: texts are padded to T tokens, which all see each other, and are read at the last one."""

    model: Any
    pad: int
    views: Views
    compiled: bool = False
    checkpointing: bool = False

    @property
    def positions(self) -> int:
        return int(self.model.config.max_position_embeddings)

    def embed(self, texts: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        rows = [replace(text, context=self.whole(text.context)) for text in texts]
        tree = build_tree(
            rows,
            [()] * prompt.count,
            virtual_tokens=0 if prompt.tokens is None else prompt.tokens.shape[1],
            lengths=None if prompt.tokens is None or prompt.lengths is None else prompt.lengths.tolist(),
            device=self.model.device,
        )
        places: Any = self.model.embeddings.position_embedding
        embeds = embed_tree(self.model, tree, prompt).view(len(rows), self.positions, -1) + places.weight
        view = self.views["plain"]
        forward = view.compiled(view.model.encoder) if self.compiled else view.model.encoder
        with ExitStack() as stack:
            stack.enter_context(frozen_linears())
            if self.checkpointing and torch.is_grad_enabled():
                stack.enter_context(checkpointed_layers(frozen_linears))
            states = forward(inputs_embeds=embeds, attention_mask=None).last_hidden_state  # (n, T, d)
        embedded: Tensor = view.model.head(view.model.final_layer_norm(states[:, -1]))
        return embedded

    def whole(self, text: Sequence[int]) -> tuple[int, ...]:
        return (*text, *[self.pad] * (self.positions - len(text)))

    def cost(self, text: EncodedRow) -> int:
        return self.positions

    def with_settings(self, *, gradient_checkpointing: bool, compiled: bool) -> PaddedTexts:
        return replace(self, compiled=compiled, checkpointing=gradient_checkpointing)


@dataclass(frozen=True)
class PooledTexts:
    """The tower of BERT and its relatives: texts without padding, read at their first token, by the encoder's pooler if it has
    one."""

    encoder: MaskedBackbone
    pooler: nn.Module
    projection: nn.Module

    @property
    def positions(self) -> int | None:
        return self.encoder.spec.positions

    def embed(self, texts: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        states = self.encoder.states([replace(text, read=(0,)) for text in texts], prompt)
        projected: Tensor = self.projection(self.pooler(states[:, None]))  # (n, d) -> (n, e)
        return projected

    def whole(self, text: Sequence[int]) -> tuple[int, ...]:
        return tuple(text)

    def cost(self, text: EncodedRow) -> int:
        return len(text.context)

    def with_settings(self, *, gradient_checkpointing: bool, compiled: bool) -> PooledTexts:
        encoder = self.encoder.with_settings(gradient_checkpointing=gradient_checkpointing, compiled=compiled)
        return replace(self, encoder=encoder)


def _views(model: PreTrainedModel) -> Views:
    """The views of a text tower: "packed" attends over trees, so does "compiled", and "plain" has its own attention."""

    def packed(view: Any) -> None:
        attend_over_trees(view)
        make_shortened(view)
        make_recomputable(view)

    def compiled(view: Any) -> None:
        attend_over_trees(view)
        make_recomputable(view)

    return Views(model, {"packed": packed, "compiled": compiled, "plain": make_recomputable})


def find_text_tower(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, projection: nn.Module | None
) -> TextTower:
    """The text tower of a dual encoder.

    model       the text model
    tokenizer   its own
    projection  of pooled states to embeddings; None: the model has none

    Raises ValueError for a model that is laid out otherwise, and for a tokenizer of another model.
    """
    table = table_of(model.get_input_embeddings())
    highest = max(tokenizer.get_vocab().values())
    if highest >= len(table):
        raise ValueError(
            f"the tokenizer has ids up to {highest}, and the text tower's embedding table has {len(table)} rows: they are of"
            " different models; take the tokenizer that was saved with this model"
        )
    is_read_at_end = hasattr(model, "final_layer_norm")  # as CLIP and SigLIP; a trial compares
    pads = is_read_at_end and isinstance(getattr(model, "head", None), nn.Module)
    if is_read_at_end and not pads and projection is not None:
        end = tokenizer("a")["input_ids"][-1]
        expected = model.config.eos_token_id
        # The configs of the first CLIP checkpoints say 2, whatever their end-of-text token is.
        if expected not in (2, end):
            raise ValueError(
                f"the text tower is read at its end-of-text token, {expected}, and the tokenizer ends a text with {end}: they"
                " are of different models; take the tokenizer that was saved with this model"
            )
        return CausalTexts(model=model, projection=projection, views=_views(model))
    if pads:
        if tokenizer.pad_token_id is None:
            raise ValueError(
                "the tokenizer has no padding token, and SigLIP's texts are padded: it is not the model's own;"
                " take the one that was saved with it"
            )
        return PaddedTexts(model=model, pad=int(tokenizer.pad_token_id), views=_views(model))
    pooler = getattr(model, "pooler", None)
    if projection is None:
        raise ValueError(
            f"{type(model).__name__} has no projection, and is not laid out as that of SigLIP: take a dual encoder with the"
            " text tower of CLIP, SigLIP, or BERT"
        )
    reading = pooler if isinstance(pooler, nn.Module) else _First()
    return PooledTexts(encoder=MaskedBackbone(model, tokenizer), pooler=reading, projection=projection)


class _First(nn.Module):
    """The state of the first token, which towers without a pooler are read at (Chinese CLIP)."""

    def forward(self, states: Tensor) -> Tensor:
        return states[:, 0]  # (n, T, d) -> (n, d)
