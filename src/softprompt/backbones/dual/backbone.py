"""Dual encoders turn images and texts into embeddings that are compared: CLIP, SigLIP, and VisionTextDualEncoder of
transformers.

A row is an image (`media`) and the texts that it is compared with (`targets`). These are whole texts, begin and end tokens
included, with -1 - k for virtual token k. A batch runs each distinct text once for each prompt that it carries, whatever
the number of images. This is exact: embeddings and gradients are those of the model's own forward, for one padded text and
one image at a time.

Letters: B images, K targets of a row, G prompts, e width of an embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.dual.kept_texts import KeptTexts, Texts
from softprompt.backbones.dual.text_tower import TextTower, find_text_tower
from softprompt.backbones.engine import TRIAL_ERRORS, disagreement
from softprompt.backbones.row_features import RowFeatures
from softprompt.backbones.vision import VisionBackbone
from softprompt.backbones.vocabulary import table_of, text_spec
from softprompt.images import POOLINGS, ImageRule
from softprompt.outputs import EncodedRow, ImageTextEmbeddings, PromptOutput

EMBEDDING = POOLINGS.index("embedding")
CHUNK = 8192
"""How many tokens of texts are run at a time, with shared ones counted for each text. More texts are run in parts that are
computed again in backward, so that memory does not grow with their number. At the width of CLIP ViT-B/16 a part takes some
2 GB in float32, and a thousand classes with a context of 4 need little more than one part."""


@dataclass(frozen=True)
class CompiledImageTexts:
    """A prompt with what has been computed for it.

    prompt  as it was given
    vision  the compiled prompt of the vision tower
    known   cache of embeddings: the identity of a row's targets and the number of its prompt -> these targets and their
            embeddings (K, e). It grows when rows with other targets come
    heads   empty: nothing depends on the rows
    """

    prompt: PromptOutput
    vision: Any
    known: dict[tuple[int, int], tuple[Texts, Tensor]] = field(default_factory=dict)
    heads: tuple[()] = ()


class DualBackbone:
    """A dual encoder with its tokenizer and the rule that prepares its images.

    model      of transformers
    tokenizer  the model's own
    processor  an ImageRule, an image processor of transformers, or its configuration
    name       for people; by default the one that the model was loaded with
    packed     of the vision tower, see VisionBackbone
    """

    family = "vision-language"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        processor: ImageRule | Mapping[str, Any] | Any,
        *,
        name: str | None = None,
        packed: bool | None = None,
    ) -> None:
        parts: Any = model
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        self.vision = VisionBackbone(
            parts.vision_model,
            getattr(processor, "image_processor", processor),
            name=self.name,
            packed=packed,
        )
        self._visual_projection: nn.Module | None = getattr(model, "visual_projection", None)
        projection = getattr(model, "text_projection", None)
        self._texts: TextTower = find_text_tower(parts.text_model, tokenizer, projection)
        self._embedding: nn.Module = parts.text_model.get_input_embeddings()
        # The pooler that ViT and BERT apply to their class token; CLIP and SigLIP have applied theirs already.
        pooler = getattr(parts.vision_model, "pooler", None)
        self._visual_pooler = pooler if isinstance(pooler, nn.Module) else None
        self._kept = RowFeatures(self)
        self._kept_texts = KeptTexts([part for part in (parts.text_model, projection) if part is not None])
        self._width = _embedding_width(self._visual_projection, projection, parts)

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def table(self) -> Tensor:
        """The text tower's input embedding table, (V, d)."""
        return table_of(self._embedding)

    @torch.no_grad()
    def check(self) -> None:
        """Raise ValueError if images and texts are not compared here as the model itself compares them."""
        pixels = torch.rand(1, 3, *self.vision.size, generator=torch.Generator().manual_seed(0))
        pixels = pixels.to(self.device, self.dtype)
        texts = [tuple(self.tokenizer(text)["input_ids"]) for text in ("a", "of the a")]
        row = EncodedRow((), media=pixels[0])
        kind = type(self.model).__name__
        towers = f"{type(self.vision.model).__name__} and {type(self.model.text_model).__name__}"
        try:
            expected = [
                self.model(
                    input_ids=torch.tensor([self._texts.whole(text)], device=self.device), pixel_values=pixels
                ).logits_per_image
                for text in texts
            ]
            images = self._embedded_images([row], None)
            embedded = self._in_parts([EncodedRow(text) for text in texts], PromptOutput())
        except TRIAL_ERRORS as error:
            raise ValueError(
                f"{self.name} ({kind} of {towers}) cannot be run here ({type(error).__name__}: {error}): take a dual encoder"
                " with the towers of CLIP or SigLIP, or of ViT and BERT"
            ) from error
        scale, bias = self._scale_and_bias(images.dtype)
        found = images @ embedded.T * scale + bias  # (1, e) x (2, e) -> (1, 2)
        difference = disagreement(found, torch.cat(expected, dim=1), self.dtype, half=0.1)
        if difference is not None:
            raise ValueError(
                f"{self.name} ({kind} of {towers}) compares an image and a text by {difference:.2g} otherwise than its own"
                " forward does: a tower has parts that are not known here. Take one with the towers of CLIP or SigLIP, or of"
                " ViT and BERT"
            )

    def _scale_and_bias(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What cosines are multiplied by, and what is added to them, () each."""
        logit_bias = getattr(self.model, "logit_bias", None)
        scale: Any = self.model.logit_scale
        scale = scale.to(dtype).exp().squeeze()
        return scale, torch.zeros_like(scale) if logit_bias is None else logit_bias.to(dtype).squeeze()

    @cached_property
    def spec(self) -> BackboneSpec:
        vision = self.vision.spec
        return replace(
            text_spec(self.name, self.family, self._embedding, self.tokenizer),
            positions=self._texts.positions,
            closed=True,
            state_width=vision.width,
            image=vision.image,
            embedding_width=self._width,
            vision=vision,
        )

    def with_model(self, model: PreTrainedModel) -> DualBackbone:
        """The same backbone around another copy of its model."""
        other = DualBackbone(
            model, self.tokenizer, self.vision.rule, name=self.name, packed=self.vision.packed
        )
        other.vision.former = self.vision.former
        return other

    def with_rule(self, rule: ImageRule) -> DualBackbone:
        """The same model, its images prepared by another rule."""
        return DualBackbone(self.model, self.tokenizer, rule, name=self.name, packed=self.vision.packed)

    def with_settings(self, *, gradient_checkpointing: bool = False, compiled: bool = False) -> DualBackbone:
        """The same model with gradient checkpointing, or compiled by torch.compile."""
        other = self.with_model(self.model)
        settings: Any = {"gradient_checkpointing": gradient_checkpointing, "compiled": compiled}
        other.vision = other.vision.with_settings(**settings)
        other._texts = other._texts.with_settings(**settings)
        other._kept = self._kept  # the weights are the same, and so is what is cached
        other._kept_texts = self._kept_texts
        return other

    def score(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledImageTexts
    ) -> ImageTextEmbeddings:
        """Embeddings of the rows' images and targets. Differentiable in the prompt.

        Texts that neither this prompt nor training changes are run once, and their embeddings are cached.
        Raises ValueError for rows without an image or without texts, for texts longer than the text tower, and for
        class-specific contexts of another number of texts.
        """
        compiled = prompt if isinstance(prompt, CompiledImageTexts) else None
        plain = prompt.prompt if isinstance(prompt, CompiledImageTexts) else prompt
        carried = [row.prompt for row in rows] if plain.rows is None else plain.rows.tolist()
        sets: dict[tuple[int, int], Texts] = {}
        for row, g in zip(rows, carried, strict=True):
            if not row.targets:
                raise ValueError(
                    f"a row has no texts that its image could be compared with, and {self.name} does nothing else: take"
                    " ImageTextClassification, or a task with a head"
                )
            sets.setdefault((id(row.targets), g), row.targets)
        known = {} if compiled is None else compiled.known
        missing = {key: texts for key, texts in sets.items() if key not in known}
        if self._kept_texts.serve(plain):
            found = self._kept_texts(missing, lambda new: self._embedded(new, plain))
        else:
            found = self._embedded(missing, plain)
        if compiled is not None:
            known |= {key: (sets[key], embedded) for key, embedded in found.items()}
        order = list(sets)
        images = self.images(rows, plain.vision if compiled is None else compiled.vision)
        scale, bias = self._scale_and_bias(images.dtype)
        return ImageTextEmbeddings(
            images=images,
            texts=tuple(found[key] if key in found else known[key][1] for key in order),
            which=tuple(order.index((id(row.targets), g)) for row, g in zip(rows, carried, strict=True)),
            scale=scale,
            bias=bias,
        )

    def images(self, rows: Sequence[EncodedRow], prompt: Any = None) -> Tensor:
        """Embeddings of the rows' images, (B, e), of length 1, float32 or wider.

        rows    with images
        prompt  of the vision tower; None: there is none

        If nothing of this tower is trained, they are computed once and cached; see RowFeatures.
        """
        tower = [self.vision.model, self._visual_projection]
        if prompt is None and not any(p.requires_grad for part in tower if part for p in part.parameters()):
            return self._kept(rows, "embedding")
        return self._embedded_images(rows, prompt)

    def _embedded_images(self, rows: Sequence[EncodedRow], prompt: Any) -> Tensor:
        setting = self.vision.spec.image
        assert setting is not None
        read = (POOLINGS.index(setting.pooling),)
        states = self.vision.states(
            [replace(row, read=read, prompt=0) for row in rows], PromptOutput() if prompt is None else prompt
        )
        if self._visual_pooler is not None:
            states = self._visual_pooler(states[:, None])
        if self._visual_projection is not None:
            states = self._visual_projection(states)
        return _to_length_one(states)

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledImageTexts) -> Tensor:
        """The states that heads read of the images, see VisionBackbone. The pooling "embedding" gives the embeddings, (B, e).

        Raises ValueError for a prompt of the text tower, which a head on images would not notice.
        """
        plain = prompt.prompt if isinstance(prompt, CompiledImageTexts) else prompt
        vision = prompt.vision
        if plain.tokens is not None or plain.offset is not None or plain.token_offset is not None:
            raise ValueError(
                f"the prompt stands in the text tower of {self.name}, and a head reads images alone: take"
                " ImageTextClassification, or a method of images, VPT(...)"
            )
        if (known := known_states(rows, self.device)) is not None:
            return known
        if all(row.read == (EMBEDDING,) for row in rows):
            return self._embedded_images(rows, vision)
        return self.vision.states(rows, PromptOutput() if vision is None else vision)

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledImageTexts:
        """The prompt with a cache for the embeddings of the texts that rows bring."""
        vision = None if prompt.vision is None else self.vision.compile(rows, prompt.vision)
        return CompiledImageTexts(prompt, vision)

    def generate(self, rows: Sequence[EncodedRow], prompt: PromptOutput, **options: Any) -> list[list[int]]:
        """Raises ValueError: a dual encoder generates no text."""
        raise ValueError(
            f"{self.name} compares images with texts and writes none: take ImageTextClassification"
        )

    def _embedded(
        self, sets: Mapping[tuple[int, int], Texts], prompt: PromptOutput
    ) -> dict[tuple[int, int], Tensor]:
        """The embeddings (K, e) of each set of targets. Each distinct text of a prompt is run once."""
        numbers: dict[tuple[int, tuple[int, ...]], int] = {}
        members: dict[tuple[int, int], list[int]] = {}
        for key, texts in sets.items():
            prompts = self._prompts_of(texts, key[1], prompt)
            members[key] = [
                numbers.setdefault((g, text), len(numbers)) for g, text in zip(prompts, texts, strict=True)
            ]
        if not numbers:
            return {}
        # Texts of a prompt stand together, because the texts of one part share what they begin with.
        ordered = sorted(numbers, key=lambda entry: entry[0])
        embedded = self._in_parts([EncodedRow(text, prompt=g) for g, text in ordered], prompt)
        place = {entry: i for i, entry in enumerate(ordered)}
        moved = [place[entry] for entry in numbers]
        return {
            key: embedded[torch.tensor([moved[n] for n in mine], device=embedded.device)]
            for key, mine in members.items()
        }

    def _prompts_of(self, texts: Texts, own: int, prompt: PromptOutput) -> list[int]:
        """The number of the prompt that each text of a row carries.

        texts   of the row
        own     number of the row's prompt
        prompt  of the batch

        Raises ValueError for a text longer than the text tower, and for contexts of another number of texts.
        """
        longest = max(map(len, texts))
        if self._texts.positions is not None and longest > self._texts.positions:
            raise ValueError(
                f"a text takes {longest} tokens, virtual tokens included, and the text tower of {self.name} has"
                f" {self._texts.positions} positions: shorten the name, the template or the context"
            )
        if prompt.groups > 1:
            if len(texts) % prompt.groups:
                raise ValueError(
                    f"the prompt has contexts for {prompt.groups} domains, and a row is compared with {len(texts)} texts:"
                    " expected equally many for each domain"
                )
            return [t * prompt.groups // len(texts) for t in range(len(texts))]
        if prompt.texts is None:
            return [own] * len(texts)
        if len(prompt.texts) != len(texts):
            raise ValueError(
                f"the prompt has contexts of its own for {len(prompt.texts)} texts, and a row is compared with"
                f" {len(texts)}: class-specific contexts serve the classes they were trained for, with one template"
            )
        numbers: list[int] = prompt.texts.tolist()
        return numbers

    def _in_parts(self, texts: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """Embeddings of texts, (n, e), of length 1."""

        def run(part: Sequence[EncodedRow]) -> Tensor:
            return _to_length_one(self._texts.embed(part, prompt))

        parts = _parts(texts, self._texts.cost, CHUNK)
        if len(parts) == 1 or not torch.is_grad_enabled():
            return torch.cat([run(part) for part in parts])
        # No random state is kept: a frozen tower draws no random numbers.
        again: Any = {"use_reentrant": False, "preserve_rng_state": False}
        return torch.cat([checkpoint(run, part, **again) for part in parts])


def _parts(
    texts: Sequence[EncodedRow], cost: Callable[[EncodedRow], int], tokens: int
) -> list[list[EncodedRow]]:
    """The texts in order, divided into parts of at most `tokens` tokens, each with one text at least."""
    parts: list[list[EncodedRow]] = [[]]
    taken = 0
    for text in texts:
        taken += cost(text)
        if parts[-1] and taken > tokens:
            parts.append([])
            taken = cost(text)
        parts[-1].append(text)
    return parts


def _to_length_one(states: Tensor) -> Tensor:
    wide = states if states.dtype == torch.float64 else states.float()
    return functional.normalize(wide, dim=-1)


def _embedding_width(visual: nn.Module | None, textual: nn.Module | None, parts: Any) -> int:
    """e, the width of the embeddings. Raises ValueError if the two towers differ in it."""

    def width(projection: Any, tower: Any) -> int:
        if projection is not None:
            return int(projection.out_features)
        head = getattr(tower, "head", None)
        return int(head.out_features if isinstance(head, nn.Linear) else tower.config.hidden_size)

    images, texts = width(visual, parts.vision_model), width(textual, parts.text_model)
    if images != texts:
        raise ValueError(
            f"images become {images} numbers and texts {texts}, which cannot be compared: the towers are of different models;"
            " take both from one checkpoint, or projections to the same width"
        )
    return images
