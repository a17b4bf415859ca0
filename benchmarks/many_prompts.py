"""k runs that differ in their seed, trained together in one batch on one frozen backbone, against one after another.

Random models of the shape of SmolLM2-135M, where words answer, and of MiniLM-L6, where a head does. Letters: B rows of a
run's batch, P virtual tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import BertConfig, BertModel

from benchmarks import harness, sides
from benchmarks.harness import Row
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.backbones.precision import resolve_dtype
from softprompt.fitting.many import Together
from softprompt.model import HeadModel, PromptedModel, WordModel
from softprompt.outputs import EncodedRow
from softprompt.prompts.base import linear_head
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.training.loop import train, train_together
from softprompt.training.randomness import Streams
from softprompt.training.recipe import Recipe
from softprompt.training.run import Run

NAME = "many_prompts"
SMOLLM2_135M: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 2048,
}  # fmt: skip
MINILM_L6: dict[str, Any] = {
    "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536,
    "vocab_size": 30522,
}  # fmt: skip
TINY_BERT: dict[str, Any] = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 512,
}  # fmt: skip
COUNTS = (1, 2, 4, 8)
BATCHES = (4, 16)
LENGTH = 20  # P
LABELLED = 4  # tokens at the end of each row, where words answer
CLASSES = 4  # of the head

Kind = Literal["causal", "encoder"]


@dataclass(frozen=True)
class Setting(harness.DeviceSetting):
    """With the optimizer steps that are timed."""

    @property
    def steps(self) -> int:
        return 2 if self.tiny else 3 if self.quick else 5


class WordLoss:
    """-log p of a row's labelled end, nats per token."""

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        sums, lengths = answers.log_likelihoods()
        return -sums / lengths


class HeadLoss:
    """Cross-entropy of a row's class."""

    def loss(self, answers: Any, rows: Sequence[EncodedRow]) -> Tensor:
        right = torch.tensor([int(row.answer[0]) for row in rows], device=answers.device)
        return functional.cross_entropy(answers, right, reduction="none")


@cache
def backbone_of(kind: Kind, tiny: bool, dtype: torch.dtype, device: torch.device) -> Backbone:
    """A frozen random model; equal arguments give the same."""
    if kind == "causal":
        return sides.random_llama(sides.TINY if tiny else SMOLLM2_135M, dtype, device)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = BertModel(BertConfig(**(TINY_BERT if tiny else MINILM_L6)), add_pooling_layer=False)
    return load_backbone(model.to(device, dtype), tokenizer=sides.word_tokenizer())


class Case:
    """k runs of one kind. `together` and `alone` train them from the same start: the prompts they end with, (k, P, d)."""

    def __init__(self, setting: Setting, kind: Kind, count: int, batch: int) -> None:
        self.setting, self.count, self.batch = setting, count, batch
        self.backbone = backbone_of(kind, setting.tiny, setting.dtype, setting.device)
        self.has_head = kind == "encoder"
        self.loss = HeadLoss() if self.has_head else WordLoss()
        longest = 24 if setting.tiny else 64
        ids = sides.random_rows(4 * batch, longest // 2, longest, self.backbone.spec.vocabulary)
        self.rows = sides.encoded(ids, LENGTH, LABELLED)
        if self.has_head:
            virtual = self.rows[0].context[:LENGTH]
            self.rows = [
                EncodedRow(virtual + row, read=(LENGTH,), answer=(float(n % CLASSES),))
                for n, row in enumerate(ids)
            ]

    def together(self) -> Tensor:
        modules, models, runs = self._fresh(numbered=True)
        streams = Streams(self.setting.device)
        train_together(Together(models, streams), self.loss, runs, streams)
        return torch.stack([module.tokens.detach() for module in modules])

    def alone(self) -> Tensor:
        modules, models, runs = self._fresh(numbered=False)
        for model, run in zip(models, runs, strict=True):
            train(HeadModel(model) if self.has_head else WordModel(model), self.loss, run)
        return torch.stack([module.tokens.detach() for module in modules])

    def _fresh(self, *, numbered: bool) -> tuple[list[VirtualTokens], list[PromptedModel], list[Run]]:
        modules, models, runs = [], [], []
        device, spec = self.setting.device, self.backbone.spec
        for number in range(self.count):
            generator = torch.Generator().manual_seed(number)
            start = torch.randn(LENGTH, spec.width, generator=generator) * spec.embedding_std
            module = VirtualTokens(start).to(device)
            head: nn.Module | None = None
            if self.has_head:
                head = linear_head(spec.width, CLASSES, generator).to(device)
            parameters = {"prompt": module.tokens}
            if head is not None:
                parameters |= {f"head.{name}": parameter for name, parameter in head.named_parameters()}
            recipe = Recipe(steps=self.setting.steps, batch_size=self.batch, warmup=0, seed=number)
            groups = [{"params": [*parameters.values()], "lr": 0.1 * spec.embedding_std}]
            modules.append(module)
            models.append(PromptedModel(self.backbone, [module], [head]))
            runs.append(Run(parameters, groups, self.rows, recipe, number=number if numbered else None))
        return modules, models, runs


def time_of(setting: Setting, kind: Kind, count: int, batch: int) -> Row:
    """Optimizer steps of single runs per second on both sides, and how far apart the prompts are at the end."""
    case = Case(setting, kind, count, batch)
    difference: dict[str, float] = {}
    name = case_name(kind, count, batch)

    def compare(prompts: Any) -> None:
        if len(prompts) == 2:
            difference["prompt"] = sides.relative_difference(prompts["together"], prompts["alone"])
            print(f"{name}: {difference}", flush=True)

    seconds = harness.interleaved(
        {"together": case.together, "alone": case.alone}, setting.repetitions, compare
    )
    return harness.row_of_rates(
        name,
        count * setting.steps,
        "steps/s",
        seconds["together"],
        seconds["alone"],
        runs=count,
        batch=batch,
        relative_difference=difference,
        **setting.facts,
    )


def case_name(kind: Kind, count: int, batch: int) -> str:
    return f"{kind} k={count} B={batch}"


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(
        NAME, "k runs trained together on one frozen backbone, against one after another."
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or auto")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    setting = Setting(options.quick, options.tiny, options.only, device, resolve_dtype(options.dtype, device))
    start = time.perf_counter()
    kinds: tuple[Kind, ...] = ("causal", "encoder")
    rows = [
        time_of(setting, kind, count, batch)
        for kind in kinds
        for batch in (BATCHES[:1] if setting.quick or setting.tiny else BATCHES)
        for count in COUNTS
        if setting.wants(case_name(kind, count, batch))
    ]
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
