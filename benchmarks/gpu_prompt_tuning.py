"""Prompt tuning of a model with 1.2 billion random weights on a GPU, against PEFT's prompt tuning and LoRA.

Speed and memory do not depend on what the weights are. Letters: B rows, P virtual tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig

from benchmarks import harness, sides
from benchmarks.harness import Row
from benchmarks.sides import Outcome

NAME = "gpu_prompt_tuning"
LENGTHS = (20, 100, 200)
LORA_RANK = 32
LORA_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Size:
    """How much work."""

    model: dict[str, Any]
    batches: tuple[int, ...]
    shortest: int
    longest: int
    labelled: int
    repetitions: int


def sizes(*, quick: bool, tiny: bool) -> Size:
    if tiny:
        return Size(sides.TINY, (2,), 8, 16, 4, 1)
    return Size(LLAMA_1B, (16,) if quick else (16, 64), 64, 256, 16, 3 if quick else 10)


def measure(size: Size, device: torch.device, only: str) -> list[Row]:
    """For each batch and prompt length: ours against PEFT's prompt tuning, and against LoRA (no prompt)."""
    plain = sides.random_llama(size.model, torch.bfloat16, device)
    changed = sides.random_llama(size.model, torch.bfloat16, device).model  # LoRA puts its layers into it
    config = LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, target_modules=LORA_TARGETS)
    lora = sides.peft_model(changed, config)
    adapters = [p for p in lora.parameters() if p.requires_grad]
    made: list[Row] = []
    for count in size.batches:
        rows = sides.random_rows(count, size.shortest, size.longest, size.model["vocab_size"])
        batch = sides.padded(rows, size.labelled, device)
        for length in LENGTHS:
            case = f"B={count} P={length}"
            if only not in case:
                continue
            prompt = sides.random_prompt(plain, length)
            tuned = sides.peft_prompt_tuning(plain.model, prompt)
            steps = {
                "ours": sides.our_step(plain, prompt, rows, size.labelled),
                "prompt tuning": sides.peft_step(tuned, [sides.prompt_weight(tuned)], batch),
                "LoRA": sides.peft_step(lora, adapters, batch),
            }
            made += _rows(case, steps, size.repetitions, sum(map(len, rows)), device)
    return made


def _rows(
    case: str, steps: dict[str, Callable[[], Outcome]], repetitions: int, tokens: int, device: torch.device
) -> list[Row]:
    losses: dict[str, float] = {}
    seconds = harness.interleaved(
        steps, repetitions, lambda warm: losses.update({name: outcome.loss for name, outcome in warm.items()})
    )
    peak = {}
    if device.type == "cuda":
        peak = {name: harness.peak_extra_bytes(step, device) for name, step in steps.items()}
    made = []
    for peer in ("prompt tuning", "LoRA"):
        named = f"{case} against {peer}"
        extra = {"losses": {"ours": losses.get("ours"), "peer": losses.get(peer)}}
        made.append(harness.row_of_rates(named, tokens, "tokens/s", seconds["ours"], seconds[peer], **extra))
        if peak:
            made.append(harness.row_of_memory(f"{named}, memory", peak["ours"], peak[peer]))
    return made


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(NAME, "Prompt tuning of a 1.2B model on a GPU, against PEFT.")
    parser.add_argument("--device", default="cuda", help="cpu: together with --tiny, to try it out")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(f"{NAME} needs a GPU and torch sees none. To try it out without one: --device cpu --tiny")
        return 0
    if device.type == "cpu" and not options.tiny:
        parser.error("1.2 billion weights take hours on a CPU: give --tiny too, or run it on a GPU")
    rows = measure(sizes(quick=options.quick, tiny=options.tiny), device, options.only)
    harness.report(NAME, rows, argv, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
