"""The same use of a tuned prompt in softprompt and in PEFT.

Letters: B rows, P virtual tokens, T tokens, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from peft import PeftModel
from torch import Tensor

from benchmarks.sides import Ids, encoded, padded
from softprompt.backbones.base import Backbone
from softprompt.outputs import EncodedRow, PromptOutput


def our_scores(
    backbone: Backbone, prompt: Tensor, rows: Sequence[Ids], labelled: int, batch: int
) -> Callable[[], Tensor]:
    """Log-likelihoods of the labelled ends of all rows; compiling the prompt and packing are part of it."""
    ready = encoded(rows, len(prompt), labelled)

    @torch.no_grad()
    def scores() -> Tensor:
        compiled = backbone.compile(ready, PromptOutput(tokens=prompt[None]))
        starts = range(0, len(ready), batch)
        return torch.cat(
            [backbone.score(ready[i : i + batch], compiled).log_likelihoods()[0] for i in starts]
        )

    return scores


def peft_scores(
    tuned: PeftModel, length: int, rows: Sequence[Ids], labelled: int, batch: int
) -> Callable[[], Tensor]:
    """The same of PEFT; the padded batches stand ready, and the softmax is taken only where labels stand."""
    batches = [padded(rows[i : i + batch], labelled, tuned.device) for i in range(0, len(rows), batch)]

    def score(inputs: dict[str, Tensor]) -> Tensor:
        logits = tuned(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
        row, column = (inputs["labels"] != -100).nonzero(as_tuple=True)
        chosen = logits[row, length + column - 1].float().log_softmax(-1)  # (B, P+T, V) -> (B*labelled, V)
        words = chosen.gather(1, inputs["labels"][row, column, None])[:, 0]
        return words.view(-1, labelled).sum(1)  # (B*labelled,) -> (B,)

    @torch.no_grad()
    def scores() -> Tensor:
        return torch.cat([score(inputs) for inputs in batches])

    return scores


def our_first_token(backbone: Backbone, prompt: Tensor, ids: Ids) -> Callable[[], Tensor]:
    """The first token after a row; the prompt is compiled, as when it serves."""
    row = EncodedRow((*range(-1, -1 - len(prompt), -1), *ids))
    compiled = backbone.compile([row], PromptOutput(tokens=prompt[None]))
    return lambda: torch.tensor(backbone.generate([row], compiled, max_new_tokens=1, do_sample=False))


def peft_first_token(tuned: PeftModel, ids: Ids, pad: int) -> Callable[[], Tensor]:
    """The same of PEFT, which runs the prompt every time."""
    row = torch.tensor([ids], device=tuned.device)
    inputs = {"input_ids": row, "attention_mask": torch.ones_like(row), "pad_token_id": pad}

    def first_token() -> Tensor:
        with warnings.catch_warnings():
            # peft 0.21.2 is given position ids by transformers 5 and drops them; the token is right.
            warnings.filterwarnings("ignore", message="Position ids are not supported", category=UserWarning)
            output = tuned.generate(**inputs, max_new_tokens=1, do_sample=False)
        return output[:, len(ids) :]

    return first_token
