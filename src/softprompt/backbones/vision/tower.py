"""Running an image's patches through the layers of a vision transformer, with prompts beside or among them.

A prompt whose outputs nobody reads needs no query, no attention output and no feed-forward network. It enters a layer as
keys and values alone, K, V = W LN(P), and these are the same for all images. The same holds for the patches in the last
layer if the head reads the class token alone. Both are exact.

Letters: B images, G prompts (1, or B if each image has its own), P prompt rows, N patches, T rows of an image; H, D, d.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from softprompt.backbones.engine import (
    Views,
    checkpointed_layers,
    make_recomputable,
    use_attention,
)
from softprompt.backbones.vision.beside import IMPLEMENTATION, attention_beside, beside_rows
from softprompt.images import ImagePooling
from softprompt.outputs import KeyValue

READS_PROMPTS: frozenset[ImagePooling] = frozenset({"mean-with-prompts", "prompts"})
"""Poolings that need the rows of the prompts behind the last layer."""


@dataclass(frozen=True)
class ImagePrompt:
    """The prompt of a group of images: G = 1 for all of them, or G = B.

    tokens  (G, P, d) rows that join those of the image in front of layer `entry`, and stay
    entry   the layer that `tokens` enter
    layers  per layer (G, P, d) rows that are removed behind it, or None; empty: no layer has any
    prefix  per layer keys and values (G, H, P, D)
    """

    tokens: Tensor | None
    entry: int
    layers: tuple[Tensor | None, ...]
    prefix: tuple[KeyValue, ...] | None = None


@dataclass(frozen=True)
class Tower:
    """The parts of a vision transformer.

    model          of transformers, or a view of it, that holds the tower
    vision         the module whose parts the others are
    layers         in order
    forwards       how each layer is called: the layer itself, or its compiled version
    before         the norm in front of the first layer (CLIP); None: there is none
    after          the norm behind the last layer
    convolution    turns patches into rows
    special        number of rows in front of the patches: class token, distillation token, registers
    pooler         the attention pooling of SigLIP; None: there is none
    checkpointing  whether layers are recomputed in backward
    reaches        whether its attention reads what stands beside the rows
    masked         whether a layer is called with a mask behind the rows
    """

    model: PreTrainedModel
    vision: nn.Module
    layers: tuple[nn.Module, ...]
    forwards: tuple[Callable[..., Any], ...]
    before: nn.Module | None
    after: nn.Module
    convolution: nn.Conv2d
    special: int
    pooler: nn.Module | None
    checkpointing: bool = False
    reaches: bool = False
    masked: bool = True

    @property
    def front(self) -> int:
        """Number of rows in front of the prompt: 1 for the class token, 0 without one."""
        return min(1, self.special)

    @property
    def patch(self) -> tuple[int, int]:
        height, width = self.convolution.kernel_size
        return int(height), int(width)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that the positions were trained for."""
        size = self._config.image_size
        return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))

    @property
    def heads(self) -> tuple[int, int]:
        """H, D."""
        heads = int(self._config.num_attention_heads)
        return heads, self.convolution.out_channels // heads

    @property
    def interpolates(self) -> bool:
        """Whether the model always interpolates its positions to the image's grid, as DINOv2 does."""
        return not self._asks_to_interpolate

    @property
    def _asks_to_interpolate(self) -> bool:
        embeddings: Any = self.vision.embeddings
        return "interpolate_pos_encoding" in signature(embeddings.forward).parameters

    @property
    def _config(self) -> Any:
        return getattr(self.vision, "config", self.model.config)

    def embed(self, pixels: Tensor) -> Tensor:
        """Embed images as rows with positions, (B, 3, H, W) -> (B, T, d). For another grid the positions are interpolated.

        Raises ValueError for sides that are no multiples of the patch.
        """
        size = pixels.shape[-2:]
        if any(side % part or not side for side, part in zip(size, self.patch, strict=True)):
            raise ValueError(
                f"images of {size[0]} x {size[1]} pixels do not fall into patches of {self.patch[0]} x {self.patch[1]}:"
                " set the task's image_size to a multiple"
            )
        embeddings: Any = self.vision.embeddings
        asks = self._asks_to_interpolate and tuple(size) != self.size
        if hasattr(embeddings, "random_masking"):  # MAE's, which drops three patches of four
            return _every_patch(embeddings, pixels, interpolate=asks)
        options = {"interpolate_pos_encoding": True} if asks else {}
        found = embeddings(pixels, **options)
        rows: Tensor = found[0] if isinstance(found, tuple) else found  # Data2Vec also gives the grid
        return rows

    def insert(self, rows: Tensor, prompt: Tensor) -> Tensor:
        """Insert the prompt behind the class token, if there is one: (B, T, d), (G, P, d) -> (B, T + P, d)."""
        prompt = prompt.to(rows.dtype).expand(len(rows), -1, -1)
        return torch.cat([rows[:, : self.front], prompt, rows[:, self.front :]], dim=1)

    def remove(self, rows: Tensor, count: int) -> Tensor:
        """Remove the first `count` prompt rows, (B, T + P, d) -> (B, T, d)."""
        return (
            torch.cat([rows[:, : self.front], rows[:, self.front + count :]], dim=1)
            if self.front
            else rows[:, count:]
        )

    def through(
        self,
        rows: Tensor,
        prompt: ImagePrompt,
        reads: Collection[ImagePooling],
        *,
        start: int = 0,
        stop: int | None = None,
    ) -> tuple[Tensor, int]:
        """Run rows through the layers: (B, T, d) -> (B, T', d), and the number of prompt rows among them.

        rows    of the images
        prompt  that they carry
        reads   the poolings that will be read; rows that these do not need may be missing in the result
        start   the layer that the given rows enter; there must be no prompt in front of it
        stop    the layer in front of which to stop; None: behind the last one

        If the tower's attention `reaches` beside the rows, rows that nobody reads enter as keys and values; otherwise
        every layer runs all rows.
        Raises ValueError if the mean of the prompts is to be read and no prompt stands in the last layer.
        """
        inside = 0
        if prompt.tokens is not None and prompt.entry == 0:
            rows, inside = self.insert(rows, prompt.tokens), prompt.tokens.shape[1]
        own = list(prompt.layers) or [None] * len(self.layers)
        if self.before is not None and start == 0:
            rows = self.before(rows)
            own[:1] = [None if own[0] is None else self.before(own[0].to(rows.dtype))]
        extra: dict[int, list[KeyValue]] | None = {} if self.reaches else None
        with self._attending(extra):
            for i in range(len(self.layers))[start:stop]:
                if prompt.tokens is not None and prompt.entry == i > 0:
                    rows, inside = self.insert(rows, prompt.tokens), prompt.tokens.shape[1]
                prefix = None if prompt.prefix is None else prompt.prefix[i]
                rows, inside = self._through_layer(
                    i, rows, inside, passing=own[i], prefix=prefix, reads=reads, extra=extra
                )
        return rows, inside

    def _through_layer(
        self,
        i: int,
        rows: Tensor,
        inside: int,
        *,
        passing: Tensor | None,
        prefix: KeyValue | None,
        reads: Collection[ImagePooling],
        extra: dict[int, list[KeyValue]] | None,
    ) -> tuple[Tensor, int]:
        """Run rows through layer i: (B, T, d) -> (B, T', d), and the number of prompt rows among them.

        inside   number of prompt rows among the given rows
        passing  rows of this layer's own prompt, (G, P, d); None: there are none
        prefix   keys and values in front of those of this layer; None: there are none
        reads    see `through`
        extra    receives the keys and values that this layer's attention reads beside its rows; None: all rows are run
        """
        is_last = i == len(self.layers) - 1
        stay = is_last and not READS_PROMPTS.isdisjoint(reads)
        if is_last and "prompts" in reads and passing is None and not inside:
            raise ValueError(
                "the head is to read the mean of the prompts, and no prompt stands among the rows of the last layer:"
                " take another pooling, or a method that puts some there"
            )
        joining = passing if stay or extra is None else None
        if extra is not None:
            enter = [] if prefix is None else [prefix]
            if passing is not None and joining is None:
                enter.append(self.key_values(i, passing.to(rows.dtype)))
            if is_last and set(reads) <= {"class", "prompts"} and (self.front or stay):
                inside = inside if stay else 0
                enter.append(self.key_values(i, rows[:, self.front + inside :]))
                rows = rows[:, : self.front + inside]
            extra[id(attention_of(self.layers[i]))] = enter
        if joining is not None:
            rows = self.insert(rows, joining)
            inside += joining.shape[1]
        rows = self.forwards[i](rows, None) if self.masked else self.forwards[i](rows)
        if joining is not None and not stay:
            rows = self.remove(rows, joining.shape[1])
            inside -= joining.shape[1]
        return rows, inside

    @contextmanager
    def _attending(self, extra: Mapping[int, list[KeyValue]] | None) -> Iterator[None]:
        """Within the block the layers attend to `extra` beside their rows, and are checkpointed if the tower says so."""
        with ExitStack() as stack:
            if extra is not None:
                stack.enter_context(beside_rows(extra))
            if self.checkpointing and torch.is_grad_enabled():
                stack.enter_context(
                    checkpointed_layers(nullcontext if extra is None else partial(beside_rows, extra))
                )
            yield

    def key_values(self, layer: int, rows: Tensor) -> KeyValue:
        """Keys and values that a layer's attention computes for rows: (G, P, d) -> (G, H, P, D) twice."""
        attention: Any = attention_of(self.layers[layer])
        normed = _norm(self.layers[layer])(rows)
        key, value = (
            projection(normed).unflatten(-1, self.heads).transpose(1, 2)  # (G, P, d) -> (G, H, P, D)
            for projection in (attention.k_proj, attention.v_proj)
        )
        return key, value

    def pool(self, rows: Tensor, inside: int, read: ImagePooling) -> Tensor:
        """Pool the rows for a head, behind the last norm: (B, T, d) -> (B, d).

        rows    behind the last layer
        inside  number of prompt rows among them
        read    the pooling
        """
        match read:
            case "class":
                pooled: Tensor = self.after(rows[:, 0])
            case "mean":
                pooled = self.after(rows[:, self.special + inside :]).mean(dim=1)
            case "mean-with-prompts":
                prompt = rows[:, self.front : self.front + inside]
                every = torch.cat([prompt, rows[:, self.special + inside :]], dim=1)
                pooled = self.after(every.mean(dim=1))  # the fc_norm of MAE comes behind the mean
            case "prompts":
                pooled = self.after(rows[:, self.front : self.front + inside]).mean(dim=1)
            case "pooler":
                assert self.pooler is not None
                pooled = self.pooler(self.after(self.remove(rows, inside)))
        return pooled


