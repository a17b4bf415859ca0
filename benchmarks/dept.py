"""DePT on the CPU: a step against the dense form of the released code, and against Prompt Tuning of as many numbers.

m is DePT's number of virtual tokens, s = 256 its positions; the budget is Prompt Tuning with 100 virtual tokens.
Letters: B rows, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from benchmarks import harness, sides
from benchmarks.harness import Row
from benchmarks.sides import Ids, Outcome
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.outputs import EncodedRow
from softprompt.prompts import PromptModule
from softprompt.prompts.dept import ShortPromptWithOffset, dept_sizes
from softprompt.prompts.prompt_tuning import VirtualTokens

NAME = "dept"
CPU = torch.device("cpu")
POSITIONS = 256
BUDGET = 100
LABELLED = 2  # tokens at the end of each row
BATCH = 16
LENGTHS = (20, 40, 60, 80)
DENSE_LENGTH = 60  # the paper's most frequent, with rank 30 at a width of 768

Shape = Literal["t5", "causal", "t5 small", "causal small", "t5 large", "causal large"]
Who = Literal["ours", "dense", "prompt tuning"]
FULL: tuple[Shape, ...] = ("t5", "causal")
SMALL: tuple[Shape, ...] = ("t5 small", "causal small")
LARGE: tuple[Shape, ...] = ("t5 large", "causal large")

# About T5-base, T5-small and T5-large; the causal ones are Llamas of those widths and depths.
T5: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 768, "d_ff": 3072, "d_kv": 64, "num_layers": 12, "num_heads": 12},
    "t5 small": {"d_model": 512, "d_ff": 2048, "d_kv": 64, "num_layers": 6, "num_heads": 8},
    "t5 large": {"d_model": 1024, "d_ff": 4096, "d_kv": 64, "num_layers": 24, "num_heads": 16},
    "tiny": {"d_model": 64, "d_ff": 96, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": 512},
}
LLAMA: dict[str, dict[str, Any]] = {
    "causal": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
    "causal small": {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 6},
    "causal large": {"hidden_size": 1024, "intermediate_size": 2752, "num_hidden_layers": 24},
}
HEADS = {"causal": 12, "causal small": 8, "causal large": 16}


@dataclass(frozen=True)
class Setting(harness.Setting):
    """With the shapes, prompt lengths and rows of this benchmark."""

    def lengths(self, shape: Shape) -> tuple[int, ...]:
        """m; of the large shapes one alone."""
        return (DENSE_LENGTH,) if shape in LARGE else (20, 60) if self.quick or self.tiny else LENGTHS

    @property
    def shapes(self) -> tuple[Shape, ...]:
        return FULL if self.quick or self.tiny else FULL + SMALL + LARGE

    @property
    def dense_shapes(self) -> tuple[Shape, ...]:
        return FULL if self.quick or self.tiny else FULL + SMALL

    def backbone(self, shape: Shape) -> Backbone:
        return backbone(shape, self.tiny)

    def rows(self, shape: Shape) -> list[Ids]:
        """Sentences of 10 to 40 tokens, and their labelled ends."""
        vocabulary = self.backbone(shape).spec.vocabulary
        return sides.random_rows(BATCH, 10 + LABELLED, 40 + LABELLED, vocabulary)


@cache
def backbone(shape: Shape, tiny: bool) -> Backbone:
    """Random weights in float32, the same in each process."""
    if shape.startswith("causal"):
        if tiny:
            return sides.random_llama(sides.TINY, torch.float32, CPU)
        heads = HEADS[shape]
        sizes = LLAMA[shape] | {"num_attention_heads": heads, "num_key_value_heads": heads}
        return sides.random_llama(
            sizes | {"vocab_size": 32_000, "max_position_embeddings": 1024}, torch.float32, CPU
        )
    config = T5Config(**T5["tiny" if tiny else shape], dropout_rate=0.0)
    config.decoder_start_token_id = 0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
    return load_backbone(model, tokenizer=sides.word_tokenizer())


# --- both sides --------------------------------------------------------------------------------------------


def dept_module(model: Backbone, length: int) -> ShortPromptWithOffset:
    """DePT with a budget of 100 tokens, B away from its start at zero."""
    width, std = model.spec.width, model.spec.embedding_std
    sizes = dept_sizes(BUDGET, width=width, positions=POSITIONS, length=length)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(length, width, generator=generator) * std
    offset_a = (torch.rand(POSITIONS, sizes.rank, generator=generator) * 2 - 1) / math.sqrt(sizes.rank)
    return ShortPromptWithOffset(
        tokens, offset_a, 0.1 * std * torch.randn(sizes.rank, width, generator=generator)
    )


def make_step(setting: Setting, shape: Shape, who: Who, length: int) -> Callable[[], Outcome]:
    """Forward and backward of one batch. length: m of DePT; Prompt Tuning has as many tokens as the budget."""
    model, rows = setting.backbone(shape), setting.rows(shape)
    if who == "prompt tuning":
        return our_step(model, VirtualTokens(sides.random_prompt(model, BUDGET)), rows)
    if who == "ours":
        return our_step(model, dept_module(model, length), rows)
    return dense_step(model, dept_module(model, length), rows)


def our_step(model: Backbone, module: PromptModule, rows: Sequence[Ids]) -> Callable[[], Outcome]:
    """softprompt's, the building of its batch taken in."""
    virtual = tuple(range(-1, -1 - module.length, -1))
    batch = [EncodedRow(virtual + ids[:-LABELLED], (ids[-LABELLED:],)) for ids in rows]

    def step() -> Outcome:
        loss = -model.score(batch, module()).token_log_likelihoods().mean()
        return outcome(loss, module)

    return step


