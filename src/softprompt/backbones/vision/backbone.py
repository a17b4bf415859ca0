"""Vision transformers of transformers: ViT, MAE, DeiT, DINOv2 with and without registers, CLIP's and SigLIP's vision towers.

A row is an image and has no tokens: `media` holds its pixels, and `read` says how a head reads it (`images.POOLINGS`).
Virtual tokens stand behind the class token, without positions (VPT-Shallow). Hidden-state prompts enter each layer as
keys and values, which are computed once for all images (VPT-Deep). This is exact: states and gradients are those of
concatenation.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from softprompt.backbones.base import BackboneSpec, known_states
from softprompt.backbones.engine import disagreement
from softprompt.backbones.vision.class_attention import ClassAttention, sorted_out, watched
from softprompt.backbones.vision.groups import first_layer, groups_of
from softprompt.backbones.vision.processors import rules_of
from softprompt.backbones.vision.tower import READS_PROMPTS, ImagePrompt, Tower, find_tower, tower_views
from softprompt.backbones.vision.trial import check_tower
from softprompt.images import POOLINGS, ImagePooling, ImageRule, ImageSetting, normalized
from softprompt.outputs import EncodedRow, PromptOutput, TargetLogits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompiledImagePrompt:
    """A prompt whose hidden-state prompts have been turned into keys and values.

    given  the prompt as it was, for heads that read the rows of prompts
    fast   the prompt with `prefix` in place of `layers`
    heads  empty: nothing depends on the rows
    """

    given: PromptOutput
    fast: PromptOutput
    heads: tuple[()] = ()


@dataclass(frozen=True)
class _Settings:
    compiled: bool = False
    checkpointing: bool = False


class VisionBackbone:
    """A vision transformer with the rule that prepares its images.

    model      of transformers
    processor  an ImageRule, an image processor of transformers, or its configuration
    name       for people; by default the one that the model was loaded with
    packed     True: prompt rows that no head reads enter as keys and values alone; False: prompts are concatenated;
               None: a trial decides
    """

    family = "vision-encoder"

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ImageRule | Mapping[str, Any] | Any,
        *,
        name: str | None = None,
        packed: bool | None = None,
    ) -> None:
        self.model = model
        self.name = name or model.config.name_or_path or type(model).__name__
        self._facts = find_tower(model)
        self._views = tower_views(model)
        self._settings = _Settings()
        self._can_share = packed
        self.former: ImageRule | None = None  # how earlier versions read the same processor
        if not isinstance(processor, ImageRule):
            processor, self.former = rules_of(processor, self._facts.size, model.config.model_type)
        self.rule: ImageRule = processor

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self._facts.convolution.weight.dtype

    @property
    def table(self) -> Tensor:
        """The patch embedding as a table with a row for each number of a patch, (3 * patch height * patch width, d)."""
        return self._facts.convolution.weight.flatten(1).T  # (d, 3, h, w) -> (3hw, d)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that the positions were trained for, in pixels."""
        return self._facts.size

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Raises ValueError: a vision encoder has no tokenizer."""
        raise ValueError(f"{self.name} reads images and has no tokenizer")

    @property
    def packed(self) -> bool:
        """Whether prompts enter as keys and values. A trial decides when this is first asked for."""
        if self._can_share is None:
            self._can_share = _can_share(self._tower_in("plain"), self._tower_in("beside"), self.name)
        return self._can_share

    def check(self) -> None:
        """Raise ValueError for a model that cannot be run with prompts, see `check_tower`."""
        check_tower(self._tower_in("plain"), self.name)

    def _tower(self) -> Tower:
        """The tower that is run, of a view of the model as it is now."""
        return self._tower_in("beside" if self.packed else "plain")

    def _tower_in(self, kind: str) -> Tower:
        view, settings = self._views[kind], self._settings
        tower = find_tower(view.model)
        forwards = (
            tuple(view.compiled(layer) for layer in tower.layers) if settings.compiled else tower.layers
        )
        return replace(
            tower, forwards=forwards, checkpointing=settings.checkpointing, reaches=kind == "beside"
        )

    @cached_property
    def spec(self) -> BackboneSpec:
        tower, table = self._tower(), self.table

        def no_words(*args: Any) -> NoReturn:
            raise ValueError(
                f"{self.name} reads images and has no words that a prompt could start from: take VPT(...)"
            )

        with torch.no_grad():
            noise = torch.randn(1, 3, *tower.size, generator=torch.Generator().manual_seed(0))
            rows = tower.embed(noise.to(self.device, self.dtype))
        poolings = tuple(pooling for pooling in POOLINGS if self._offers(pooling))
        return BackboneSpec(
            name=self.name,
            family=self.family,
            width=table.shape[1],
            vocabulary=table.shape[0],
            key_values=(tower.heads,) * len(tower.layers) if self.packed else (),
            positions=None,
            embedding_std=rows.float().std().item(),
            embed=no_words,
            tokenize=no_words,
            special_ids=frozenset(),
            layers=len(tower.layers),
            image=ImageSetting(
                rule=self.rule,
                patch=tower.patch,
                poolings=poolings,
                pooling="pooler" if tower.pooler is not None else poolings[0],
                positions=None if tower.interpolates else tower.size,
                former=self.former,
            ),
        )

    def _offers(self, pooling: ImagePooling) -> bool:
        if pooling == "embedding":  # only dual encoders have it
            return False
        if pooling == "pooler":
            return self._facts.pooler is not None
        return pooling != "class" or self._facts.front > 0

    def with_model(self, model: PreTrainedModel) -> VisionBackbone:
        """The same backbone around another copy of its model."""
        other = VisionBackbone(model, self.rule, name=self.name, packed=self.packed)
        other.former = self.former
        return other

    def with_rule(self, rule: ImageRule) -> VisionBackbone:
        """The same model, its images prepared by another rule."""
        return VisionBackbone(self.model, rule, name=self.name, packed=self.packed)

    def with_settings(
        self, *, gradient_checkpointing: bool = False, compiled: bool = False
    ) -> VisionBackbone:
        """The same model with gradient checkpointing, or with each layer compiled by torch.compile."""
        other = self.with_model(self.model)
        other._views, other._settings = self._views, _Settings(compiled, gradient_checkpointing)
        return other

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput | CompiledImagePrompt) -> Tensor:
        """The states that heads read of the images, behind the last norm, (sum of len(row.read), d).

        They are differentiable in the prompt. Images of a batch may differ in size and prompt: those that agree in both
        run together.
        Raises ValueError for rows without an image, for poolings that this tower does not have, and for prompts that are
        not defined on images.
        """
        if isinstance(prompt, CompiledImagePrompt):
            whole = any(read in _READ_PROMPTS for row in rows for read in row.read)
            plain = prompt.given if whole else prompt.fast
        else:
            plain = prompt
        self._check(rows, plain)
        if (known := known_states(rows, self.device)) is not None:
            return known
        found: dict[tuple[int, int], Tensor] = {}
        for members, carried in groups_of(rows, plain, self.device):
            reads = {n for b in members for n in rows[b].read}
            for read, states in self._read([rows[b] for b in members], carried, reads).items():
                found |= {(b, read): state for b, state in zip(members, states, strict=True)}
        places = [(b, read) for b, row in enumerate(rows) for read in row.read]
        if not places:
            return self.table.new_zeros(0, self.table.shape[1])
        return torch.stack([found[place] for place in places])

    def _read(self, rows: Sequence[EncodedRow], prompt: ImagePrompt, reads: set[int]) -> dict[int, Tensor]:
        """Run images of one size whose known features enter the same layer. Gives (B, d) for each of `reads`."""
        wanted = [POOLINGS[read] for read in sorted(reads)]
        start, tower = first_layer(rows[0]), self._tower()
        if start:
            x = torch.stack([row.known.states for row in rows if row.known is not None])  # (B, T, d)
            x = x.to(self.device, self.dtype)
        else:
            x = self._embed(tower, rows)
        x, inside = tower.through(x, prompt, wanted, start=start)
        return {POOLINGS.index(read): tower.pool(x, inside, read) for read in wanted}

    def _embed(self, tower: Tower, rows: Sequence[EncodedRow]) -> Tensor:
        """The embedded patches of images of one size, (B, T, d)."""
        pixels = torch.stack([row.media for row in rows if row.media is not None])
        return tower.embed(normalized(pixels.to(self.device), self.rule, self.dtype))

    @torch.no_grad()
    def hidden(self, rows: Sequence[EncodedRow], layer: int) -> list[Tensor]:
        """The rows of each image in front of a layer, (T, d), computed without any prompt."""
        none, tower = ImagePrompt(None, 0, ()), self._tower()
        self._check(rows, PromptOutput())
        groups: dict[tuple[Any, ...], list[int]] = {}
        for b, row in enumerate(rows):
            assert row.media is not None
            groups.setdefault((row.media.shape, row.media.dtype), []).append(b)
        found: dict[int, Tensor] = {}
        for members in groups.values():
            x = self._embed(tower, [rows[b] for b in members])
            x, _ = tower.through(x, none, (), stop=layer)
            found |= dict(zip(members, x, strict=True))
        return [found[b] for b in range(len(rows))]

    def _check(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> None:
        if prompt.offset is not None or prompt.token_offset is not None:
            raise ValueError(f"offsets are added to the embeddings of words, and {self.name} reads images")
        layers = len(self._facts.layers)
        for part in (prompt.layers, prompt.prefix):
            if part is not None and len(part) != layers:
                raise ValueError(f"the prompt has {len(part)} layers, {self.name} has {layers}")
        if prompt.prefix is not None and not self.packed:
            raise ValueError(
                f"the attention of {self.name} cannot be reached, so it takes no key-value prefix"
            )
        if prompt.count > 1 and prompt.tokens is not None and prompt.prefix is not None:
            raise ValueError(
                "prompts of virtual tokens and key-value prefixes cannot share a batch of images: split it by prompt"
            )
        start = max((first_layer(row) for row in rows), default=0)
        if (prompt.tokens is not None and prompt.entry < start) or any(
            layer.shape[1] for layer in (prompt.layers or ())[:start]
        ):
            raise ValueError(
                f"rows are known as far as layer {start}, and the prompt enters in front of it: encode the rows anew"
            )
        for row in rows:
            if row.media is None:
                raise ValueError(
                    f"a row has no image, and {self.name} reads nothing else: its `media` is None"
                )
            for read in row.read:
                name = POOLINGS[read] if 0 <= read < len(POOLINGS) else read
                if isinstance(name, int) or not self._offers(name):
                    known = [pooling for pooling in POOLINGS if self._offers(pooling)]
                    raise ValueError(f"{self.name} cannot be read as {name!r}; it has {known}")

    def class_attention(self, row: EncodedRow, run: Callable[[EncodedRow], object]) -> ClassAttention:
        """What the class token of an image attends to.

        row  the image
        run  is called with a row, and must compute its states on this backbone, as `PromptedModel.states` does

        Raises ValueError for a tower without a class token, and for a tower whose attention cannot be reached.
        """
        if not self._facts.front or not self.packed or row.media is None:
            reason = "its attention cannot be reached" if self._facts.front else "it has no class token"
            raise ValueError(f"there is no attention of a class token to show of {self.name}: {reason}")
        height, width = (
            side // part for side, part in zip(row.media.shape[-2:], self._facts.patch, strict=True)
        )
        with torch.no_grad(), watched() as watch:
            # Reading the mean of the patches as well makes the last layer keep all its rows.
            run(replace(row, read=(*row.read, POOLINGS.index("mean"))))
        return sorted_out(self._tower(), watch, (height, width))

    def compile(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> CompiledImagePrompt:
        """The prompt with its hidden-state prompts turned into keys and values, which are the same for every image."""
        if prompt.layers is None or prompt.prefix is not None or not self.packed:
            return CompiledImagePrompt(prompt, prompt)
        with torch.no_grad():
            tower, own = self._tower(), [layer.to(self.device, self.dtype) for layer in prompt.layers]
            if tower.before is not None:
                own[0] = tower.before(own[0])
            prefix = tuple(tower.key_values(i, layer) for i, layer in enumerate(own))
        return CompiledImagePrompt(prompt, replace(prompt, layers=None, prefix=prefix))

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
        """Raises ValueError: images are not followed by words."""
        raise ValueError(
            f"{self.name} reads images and scores no words: take a task with a head, ImageClassification"
        )

    def generate(self, rows: Sequence[EncodedRow], prompt: PromptOutput, **options: Any) -> list[list[int]]:
        """Raises ValueError: images are not followed by words."""
        raise ValueError(f"{self.name} reads images and writes no text: take a task with a head")


_READ_PROMPTS = {POOLINGS.index(pooling) for pooling in READS_PROMPTS}


@torch.no_grad()
def _can_share(tower: Tower, beside: Tower, name: str) -> bool:
    """Whether prompts as keys and values give the same as concatenated ones, in a trial on rows of noise.

    tower   with the model's own attention
    beside  the same tower, whose attention reaches beside the rows
    """
    generator = torch.Generator().manual_seed(0)
    weight = tower.convolution.weight

    def noise(count: int, length: int) -> Tensor:
        return torch.randn(count, length, len(weight), generator=generator).to(weight.device, weight.dtype)

    rows = noise(2, tower.special + 4)
    prompt = ImagePrompt(None, 0, tuple(noise(1, 2) for _ in tower.layers))
    read: ImagePooling = "class" if tower.front else "mean"
    expected = tower.pool(*tower.through(rows, prompt, [read]), read)
    try:
        found = beside.pool(*beside.through(rows, prompt, [read]), read)
    except (TypeError, NotImplementedError, AttributeError, RuntimeError, StopIteration, KeyError) as error:
        return _say(name, f"{type(error).__name__}: {error}")
    if (difference := disagreement(found, expected, expected.dtype, half=0.1)) is not None:
        return _say(name, f"keys and values beside the rows differ by {difference:.2g}")
    return True


def _say(name: str, reason: str) -> bool:
    log.warning("%s: prompts are concatenated and run for each image, because %s", name, reason)
    return False
