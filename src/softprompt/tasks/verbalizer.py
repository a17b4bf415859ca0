"""A verbalizer holds label words as tokens and computes class scores from their likelihoods. W words, K labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from softprompt.backbones.vocabulary import check_ids
from softprompt.outputs import TargetLogits
from softprompt.tasks.tokenizing import tokenize


@dataclass(frozen=True)
class Verbalizer:
    """Label words as tokens.

    labels            the K labels
    words             the token ids of all W words of all labels, in order: the targets of every row
    owner             for each word the index of its label
    length_normalised whether a word's log-likelihood is divided by its length in tokens
    """

    labels: tuple[str, ...]
    words: tuple[tuple[int, ...], ...]
    owner: tuple[int, ...]
    length_normalised: bool = False

    def first_word(self, label: str) -> int:
        """Return the index in `words` of the first word of a label."""
        return self.owner.index(self.labels.index(label))

    def class_scores(self, logits: TargetLogits) -> Tensor:
        """Return the log of the summed likelihoods of each label's words, (B, K), differentiable; see
        `length_normalised`.

        Raises ValueError if a row does not have exactly these words as its targets.
        """
        if any(count != len(self.words) for count in logits.counts):
            raise ValueError(
                f"rows have {set(logits.counts)} targets, the labels have {len(self.words)} words"
            )
        sums, lengths = logits.log_likelihoods()
        scores = sums / lengths if self.length_normalised else sums
        scores = scores.view(len(logits.counts), len(self.words))  # (B * W,) -> (B, W)
        counts = [self.owner.count(k) for k in range(len(self.labels))]  # the words of a label stand together
        by_label = [own.logsumexp(dim=1) for own in scores.split(counts, dim=1)]
        return torch.stack(by_label, dim=1)  # (B, K)


def bind_verbalizer(
    label_words: Mapping[str, Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length_normalised: bool = False,
    masked: bool = False,
    calibrated: bool = False,
    rows: int | None = None,
) -> Verbalizer:
    """Tokenise label words exactly as they are written, with a leading space if they have one.

    Arguments:
        label_words: label -> its words
        tokenizer: the tokenizer of the backbone
        length_normalised: whether a word's log-likelihood is divided by its length in tokens
        masked: whether the words stand where masks are. Each token is then predicted from the text alone, not from the
            tokens before it, so that a word may be likelier than another word that it begins with
        calibrated: whether predictions are calibrated, which also lifts a word above another that it begins with
        rows: of the embedding table, where the tokenizer has tokens beyond it; None: it has none

    Raises:
        ValueError: for a word without tokens, with unknown ones or with ones beyond the table; for two words of the same
            tokens (some tokenizers drop a leading space or fold case); and, unless length-normalised, masked or calibrated,
            for a label whose only word begins with the tokens of another label's word, because it could never score higher
    """
    labels = tuple(label_words)
    words: dict[tuple[int, ...], tuple[int, str]] = {}
    for k, label in enumerate(labels):
        for word in label_words[label]:
            ids = tuple(tokenize(tokenizer, word))
            if not ids or tokenizer.unk_token_id in ids:
                raise ValueError(
                    f"label word {word!r} of {label!r} has no tokens or unknown tokens {ids} in this"
                    " tokenizer; take another word"
                )
            if rows is not None:
                check_ids(ids, tokenizer, rows)
            if ids in words:
                other, other_word = words[ids]
                raise ValueError(
                    f"label words {other_word!r} of {labels[other]!r} and {word!r} of {label!r} are the"
                    f" same tokens {ids} for this tokenizer; take different words"
                )
            words[ids] = (k, word)
    if not length_normalised and not masked and not calibrated:
        _check_reachable(words, labels)
    return Verbalizer(labels, tuple(words), tuple(k for k, _ in words.values()), length_normalised)


def _check_reachable(words: Mapping[tuple[int, ...], tuple[int, str]], labels: Sequence[str]) -> None:
    for b, label in enumerate(labels):
        own = [ids for ids, (k, _) in words.items() if k == b]
        for start, (a, word) in words.items():
            if a != b and len(own) == 1 and own[0][: len(start)] == start:
                raise ValueError(
                    f"the word of label {label!r} begins with the tokens of {word!r} of {labels[a]!r}, so"
                    " it is never the likelier one; end all words with the same mark, for example a line"
                    " break, or set length_normalised=True"
                )


def calibrate(scores: Tensor, content_free: Tensor) -> Tensor:
    """Return calibrated log-probabilities, (B, K): contextual calibration of Zhao et al. 2021, "Calibrate Before Use".

    It is their W = diag(p_cf)^-1 with b = 0: p'(c | x) = p(c | x) / p_cf(c), renormalised over the labels, where p is the
    softmax of the class scores and p_cf is the mean of p(c | input) over content-free inputs.
    scores (B, K), content_free (F, K).
    """
    # In logs, where a vanishing p_cf does not divide by zero. The mean's 1 / F falls out in the end.
    log_content_free = content_free.log_softmax(dim=-1).logsumexp(dim=0)  # (F, K) -> (K,)
    return (scores - log_content_free).log_softmax(dim=-1)