def dense_step(
    backbone: Backbone, module: ShortPromptWithOffset, rows: Sequence[Ids]
) -> Callable[[], Outcome]:
    """As in the released code: every row padded to s positions, the offset made anew as a (B, s, d) tensor.

    Logits at labelled places only, so that what is compared is the text's side.
    """
    model = backbone.model
    decoder = not model.config.is_encoder_decoder
    given = [ids[: len(ids) - (1 if decoder else LABELLED)] for ids in rows]
    ids = torch.zeros(len(rows), POSITIONS, dtype=torch.long)
    mask = torch.zeros(len(rows), module.length + POSITIONS, dtype=torch.long)
    for b, row in enumerate(given):
        ids[b, : len(row)] = torch.tensor(row)
        mask[b, : module.length + len(row)] = 1
    labels = torch.tensor([row[-LABELLED:] for row in rows])  # (B, n)
    last = torch.tensor([len(row) for row in given]) + module.length - 1
    places = last[:, None] - LABELLED + 1 + torch.arange(LABELLED)  # (B, n)

    def step() -> Outcome:
        scale = 8 / math.sqrt(len(module.offset_b))
        offset = scale * torch.matmul(module.offset_a.expand(len(rows), -1, -1), module.offset_b)  # (B, s, d)
        text = model.get_input_embeddings()(ids) + offset
        embeds = torch.cat([module.tokens.expand(len(rows), -1, -1), text], dim=1)
        if decoder:
            logits = _decoder_logits(model, embeds, mask, places)
        else:
            logits = model(inputs_embeds=embeds, attention_mask=mask, labels=labels).logits
        return outcome(F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten()), module)

    return step


def _decoder_logits(model: PreTrainedModel, embeds: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """At the places (B, n) of each row: (B, n, V)."""
    states = model.base_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
    head = model.get_output_embeddings()
    assert head is not None
    logits: Tensor = head(states[torch.arange(len(places))[:, None], places])
    return logits


def outcome(loss: Tensor, module: PromptModule) -> Outcome:
    """After the backward pass: the loss, and the gradient of everything that is trained as one vector."""
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    return Outcome(loss.item(), torch.cat([gradient.flatten() for gradient in gradients]))


# --- cases -------------------------------------------------------------------------------------------------


def dense(setting: Setting) -> list[Row]:
    """Seconds and memory of a step, ours against the dense form, on equal losses and gradients."""
    made = []
    for shape in setting.dense_shapes:
        case = f"dense {shape}"
        pair: tuple[Who, Who] = ("ours", "dense")
        if setting.wants(case):
            steps = {who: make_step(setting, shape, who, DENSE_LENGTH) for who in pair}
            made.append(sides.timed_pair(case, steps, setting.repetitions, {"m": DENSE_LENGTH}))
        if shape in FULL:
            made += memory(setting, f"{case} memory", shape, pair, DENSE_LENGTH)
    return made


def against_prompt_tuning(setting: Setting) -> list[Row]:
    """Seconds and memory of a step over m, DePT against Prompt Tuning with the budget's 100 tokens."""
    made = []
    for shape in setting.shapes:
        wanted = {m: f"prompt tuning {shape} m={m}" for m in setting.lengths(shape)}
        timed = [m for m, case in wanted.items() if setting.wants(case)]
        steps: dict[int | str, Callable[[], Outcome]] = {
            m: make_step(setting, shape, "ours", m) for m in timed
        }
        if steps:
            steps["peer"] = make_step(setting, shape, "prompt tuning", BUDGET)
        seconds = harness.interleaved(steps, 3 if shape in LARGE else setting.repetitions)
        for m in timed:
            extra = {"m": m, "r": len(dept_module(setting.backbone(shape), m).offset_b)}
            made.append(harness.row_of_times(wanted[m], seconds[m], seconds["peer"], **extra))
        for m, case in wanted.items():
            made += memory(setting, f"{case} memory", shape, ("ours", "prompt tuning"), m)
    return made


def memory(setting: Setting, case: str, shape: Shape, pair: tuple[Who, Who], length: int) -> list[Row]:
    """Peak extra memory of one step, each side in a process of its own."""
    if not setting.wants(case) or not harness.measures_memory(CPU):
        return []
    found = [measured(setting, shape, who, BUDGET if who == "prompt tuning" else length) for who in pair]
    return [harness.row_of_memory(case, *found, m=length)]


@cache
def measured(setting: Setting, shape: Shape, who: Who, length: int) -> int | None:
    """Bytes; Prompt Tuning's are asked for with every m."""
    return harness.in_fresh_process(step_memory, setting, shape, who, length)


def step_memory(setting: Setting, shape: Shape, who: Who, length: int) -> int | None:
    """Bytes, of the second step: after the first all weights and code are resident."""
    step = make_step(setting, shape, who, length)
    step()
    return harness.peak_extra_bytes(step, CPU)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(NAME, "DePT on the CPU, against its dense form and against Prompt Tuning.")
    options: Any = parser.parse_args(argv)
    setting = Setting(options.quick, options.tiny, options.only)
    start = time.perf_counter()
    rows = dense(setting) + against_prompt_tuning(setting)
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
