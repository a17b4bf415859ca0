"""The same training step in softprompt and in PEFT. Letters: B rows, P virtual tokens, T tokens, d width."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerFast

from benchmarks import harness
from benchmarks.harness import Row, Side
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.outputs import EncodedRow, PromptOutput

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Outcome:
    """What a training step computed: its loss, and the gradient of what is trained."""

    loss: float
    gradient: Tensor


TINY: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
    "max_position_embeddings": 512,
}


def random_llama(sizes: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Backbone:
    """A Llama-shaped model with random weights and a tied head; equal sizes give equal weights."""
    config = LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    with torch.random.fork_rng(), device:
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return load_backbone(model.to(device), tokenizer=word_tokenizer())


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that knows no words: rows are made of ids."""
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<s>": 1, "</s>": 2}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )


def random_rows(count: int, shortest: int, longest: int, vocabulary: int, seed: int = 0) -> list[Ids]:
    """Rows of random ids, `shortest` to `longest` tokens long."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(shortest, longest + 1, (count,), generator=generator).tolist()
    return [tuple(torch.randint(3, vocabulary, (n,), generator=generator).tolist()) for n in lengths]


def random_prompt(backbone: Backbone, length: int) -> Tensor:
    """A prompt of the embedding table's scale, (P, d) float32."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randn(length, backbone.spec.width, generator=generator) * backbone.spec.embedding_std
    return prompt.to(backbone.device)


# --- ours --------------------------------------------------------------------------------------------------


def encoded(rows: Sequence[Ids], length: int, labelled: int) -> list[EncodedRow]:
    """Rows behind P virtual tokens, with their last tokens as the target."""
    virtual = tuple(range(-1, -1 - length, -1))
    return [EncodedRow(virtual + ids[:-labelled], (ids[-labelled:],)) for ids in rows]


def our_step(backbone: Backbone, prompt: Tensor, rows: Sequence[Ids], labelled: int) -> Callable[[], Outcome]:
    """Forward and backward of softprompt; packing the rows is part of it."""
    batch = encoded(rows, len(prompt), labelled)

    def step() -> Outcome:
        tokens = prompt[None].clone().requires_grad_()  # (P, d) -> (1, P, d)
        loss = -backbone.score(batch, PromptOutput(tokens=tokens)).token_log_likelihoods().mean()
        loss.backward()
        assert tokens.grad is not None
        return Outcome(loss.item(), tokens.grad[0])

    return step


# --- PEFT --------------------------------------------------------------------------------------------------


def padded(rows: Sequence[Ids], labelled: int, device: torch.device) -> dict[str, Tensor]:
    """Rows padded on the right to the longest; labels (B, T) are -100 but for the labelled ends."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
        labels[i, len(row) - labelled : len(row)] = torch.tensor(row[-labelled:])
    return {"input_ids": ids.to(device), "attention_mask": mask.to(device), "labels": labels.to(device)}


def peft_model(model: PreTrainedModel, config: Any) -> PeftModel:
    """PEFT around a model. With prompt tuning the model stays as it is, and may be shared with our side."""
    with warnings.catch_warnings():
        # peft 0.21.2 reads an attribute that transformers 5 has deprecated.
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def peft_prompt_tuning(model: PreTrainedModel, prompt: Tensor) -> PeftModel:
    """PEFT's prompt tuning with this prompt, (P, d)."""
    tuned = peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=len(prompt)))
    with torch.no_grad():
        prompt_weight(tuned).copy_(prompt)
    return tuned


def prompt_weight(tuned: PeftModel) -> Tensor:
    """The virtual tokens that PEFT trains, (P, d)."""
    encoder: Any = tuned.prompt_encoder["default"]
    return encoder.embedding.weight


def peft_step(tuned: PeftModel, trained: Sequence[Tensor], batch: dict[str, Tensor]) -> Callable[[], Outcome]:
    """Forward and backward of PEFT on a padded batch; the gradient is the first trained tensor's."""

    def step() -> Outcome:
        for tensor in trained:
            tensor.grad = None
        loss = tuned(**batch).loss
        loss.backward()
        assert trained[0].grad is not None
        return Outcome(loss.item(), trained[0].grad)

    return step


def timed_pair(
    case: str,
    steps: Mapping[Side, Callable[[], Outcome]],
    repetitions: int,
    facts: Mapping[str, Any],
    warm_ups: Mapping[Side, Callable[[], Outcome]] | None = None,
) -> Row:
    """Seconds of two sides' steps, the first ours, and how far apart what their warm-ups computed is."""
    first, second = list(steps)
    difference: dict[str, float] = {}

    def compare(warm: Mapping[Side, Outcome]) -> None:
        if len(warm) == 2:  # else one ran out of memory
            ours, peer = warm[first], warm[second]
            difference["loss"] = abs(ours.loss - peer.loss) / abs(peer.loss)
            difference["gradient"] = relative_difference(ours.gradient, peer.gradient)
            print(f"{case}, relative difference: {difference}", flush=True)

    seconds = harness.interleaved(steps, repetitions, compare, warm_ups)
    return harness.row_of_times(
        case, seconds[first], seconds[second], relative_difference=difference, **facts
    )


def relative_difference(ours: Tensor, peer: Tensor) -> float:
    """Norm of the difference over the norm of the peer's."""
    return ((ours.double() - peer.double()).norm() / peer.double().norm()).item()
