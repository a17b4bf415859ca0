"""Any model of transformers that reads images among its text and writes text, with a prompt anywhere among both.

Where the decoder is a causal language model that takes images as rows of vectors (LLaVA, SmolVLM, InternVL), it runs packed:
an image and the prompt in front of it once for all questions about it. Where an image sees itself, a prefix is read both
ways, or positions have three axes (Gemma 3, PaliGemma, Qwen-VL), the whole model runs on padded rows. A trial on an image
decides; its judge is the whole model, one row at a time.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.engine import CompiledPrompt, split_prompt
from softprompt.backbones.image_text.decoder import Prompts, text_decoder, with_images
from softprompt.backbones.image_text.features import ImageFeatures
from softprompt.backbones.image_text.pictures import PictureReader, processor_for
from softprompt.backbones.image_text.trial import check_images, decodes_alone, refuse_other_kinds
from softprompt.backbones.image_text.whole import WholeModel, views_of
from softprompt.backbones.vocabulary import table_of, text_spec
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits

log = logging.getLogger(__name__)


class ImageTextBackbone:
    """A model that reads images and text, with its tokenizer and its processor.

    model      of transformers
    tokenizer  the model's own
    processor  the model's own, or its image processor
    name       for people; by default the one that the model was loaded with
    packed     False: the whole model runs on padded rows; by default a trial decides
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        processor: Any,
        *,
        name: str | None = None,
        packed: bool | None = None,
    ) -> None:
        # transformers' own hooks, which the first call that asks for hidden states installs, once for each copy of a model.
        # A view shares them with its model, and would be given them twice.
        maybe_install_capturing_hooks(model)
        self.model = model
        self.tokenizer = tokenizer
        self.name = name or model.config.name_or_path or type(model).__name__
        refuse_other_kinds(model, self.name)
        self.processor = processor_for(processor, tokenizer, model.config, self.name)
        reader = PictureReader(self.processor, int(model.config.image_token_id))
        self.reader = reader
        self.features = ImageFeatures(model, reader)
        self._packed = packed
        self._is_tried = packed is False
        self._decoder: CausalBackbone | None = None
        types = _types(model)
        marks = bool(getattr(self.processor, "return_mm_token_type_ids", False))
        self.whole = WholeModel(
            views=views_of(model),
            features=self.features,
            filler=_filler(tokenizer, model, reader.image_id),
            types=types if marks or types == "token_type_ids" else None,
            prefixed=types == "token_type_ids" and not marks,
        )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    @property
    def table(self) -> Tensor:
        """The input embedding table, (V, d)."""
        return table_of(self.model.get_input_embeddings())

    @property
    def packed(self) -> bool:
        """Whether images and prompts are shared by the rows of a batch. A trial decides when this is first asked for."""
        return self.decoder is not None

    @property
    def decoder(self) -> CausalBackbone | None:
        """The text decoder as a causal language model; None: the whole model runs on padded rows."""
        if not self._is_tried:
            self._is_tried = True
            self._decoder, reason = decodes_alone(self._new_decoder, self.whole)
            if reason is not None:
                log.warning(
                    "%s: rows are padded, and prompts and images are run for each of them, because %s",
                    self.name,
                    reason,
                )
        return self._decoder

    def _new_decoder(self) -> CausalBackbone:
        return CausalBackbone(text_decoder(self.model), self.tokenizer, name=self.name)

    def check(self) -> None:
        """Raise ValueError unless a prompt and images work together: a trial on an image tells, not the model's name."""
        check_images(self.whole, self.name)
        if self._packed and self.decoder is None:
            raise ValueError(f"{self.name} cannot be packed: load it without packed=True")

    @cached_property
    def spec(self) -> BackboneSpec:
        config = self.model.config.get_text_config()
        decoder = None if self.decoder is None else self.decoder.spec
        found = text_spec(self.name, "image-text-to-text", self.model.get_input_embeddings(), self.tokenizer)
        return replace(
            found,
            special_ids=found.special_ids | {self.reader.image_id},
            key_values=() if decoder is None else decoder.key_values,
            key_values_of=None if decoder is None else decoder.key_values_of,
            positions=getattr(config, "max_position_embeddings", None),
            read_picture=self.reader,
            image_id=self.reader.image_id,
        )

    def with_model(self, model: PreTrainedModel) -> ImageTextBackbone:
        """The same backbone around another copy of its model."""
        packed = self.packed
        other = ImageTextBackbone(model, self.tokenizer, self.processor, name=self.name, packed=self._packed)
        other._is_tried = True
        if packed:
            assert self._decoder is not None
            other._decoder = self._decoder.with_model(text_decoder(model))
        if other.features.is_frozen and all(
            map(lambda ours, theirs: ours is theirs, self.features.weights, other.features.weights)
        ):
            other.features._kept = self.features._kept
        return other

    def with_settings(
        self, *, gradient_checkpointing: bool = False, compiled: bool = False
    ) -> ImageTextBackbone:
        """The same model with gradient checkpointing, or compiled by torch.compile. The plain path has neither."""
        other = self.with_model(self.model)
        if other._decoder is not None:
            other._decoder = other._decoder.with_settings(
                gradient_checkpointing=gradient_checkpointing, compiled=compiled
            )
        return other

    def score(self, rows: Sequence[EncodedRow], prompt: Prompts) -> TargetLogits:
        """Logits of the positions that predict target tokens, each position once. Differentiable in the prompt.

        Raises ValueError for rows whose placeholders are not those of their images, and as CausalBackbone does.
        """
        self._check_rows(rows)
        if self.decoder is None:
            return self.whole.score(rows, _plain(rows, prompt))
        return self.decoder.score(*self._with_images(rows, prompt))

    def states(self, rows: Sequence[EncodedRow], prompt: Prompts) -> Tensor:
        """Last hidden states at the rows' `read` positions, (n, d), in order. Differentiable in the prompt."""
        if (known := known_states(rows, self.device)) is not None:
            return known
        self._check_rows(rows)
        if self.decoder is None:
            return self.whole.states(rows, _plain(rows, prompt))
        return self.decoder.states(*self._with_images(rows, prompt))

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledPrompt:
        """Run what all rows of each prompt share in front of their first image once, for every later call."""
        if self.decoder is None:
            return CompiledPrompt(((),) * prompt.count, prompt)
        before = [replace(row, context=self._before_images(row), pictures=(), read=()) for row in rows]
        return replace(self.decoder.compile(before, prompt), given=prompt)

    def generate(self, rows: Sequence[EncodedRow], prompt: Prompts, **options: Any) -> list[list[int]]:
        """New token ids for each row: greedy, sampled or by beams, with the options of transformers' `generate`."""
        self._check_rows(rows)
        if self.decoder is None:
            pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
            return self.whole.generate(rows, _plain(rows, prompt), eos if pad is None else pad, options)
        with torch.no_grad():
            return self.decoder.generate(*self._with_images(rows, prompt), **options)

    def _with_images(self, rows: Sequence[EncodedRow], prompt: Prompts) -> tuple[list[EncodedRow], Prompts]:
        return with_images(rows, prompt, self.reader.image_id, self.features)

    def _before_images(self, row: EncodedRow) -> tuple[int, ...]:
        """The context up to the first placeholder; that one stands at its end, so that no image is shared as a word."""
        if self.reader.image_id not in row.context:
            return row.context
        return row.context[: row.context.index(self.reader.image_id) + 1]

    def _check_rows(self, rows: Sequence[EncodedRow]) -> None:
        for row in rows:
            expected = sum(picture.tokens.count(self.reader.image_id) for picture in row.pictures)
            if row.context.count(self.reader.image_id) != expected:
                raise ValueError(
                    f"a row has {row.context.count(self.reader.image_id)} placeholders and its {len(row.pictures)} images"
                    f" take {expected}: encode it with its task, and write {{image}} in the template where an image stands"
                )


def _plain(rows: Sequence[EncodedRow], prompt: Prompts) -> PromptOutput:
    return split_prompt(rows, prompt)[1]


def _types(model: PreTrainedModel) -> str | None:
    """The argument of the model that says what kind each token is."""
    known = inspect.signature(model.forward).parameters
    return next((name for name in ("mm_token_type_ids", "token_type_ids") if name in known), None)


def _filler(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, image_id: int) -> int:
    """An ordinary word. Special tokens may change masks and positions."""
    config = model.config
    special = {*tokenizer.all_special_ids, image_id, *tokenizer.added_tokens_decoder}
    named = {**config.get_text_config().to_dict(), **config.to_dict()}
    special |= {value for key, value in named.items() if key.endswith("_token_id") and isinstance(value, int)}
    return next(i for i in range(table_of(model.get_input_embeddings()).shape[0]) if i not in special)
