"""Key-value prefixes on SmolLM2-135M, and virtual tokens on MiniLM, on the CPU, against PEFT: training steps, memory.

P is the length of the prefix or prompt.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import torch
from peft import PeftModel, PrefixTuningConfig, PromptTuningConfig
from tokenizers import Tokenizer, models, processors
from torch import Tensor
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks import harness, sides
from benchmarks.harness import Row, Setting
from benchmarks.sides import Ids, Outcome
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts.prefix import FreeRows, KeyValuePrefix, MLPRows, row_width

NAME = "language_methods"
DECODER, ENCODER = "smollm2-135m-instruct", "minilm-l6"
CPU = torch.device("cpu")
LABELLED = 4  # tokens at the end of each row of the decoder
BATCH, ENCODER_BATCH, BUCKET = 16, 64, 16
HIDDEN = 512  # width of Prefix-Tuning's MLP
LENGTHS = (20, 100)

Who = Literal["ours", "peer"]
Steps = Mapping[Who, Callable[[], Outcome]]


# --- key-value prefixes ------------------------------------------------------------------------------------


@cache
def decoder(tiny: bool) -> Any:
    """The causal model both sides share, float32."""
    if tiny:
        return sides.random_llama(sides.TINY, torch.float32, CPU)
    return load_backbone(DECODER, dtype=torch.float32, device=CPU)


def prefix_steps(setting: Setting, length: int, *, projection: bool) -> Steps:
    """Training steps of a prefix given by an MLP (Prefix-Tuning), or trained itself (P-tuning v2), in both libraries.

    Both sides get the same numbers; the gradient that is compared is that of P' or of the prefix.
    """
    backbone = decoder(setting.tiny)
    rows = sides.random_rows(BATCH, 32, 64, backbone.spec.vocabulary)
    config = backbone.model.config
    tuned = sides.peft_model(
        backbone.model,
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=length,
            prefix_projection=projection,
            encoder_hidden_size=HIDDEN,
            token_dim=config.num_key_value_heads * config.head_dim,
            num_attention_heads=config.num_key_value_heads,
        ),
    )
    encoder: Any = tuned.prompt_encoder["default"]
    with torch.no_grad():  # PEFT starts with N(0, 1); a tenth of it keeps the softmax away from its ends
        encoder.embedding.weight.mul_(0.1)
    trained = [p for p in encoder.parameters() if p.requires_grad]
    peer = sides.peft_step(tuned, trained, sides.padded(rows, LABELLED, CPU))

    start = encoder.embedding.weight.detach().clone()
    if projection:
        width = row_width(backbone.spec)
        inner = MLPRows(start, HIDDEN, None, torch.ones(width), torch.Generator())
        inner.first.load_state_dict(encoder.transform[0].state_dict())
        inner.second.load_state_dict(encoder.transform[2].state_dict())
        ours = our_prefix_step(backbone, KeyValuePrefix(inner, backbone.spec.key_values), inner.inputs, rows)
    else:
        free = FreeRows(start)
        ours = our_prefix_step(backbone, KeyValuePrefix(free, backbone.spec.key_values), free.weight, rows)
    return {"ours": ours, "peer": peer}


def our_prefix_step(
    backbone: Backbone, module: KeyValuePrefix, compared: Tensor, rows: Sequence[Ids]
) -> Callable[[], Outcome]:
    """Forward and backward of softprompt; packing the rows is part of it."""
    batch = sides.encoded(rows, 0, LABELLED)

    def step() -> Outcome:
        module.zero_grad()
        loss = -backbone.score(batch, module()).token_log_likelihoods().mean()
        loss.backward()
        assert compared.grad is not None
        return Outcome(loss.item(), compared.grad)

    return step


# --- encoders ----------------------------------------------------------------------------------------------


@cache
def encoder(tiny: bool) -> Backbone:
    """The text encoder both sides share, float32."""
    if not tiny:
        return load_backbone(ENCODER, dtype=torch.float32, device=CPU)
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[MASK]": 3}, unk_token="[PAD]"))
    words.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"
    )
    config = BertConfig(
        vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False)
    return load_backbone(model, tokenizer=tokenizer)


def encoder_steps(setting: Setting, length: int) -> Steps:
    """Training steps of virtual tokens in front of everything; the loss is the mean of the class tokens' states.

    Rows are sorted by length and run in batches of 16, PEFT's padded.
    """
    backbone = encoder(setting.tiny)
    longest = 24 if setting.tiny else 128
    rows = sides.random_rows(ENCODER_BATCH, longest // 8, longest, backbone.spec.vocabulary)
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randn(length, backbone.spec.width, generator=generator) * backbone.spec.embedding_std
    # A direction to read the states along: their plain mean is what the last norm makes constant.
    reader = torch.randn(backbone.spec.width, generator=generator)

    ordered = sorted(rows, key=len)
    buckets = [ordered[i : i + BUCKET] for i in range(0, ENCODER_BATCH, BUCKET)]
    virtual = tuple(range(-1, -1 - length, -1))
    encoded = [[EncodedRow(virtual + ids, read=(length,)) for ids in bucket] for bucket in buckets]

    def ours() -> Outcome:
        tokens = prompt[None].clone().requires_grad_()  # (P, d) -> (1, P, d)
        total = 0.0
        for batch in encoded:
            loss = (backbone.states(batch, PromptOutput(tokens=tokens)) @ reader).sum() / ENCODER_BATCH
            loss.backward()
            total += loss.item()
        assert tokens.grad is not None
        return Outcome(total, tokens.grad[0])

    tuned = sides.peft_model(
        backbone.model, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=length)
    )
    weight = sides.prompt_weight(tuned)
    with torch.no_grad():
        weight.copy_(prompt)
    padded = [sides.padded(bucket, 1, CPU) for bucket in buckets]

    def peer() -> Outcome:
        tuned.zero_grad()
        total = 0.0
        for bucket in padded:
            loss = _class_tokens(tuned, bucket, length, reader) / ENCODER_BATCH
            loss.backward()
            total += loss.item()
        assert weight.grad is not None
        return Outcome(total, weight.grad)

    return {"ours": ours, "peer": peer}


def _class_tokens(tuned: PeftModel, bucket: Mapping[str, Tensor], length: int, reader: Tensor) -> Tensor:
    states: Tensor = tuned(
        input_ids=bucket["input_ids"], attention_mask=bucket["attention_mask"]
    ).last_hidden_state
    return (states[:, length] @ reader).sum()  # (B, P + T, d) -> ()


# --- cases -------------------------------------------------------------------------------------------------


def make(setting: Setting, method: str, length: int) -> Steps:
    """Both sides of a case."""
    if method == "encoder prompt tuning":
        return encoder_steps(setting, length)
    return prefix_steps(setting, length, projection=method == "prefix-tuning")


def time_of(setting: Setting, method: str, length: int) -> Row:
    """Seconds per step of both sides, and how far their results are apart."""
    case = f"{method} P={length} float32"
    return sides.timed_pair(case, make(setting, method, length), setting.repetitions, {})


def memory_of(setting: Setting, method: str, length: int) -> Row:
    """Peak extra memory of one step, each side in a process of its own."""
    ours, peer = (
        harness.in_fresh_process(step_memory, setting, method, length, who) for who in ("ours", "peer")
    )
    return harness.row_of_memory(f"memory {method} P={length} float32", ours, peer)


def step_memory(setting: Setting, method: str, length: int, who: Who) -> int | None:
    """Bytes; a step with the shortest prompt comes first, so that all weights and code are resident."""
    make(setting, method, 1)[who]()
    return harness.peak_extra_bytes(make(setting, method, length)[who], CPU)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = harness.parser(NAME, "Prefixes and encoder prompts on the CPU, against PEFT.").parse_args(argv)
    setting = Setting(options.quick, options.tiny, options.only)
    start = time.perf_counter()
    rows: list[Row] = []
    methods = ("prefix-tuning", "p-tuning v2", "encoder prompt tuning")
    for method in methods:
        rows += [
            time_of(setting, method, length)
            for length in LENGTHS
            if setting.wants(f"{method} P={length} float32")
        ]
    if harness.measures_memory(CPU):
        for method in methods:
            if setting.wants(f"memory {method} P={LENGTHS[-1]} float32"):
                rows.append(memory_of(setting, method, LENGTHS[-1]))
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
