"""Which words a search may use, and where vectors lie among them. A words, P words of a prompt, d width."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.backbones.base import Backbone

Survives = Callable[[Sequence[int]], bool]
"""Whether a prompt of these words comes back as the same words when it is written as text and read again."""

_CHUNK = 16384  # words at a time that are compared in float32: 256 MB at d = 4096
_BEAM = 16  # prompts kept, and near words tried for each, while a prompt that survives is looked for


@dataclass(frozen=True)
class Vocabulary:
    """The words that a search may use.

    ids    (A,) their token ids, on the CPU
    table  (A, d) their embeddings as the model uses them, on its device and in its precision: as large as the model's
           own table
    lookup token ids (n,) -> (n, d), of any words
    """

    ids: Tensor
    table: Tensor
    lookup: Callable[[Tensor], Tensor]

    def embed(self, ids: Tensor) -> Tensor:
        """The model's embeddings of any token ids, (n,) -> (n, d) float32."""
        return self.lookup(ids)

    def dot(self, vectors: Tensor) -> Tensor:
        """Dot products with every word, (n, d) -> (n, A) float32, on the CPU."""
        parts = [vectors.to(chunk.device) @ chunk.to(vectors.dtype).T for chunk in self.table.split(_CHUNK)]
        return torch.cat(parts, dim=1).cpu()

    def cosine(self, vectors: Tensor) -> Tensor:
        """Cosines with every word, (n, d) -> (n, A) float32, on the CPU; 0 with a zero vector."""
        unit = functional.normalize(vectors, dim=-1)
        parts = [
            unit.to(chunk.device) @ functional.normalize(chunk.to(unit.dtype), dim=-1).T
            for chunk in self.table.split(_CHUNK)
        ]
        return torch.cat(parts, dim=1).cpu()


def searchable_words(
    backbone: Backbone, *, ascii_only: bool = True, without: Iterable[str] = ()
) -> Vocabulary:
    """The tokens that are text by themselves: no special or added ones, no blanks, no parts of characters.

    ascii_only: nothing but printable ASCII. without: words that are left out, however they are spelt (case, spaces),
    and the tokens they are made of.
    Raises ValueError if no word is left.
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
    """`length` words at random that survive together, (P,). Raises ValueError if 100 draws for each place do not."""
    for _ in range(100):
        drawn = torch.randint(len(words.ids), (length,), generator=generator)
        if survives(found := words.ids[drawn].tolist()):
            return torch.tensor(found)
    # Long prompts seldom survive whole: place by place, each word is drawn until it goes with the others.
    prompt: list[int] = words.ids[drawn].tolist()
    for _ in range(100 * length):
        if survives(prompt):
            return torch.tensor(prompt)
        place = int(torch.randint(length, (1,), generator=generator))
        prompt[place] = int(words.ids[torch.randint(len(words.ids), (1,), generator=generator)])
    raise ValueError(_NONE_SURVIVES.format(length=length))


def nearest_surviving(vectors: Tensor, words: Vocabulary, survives: Survives) -> Tensor:
    """The words nearest to each vector by cosine, (P, d) -> (P,), changed as little as is needed to survive.

    The nearest words themselves where they survive together; else, of the prompts that a beam of 16 finds among the 16
    nearest words of each place, the survivor with the largest sum of cosines.
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
        beam = kept or beam[:_BEAM]  # the beginning of a prompt may survive only with what follows it
    raise ValueError(_NONE_SURVIVES.format(length=len(vectors)))


_NONE_SURVIVES = (
    "no prompt of {length} words was found that is read back as the same words when it is written into the template: "
    "words merge with what stands next to them. Part the slot from the text, as in '{{soft}} {{text}}' or "
    "'{{soft}}\\n{{text}}'"
)
