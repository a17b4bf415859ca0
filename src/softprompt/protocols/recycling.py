"""Conversion of prompts from one model to another by the two embedding tables, without training the prompt.

Lester, Yurtsever, Shakeri, Constant 2022, "Reducing Retraining by Recycling Parameter-Efficient Prompts"
(arXiv 2208.05577), section 3. Letters: n words in both vocabularies, P virtual tokens, s and t the widths of the source
and of the target, E_s (n, s) and E_t (n, t) the embeddings of these words.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from softprompt.backbones.base import Backbone
from softprompt.concerns import warn_of
from softprompt.protocols.transfer import check_tokens_only, read_source, untrained_prompt
from softprompt.tasks.base import Task
from softprompt.tuned import TunedPrompt

Recycler = Literal["v2v-lin", "v2v-nn", "lin-comb"]

WORDS, SKIPPED = 4000, 1000  # the paper's: frequent words, but not the most frequent ones
_WIDER, _RATE, _BATCH, _EPOCHS = 4, 3e-4, 50, 25  # the paper's for v2v-nn


def port_prompt(
    source: TunedPrompt,
    backbone: Backbone,
    task: Task | None = None,
    *,
    recycler: Recycler = "v2v-lin",
    words: int = WORDS,
    skip: int = SKIPPED,
    seed: int = 0,
) -> TunedPrompt:
    """A prompt of another model as an untrained prompt of this one: same length, this one's width.

    task         None: the source's; give another where the template must differ (a {mask}, other label words)
    recycler     v2v-lin: linear map between the tables; v2v-nn: a small network; lin-comb: the prompt as a linear
                 combination of word embeddings, and the same combination of the other table's
    words, skip  that many words of both vocabularies are used, after the `skip` first ones in the source's order
    seed         of v2v-nn

    In the paper most recycled prompts beat a manual one, and none comes near a prompt trained on the target: evaluate it,
    or save it and start from it. A task that is answered by a head gets none: there the result is a start only.
    Raises what `transfer.read_source` does, and ValueError for prompts with more than virtual tokens and for vocabularies
    that share too few words; warns where they share fewer words than the fit has unknowns per output.
    """
    read = read_source(source)
    check_tokens_only(read)
    pairs = shared_words(source.backbone, backbone, words, skip)
    source_words = source.backbone.spec.embed(pairs[:, 0]).cpu()
    target_words = backbone.spec.embed(pairs[:, 1]).cpu()
    if len(pairs) < source_words.shape[1]:
        sentence = (
            f"{source.backbone.name} and {backbone.name} have {len(pairs)} words for a fit of width "
            f"{source_words.shape[1]}: it is not determined; lower skip (now {skip}) or raise words (now {words})"
        )
        warn_of([sentence])
    match recycler:
        case "v2v-lin":
            tokens = linear_map(source_words, target_words, read.tokens)
        case "v2v-nn":
            tokens = network_map(source_words, target_words, read.tokens, seed=seed)
        case "lin-comb":
            tokens = linear_combination(source_words, target_words, read.tokens)
        case _:
            raise ValueError(f"unknown recycler {recycler!r}: known are v2v-lin, v2v-nn and lin-comb")
    made = {"ported_from": source.backbone.name, "recycler": recycler, "words": len(pairs)}
    return untrained_prompt(tokens, backbone, task or source.task, made)


def linear_map(source_words: Tensor, target_words: Tensor, tokens: Tensor) -> Tensor:
    """P_t = P_s Y with Y = argmin ||E_s Y - E_t||^2 ("v2v-lin"). (n, s), (n, t), (P, s) -> (P, t), float32."""
    found = _least_squares(source_words, target_words)  # (n, s), (n, t) -> (s, t)
    return (tokens.double() @ found).float()


def linear_combination(source_words: Tensor, target_words: Tensor, tokens: Tensor) -> Tensor:
    """P_t = X^T E_t with X = argmin ||E_s^T X - P_s^T||^2 ("lin-comb"). (n, s), (n, t), (P, s) -> (P, t), float32.

    With more words than width there are many such X; it is the shortest one.
    """
    found = _least_squares(source_words.T, tokens.T)  # (s, n), (s, P) -> (n, P)
    return (found.T @ target_words.double()).float()


def network_map(source_words: Tensor, target_words: Tensor, tokens: Tensor, *, seed: int = 0) -> Tensor:
    """P_t = W2 relu(W1 P_s + b1) + b2, fitted from E_s to E_t ("v2v-nn"). (n, s), (n, t), (P, s) -> (P, t), float32.

    Hidden width 4 t, squared error, Adam at 3e-4, batches of 50, 25 epochs, as in the paper. Unlike there, both tables are
    fitted at unit scale: a table of standard deviation 0.02 and one of 10 then learn equally well at this rate.
    """
    generator = torch.Generator().manual_seed(seed)
    unit, scale = source_words.float().std(), target_words.float().std()
    source_words, target_words = source_words.float() / unit, target_words.float() / scale
    width, out = source_words.shape[1], target_words.shape[1]
    sizes = ((_WIDER * out, width), (_WIDER * out,), (out, _WIDER * out), (out,))
    parameters = []
    for size, inputs in zip(sizes, (width, width, _WIDER * out, _WIDER * out), strict=True):
        bound = 1 / math.sqrt(inputs)  # as torch's linear layers start
        drawn = (torch.rand(size, generator=generator) * 2 - 1) * bound
        parameters.append(drawn.requires_grad_())

    def mapped(x: Tensor) -> Tensor:
        hidden = functional.linear(x, parameters[0], parameters[1]).relu()
        return functional.linear(hidden, parameters[2], parameters[3])

    optimizer = torch.optim.Adam(parameters, lr=_RATE)
    with torch.enable_grad():
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(source_words), generator=generator).split(_BATCH):
                optimizer.zero_grad()
                functional.mse_loss(mapped(source_words[batch]), target_words[batch]).backward()
                optimizer.step()
    return mapped(tokens.float() / unit).detach() * scale


def shared_words(source: Backbone, target: Backbone, words: int = WORDS, skip: int = SKIPPED) -> Tensor:
    """Ids of whole words that both vocabularies have as one piece, (n, 2), in the source's order.

    Pieces are compared by the text that they stand for behind another word, not by how a tokenizer writes them
    ("Ġdog", "▁dog" and "dog" are one word, "##dog" is none). n is `words`, or as many as there are after `skip`.
    Raises ValueError if that is none.
    """
    ours, theirs = _words_of(source), _words_of(target)
    both = [(i, theirs[word]) for word, i in ours.items() if word in theirs]
    if not both[skip : skip + words]:
        raise ValueError(
            f"the vocabularies of {source.name} and {target.name} share {len(both)} whole words, and "
            f"words={words}, skip={skip} leave none of them: lower skip"
            + ("" if both else "; sharing none, they cannot be aligned")
        )
    return torch.tensor(both[skip : skip + words])


def _words_of(backbone: Backbone) -> dict[str, int]:
    """Word -> the id of its piece, in order of id."""
    tokenizer: PreTrainedTokenizerBase = backbone.tokenizer
    anchor = backbone.spec.tokenize("a")[-1:]
    ids = [
        i for i in range(min(backbone.spec.vocabulary, len(tokenizer))) if i not in backbone.spec.special_ids
    ]

    def text(pieces: list[list[int]]) -> list[str]:
        found: list[str] = tokenizer.batch_decode(pieces, clean_up_tokenization_spaces=False)
        return found

    (alone,) = text([anchor])
    words: dict[str, int] = {}
    for i, decoded in zip(ids, text([[*anchor, i] for i in ids]), strict=True):
        # Behind the anchor a whole word begins with a space, whatever the tokenizer does at the start of a text.
        word = decoded.removeprefix(f"{alone} ")
        if word != decoded and word.isalpha():
            words.setdefault(word, i)
    return words


def _least_squares(matrix: Tensor, right: Tensor) -> Tensor:
    # By singular values: a table may have equal rows, and lin-comb has more unknowns than equations.
    return torch.linalg.lstsq(matrix.double(), right.double(), driver="gelsd").solution
