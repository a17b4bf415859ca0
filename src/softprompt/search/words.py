"""The words that a search may use, and the words nearest to vectors. A words, P words of a prompt, d width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.backbones.base import Backbone

Survives = Callable[[Sequence[int]], bool]
"""Returns whether a prompt of these words survives: written as text and tokenised again, it is the same words."""

_CHUNK = 16384  # words that are compared in float32 at a time: 256 MB at d = 4096
_BEAM = (
    16  # the prompts of the beam, and the near words tried for each, in the search for a prompt that survives
)


@dataclass(frozen=True)
class Vocabulary:
    """The words that a search may use.

    ids    (A,) their token ids, on the CPU
    table  (A, d) their embeddings as the model uses them, on its device and in its precision; as large as the model's table
    lookup embeds any token ids, (n,) -> (n, d)
    """

    ids: Tensor
    table: Tensor
    lookup: Callable[[Tensor], Tensor]

    def embed(self, ids: Tensor) -> Tensor:
        """Return the model's embeddings of any token ids, (n,) -> (n, d) float32."""
        return self.lookup(ids)

    def dot(self, vectors: Tensor) -> Tensor:
        """Return the dot products with every word, (n, d) -> (n, A) float32, on the CPU."""
        parts = [vectors.to(chunk.device) @ chunk.to(vectors.dtype).T for chunk in self.table.split(_CHUNK)]
        return torch.cat(parts, dim=1).cpu()

    def cosine(self, vectors: Tensor) -> Tensor:
        """Return the cosines with every word, (n, d) -> (n, A) float32, on the CPU; 0 with a zero vector."""
        unit = functional.normalize(vectors, dim=-1)
        parts = [
            unit.to(chunk.device) @ functional.normalize(chunk.to(unit.dtype), dim=-1).T
            for chunk in self.table.split(_CHUNK)
        ]
        return torch.cat(parts, dim=1).cpu()


def searchable_words(
    backbone: Backbone, *, ascii_only: bool = True, without: Iterable[str] = ()
) -> Vocabulary:
    """Return the tokens that are text on their own: no special or added tokens, no blanks, no parts of characters.

    Arguments:
        backbone: the model whose vocabulary is searched
        ascii_only: whether only printable ASCII is allowed
        without: words that are left out in any spelling (case, spaces), together with the tokens that they consist of

    Raises:
        ValueError: if no word is left
    """
    spec, tokenizer = backbone.spec, backbone.tokenizer
    excluded = set(spec.special_ids) | set(tokenizer.added_tokens_decoder)
    banned = {word.strip().lower() for word in without}
    for word in without:
        excluded |= set(spec.tokenize(word))
    ids = []
    # The table is often longer than the vocabulary.
    for token in range(min(spec.vocabulary, len(tokenizer))):
        if token in excluded:
            continue
        text = str(tokenizer.decode([token]))
        if not text.strip() or "\ufffd" in text or not text.isprintable():
            continue
        if (ascii_only and not text.isascii()) or text.strip().lower() in banned:
            continue
        ids.append(token)
    if not ids:
        raise ValueError(
            f"no word of {backbone.name} is left to search among: {spec.vocabulary} tokens, ascii_only={ascii_only}, "
            f"without {sorted(banned)}"
        )
    chosen = torch.tensor(ids)
    table = spec.embed(chosen).to(backbone.device, backbone.dtype)
    return Vocabulary(chosen, table, spec.embed)


def draw_words(words: Vocabulary, length: int, survives: Survives, generator: torch.Generator) -> Tensor:
    """Draw `length` words that survive together, (P,). Raises ValueError if 100 draws for each position find none."""
    for _ in range(100):
        drawn = torch.randint(len(words.ids), (length,), generator=generator)
        if survives(found := words.ids[drawn].tolist()):
            return torch.tensor(found)
    # Long prompts seldom survive as a whole, so one word at a time is drawn again until all of them survive together.
    prompt: list[int] = words.ids[drawn].tolist()
    for _ in range(100 * length):
        if survives(prompt):
            return torch.tensor(prompt)
        place = int(torch.randint(length, (1,), generator=generator))
        prompt[place] = int(words.ids[torch.randint(len(words.ids), (1,), generator=generator)])
    raise ValueError(_NONE_SURVIVES.format(length=length))


def nearest_surviving(vectors: Tensor, words: Vocabulary, survives: Survives) -> Tensor:
    """Return the words nearest to each vector by cosine, (P, d) -> (P,), changed as little as they must be to survive.

    These are the nearest words themselves if they survive together. Otherwise a beam of 16 searches the 16 nearest words of
    each position, and the surviving prompt with the largest sum of cosines is returned.
    Raises ValueError if there is none.
    """
    near, order = words.cosine(vectors.detach().float()).topk(min(_BEAM, len(words.ids)), dim=-1)  # (P, k)
    ids = words.ids[order]
    if survives(ids[:, 0].tolist()):
        return ids[:, 0]
    beam: list[tuple[float, list[int]]] = [(0.0, [])]
    for place in range(len(vectors)):
        grown = [
            (score + cosine, [*prompt, word])
            for score, prompt in beam
            for cosine, word in zip(near[place].tolist(), ids[place].tolist(), strict=True)
        ]
        beam = sorted(grown, key=lambda entry: -entry[0])
        last = place == len(vectors) - 1
        kept = []
        for entry in beam:
            if survives(entry[1]):
                if last:
                    return torch.tensor(entry[1])
                kept.append(entry)
            if len(kept) == _BEAM:
                break
        beam = kept or beam[:_BEAM]  # the beginning of a prompt may survive only together with the rest
    raise ValueError(_NONE_SURVIVES.format(length=len(vectors)))


_NONE_SURVIVES = (
    "no prompt of {length} words was found that is read back as the same words when it is written into the template: "
    "words merge with what stands next to them. Separate the slot from the text, as in '{{soft}} {{text}}' or "
    "'{{soft}}\\n{{text}}'"
)