def _every_patch(embeddings: Any, pixels: Tensor, *, interpolate: bool) -> Tensor:
    """The output of MAE's embeddings with no patch masked, in order."""
    rows: Tensor = embeddings.patch_embeddings(pixels)
    positions = embeddings.position_embeddings
    if interpolate:
        positions = embeddings.interpolate_pos_encoding(rows, *pixels.shape[-2:])
    first = embeddings.cls_token.expand(len(rows), -1, -1)
    return torch.cat([first, rows], dim=1) + positions


def find_tower(model: PreTrainedModel) -> Tower:
    """The vision transformer in a model of transformers. Raises ValueError if the model has other parts."""
    for vision in model.modules():
        embeddings = getattr(vision, "embeddings", None)
        if isinstance(embeddings, nn.Module):
            break
    else:
        raise ValueError(
            f"{type(model).__name__} has no embeddings of patches: it is not a vision transformer"
        )
    layers = tuple(m for m in vision.modules() if isinstance(m, GradientCheckpointingLayer))
    convolutions = [m for m in embeddings.modules() if isinstance(m, nn.Conv2d)]
    after = getattr(vision, "layernorm", None) or getattr(vision, "post_layernorm", None)
    if not layers or len(convolutions) != 1 or not isinstance(after, nn.Module):
        raise ValueError(
            f"{type(model).__name__} has {len(layers)} layers, {len(convolutions)} convolutions that make patches and"
            f" {'a' if after else 'no'} last norm: expected those of ViT, DeiT, MSN, I-JEPA, DINOv2, CLIP's or SigLIP's vision"
            " tower"
        )
    first = getattr(
        embeddings, "cls_token", getattr(embeddings, "class_embedding", None)
    )  # (1, 1, d) or (d,)
    registers = getattr(embeddings, "register_tokens", None)
    special = 0 if first is None else first.numel() // first.shape[-1]
    special += int(hasattr(embeddings, "distillation_token"))
    return Tower(
        model=model,
        vision=vision,
        layers=layers,
        forwards=layers,
        before=getattr(vision, "pre_layrnorm", None),  # the spelling of transformers
        after=after,
        convolution=convolutions[0],
        special=special + (0 if registers is None else registers.shape[1]),
        pooler=getattr(vision, "head", None),
        masked=_takes_a_mask(layers[0]),
    )


def _takes_a_mask(layer: nn.Module) -> bool:
    """Whether more than the rows may be given to a layer by position."""
    own = signature(type(layer).forward).parameters.values()  # that of a view's layer is hidden by a wrapper
    return sum(parameter.kind is Parameter.POSITIONAL_OR_KEYWORD for parameter in own) > 2


def attention_of(layer: nn.Module) -> nn.Module:
    """The attention of a layer."""
    return next(m for m in layer.children() if hasattr(m, "k_proj") and hasattr(m, "v_proj"))


def _norm(layer: nn.Module) -> nn.Module:
    """The norm in front of the attention, which is the first norm of a layer."""
    return next(m for m in layer.children() if isinstance(m, nn.LayerNorm))


def tower_views(model: PreTrainedModel) -> Views:
    """The views that towers are found in: "beside", whose attention reads what stands beside the rows, and "plain"."""

    def beside(view: Any) -> None:
        use_attention(view, IMPLEMENTATION, attention_beside)
        make_recomputable(view)

    return Views(model, {"beside": beside, "plain": make_recomputable})
