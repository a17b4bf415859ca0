"""The plain path: the whole model on rows that are padded on the right, as its own forward is written.

The model gets ids, with an ordinary word where a virtual token stands, and computes masks, positions and types from them.
Only its embedding is replaced for the call. So an image may see itself, positions may have three axes, and a prefix may
be read both ways: what the model does with ids, it does behind a prompt.

Letters: B rows, T tokens, d width.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from threading import RLock
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from softprompt.backbones.engine import (
    check_options,
    copies_of,
    decoding,
    drawing,
    make_shifting,
    new_tokens,
    shifted,
    trunk_of,
)
from softprompt.backbones.engine.view import Views
from softprompt.backbones.image_text.features import ImageFeatures, encoder_outputs, on_model
from softprompt.outputs import EncodedRow, Picture, PromptOutput, TargetLogits


@dataclass(frozen=True)
class Atoms:
    """One sequence of a pass: atoms, how many of them are its context, the images in it and the number of its prompt."""

    atoms: tuple[int, ...]
    context: int
    pictures: tuple[Picture, ...]
    prompt: int


def views_of(model: PreTrainedModel) -> Views:
    """The view that is run: its embedding can be replaced for a call, and the positions it remembers are its own."""

    def plain(view: Any) -> None:
        make_shifting(view.get_input_embeddings())

    return Views(model, {"plain": plain})


@dataclass(frozen=True)
class WholeModel:
    """A model and how it is called.

    views     of it
    features  of images
    filler    id of the word that stands in ids where a virtual token does
    types     name of the argument that says which tokens are images (1), or which are the answer (1) where `prefixed`;
              None: there is none
    prefixed  whether the context is read both ways
    """

    views: Views
    features: ImageFeatures
    filler: int
    types: str | None
    prefixed: bool
    lock: Any = field(default_factory=RLock, repr=False, compare=False)

    @property
    def plain(self) -> PreTrainedModel:
        view: PreTrainedModel = self.views["plain"].model
        return view

    @property
    def image_id(self) -> int:
        return self.features.reader.image_id

    def score(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> TargetLogits:
        """See ImageTextBackbone.score."""
        sequences: list[Atoms] = []
        places: list[tuple[int, int]] = []
        position, token, target = [], [], []
        for row in rows:
            for tail in row.targets:
                for j, word in enumerate(tail):
                    position.append(len(places))
                    places.append((len(sequences), len(row.context) - 1 + j))
                    token.append(word)
                    target.append(len(sequences))
                sequences.append(Atoms(row.context + tail[:-1], len(row.context), row.pictures, row.prompt))
        found = self._run(lambda view: view, lambda out: out.logits, sequences, prompt)

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=self.plain.device)

        return TargetLogits(
            logits=_at(found, places),
            position=tensor(position),
            token=tensor(token),
            target=tensor(target),
            counts=tuple(len(row.targets) for row in rows),
        )

    def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
        """See ImageTextBackbone.states."""
        sequences = [Atoms(row.context, len(row.context), row.pictures, row.prompt) for row in rows]
        found = self._run(trunk_of, lambda out: out.last_hidden_state, sequences, prompt)
        return _at(found, [(b, i) for b, row in enumerate(rows) for i in row.read])

    def _run(
        self,
        part: Callable[[Any], Any],
        result: Callable[[Any], Tensor],
        sequences: Sequence[Atoms],
        prompt: PromptOutput,
    ) -> Tensor:
        """One pass of a part of the model, (B, T, n)."""
        view = self.plain
        pictures = [picture for one in sequences for picture in one.pictures]
        images = encoder_outputs([self.features(picture) for picture in pictures]) if pictures else None
        inputs = self._inputs(sequences)
        forward = part(view)
        about = self._about(pictures, forward)
        with self.lock, self._feeding(sequences, inputs, prompt):
            more = {"mm_encoder_outputs": images} if images else {}
            output = forward(**inputs, **about, **more, use_cache=False)
        return result(output)

    def _inputs(self, sequences: Sequence[Atoms]) -> dict[str, Tensor]:
        """Ids, the mask and the types of sequences, (B, T) each, padded on the right."""
        longest = max(len(one.atoms) for one in sequences)
        ids = torch.full((len(sequences), longest), self.filler)
        mask = torch.zeros_like(ids)
        types = torch.zeros_like(ids)
        for b, one in enumerate(sequences):
            atoms = torch.tensor(one.atoms)
            ids[b, : len(atoms)] = torch.where(atoms < 0, self.filler, atoms)
            mask[b, : len(atoms)] = 1
            if self.prefixed:
                types[b, one.context :] = 1
            else:
                types[b, : len(atoms)] = (atoms == self.image_id).long()
        named = {"input_ids": ids, "attention_mask": mask} | ({self.types: types} if self.types else {})
        return {name: value.to(self.plain.device) for name, value in named.items()}

    def inputs_of(self, row: EncodedRow) -> dict[str, Tensor]:
        """What the model's authors give it for a row without virtual tokens and its only target: ids, types and pixels."""
        [target] = row.targets
        sequence = Atoms(row.context + target[:-1], len(row.context), row.pictures, row.prompt)
        return {**self._inputs([sequence]), **self._pixels([row])}

    def _pixels(self, rows: Sequence[EncodedRow]) -> dict[str, Tensor]:
        """Pixels of the images of rows, and what belongs to them."""
        pictures = [picture for row in rows for picture in row.pictures]
        return on_model(self.features.reader.together(pictures), self.plain) if pictures else {}

    def _about(self, pictures: Sequence[Picture], forward: Any) -> dict[str, Tensor]:
        """What the model is told about images beside their vectors: grids and sizes."""
        if not pictures:
            return {}
        known = inspect.signature(forward.forward).parameters
        each = [on_model(self.features.reader.inputs(picture), self.plain) for picture in pictures]
        names = [name for name in each[0] if name in known and not name.startswith("pixel")]
        return {name: torch.cat([inputs[name] for inputs in each]) for name in names}

    def _feeding(self, sequences: Sequence[Atoms], inputs: dict[str, Tensor], prompt: PromptOutput) -> Any:
        """Within the block, the first embedding of ids is that of `sequences`, and of what is new thereafter."""
        if prompt.tokens is None and prompt.offset is None and prompt.token_offset is None:
            return nullcontext()
        view = self.plain
        embeds = view.get_input_embeddings()(inputs["input_ids"])  # (B, T, d)
        texts = torch.zeros(embeds.shape[:2], dtype=torch.bool)
        soft, slots = [], []
        for b, one in enumerate(sequences):
            atoms = torch.tensor(one.atoms)
            texts[b, : len(atoms)] = (atoms >= 0) & (atoms != self.image_id)
            soft += [(b, t) for t, atom in enumerate(one.atoms) if atom < 0]
            slots += [(one.prompt, -1 - atom) for atom in one.atoms if atom < 0]
        texts = texts.to(embeds.device)
        number = texts.long().cumsum(1) - texts.long()
        which = torch.tensor([one.prompt for one in sequences], device=embeds.device)
        flat = shifted(
            embeds.flatten(0, 1), number.flatten(), which.repeat_interleave(embeds.shape[1]), prompt
        ).view_as(embeds)
        embeds = torch.where(texts[..., None], flat, embeds)
        if soft and prompt.tokens is not None:
            b, t = torch.tensor(soft, device=embeds.device).T
            g, k = torch.tensor(slots, device=embeds.device).T
            embeds = embeds.index_put((b, t), prompt.tokens[g, k].to(embeds.dtype))
        return decoding(prompt, texts.sum(1), which, first=embeds)

    @torch.no_grad()
    def generate(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput, pad: int, options: dict[str, Any]
    ) -> list[list[int]]:
        """New tokens for each row. Rows of one length run together, without padding."""
        check_options(options)
        options = {"pad_token_id": pad, **options, "use_cache": True}
        if copies_of(self.plain, options) > 1 and any(len(row.pictures) > 1 for row in rows):
            raise ValueError(
                "beams and several answers for a row are not generated for rows with several images: take one answer"
            )
        groups: dict[tuple[int, int], list[int]] = {}
        for b, row in enumerate(rows):
            groups.setdefault((len(row.context), len(row.pictures)), []).append(b)
        answers: dict[int, list[list[int]]] = {}
        for members in groups.values():
            found = self._generated([rows[b] for b in members], prompt, options)
            copies = len(found) // len(members)
            answers |= {b: found[i * copies : (i + 1) * copies] for i, b in enumerate(members)}
        return [answer for b in range(len(rows)) for answer in answers[b]]

    def _generated(
        self, rows: Sequence[EncodedRow], prompt: PromptOutput, options: dict[str, Any]
    ) -> list[list[int]]:
        sequences = [Atoms(row.context, len(row.context), row.pictures, row.prompt) for row in rows]
        inputs = self._inputs(sequences)
        view: Any = self.plain
        pixels = self._pixels(rows)
        with self.lock, drawing(view, options), self._feeding(sequences, inputs, prompt):
            output = view.generate(**inputs, **pixels, **options)
        return new_tokens(output, inputs["input_ids"].shape[1], options)


def _at(found: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """Results at places (sequence, token), (B, T, n) -> (len(places), n)."""
    b, t = torch.tensor(places, dtype=torch.long, device=found.device).view(-1, 2).T
    return found[b, t]


def as_rows(rows: Sequence[EncodedRow], filler: int) -> list[EncodedRow]:
    """Rows with an ordinary word in the place of each virtual token."""
    return [replace(row, context=tuple(filler if atom < 0 else atom for atom in row.context)) for row in rows]
