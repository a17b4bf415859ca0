"""Prompt tuning of SmolLM2-135M on the CPU, against PEFT: training steps, memory, scoring, first token.

P is the number of virtual tokens.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks import harness, sides
from benchmarks.gemm import forward_products, gemm_rate
from benchmarks.harness import Row
from benchmarks.inference import our_first_token, our_scores, peft_first_token, peft_scores
from benchmarks.sides import Ids, Outcome
from softprompt.backbones.base import Backbone
from softprompt.backbones.loading import load_backbone
from softprompt.backbones.precision import resolve_dtype

NAME = "causal_prompt_tuning"
MODEL = "smollm2-135m-instruct"
CPU = torch.device("cpu")
LABELLED = 4  # tokens at the end of each row
BATCH = 16
SWEEP = (1, 5, 10, 20, 50, 100, 150, 200)
STEPS = {20: ("float32",), 100: ("float32", "bfloat16", "default")}

Who = Literal["ours", "peer"]
Side = tuple[Who, torch.dtype]


@dataclass(frozen=True)
class Setting(harness.Setting):
    """With the model, rows and prompts of this benchmark."""

    def backbone(self, dtype: torch.dtype) -> Backbone:
        return backbone(self.tiny, dtype)

    def rows(self, count: int) -> list[Ids]:
        shortest, longest = (6, 12) if self.tiny else (32, 64)
        return sides.random_rows(count, shortest, longest, self.backbone(torch.float32).spec.vocabulary)

    def prompt(self, length: int) -> Tensor:
        return sides.random_prompt(self.backbone(torch.float32), length)


@cache
def backbone(tiny: bool, dtype: torch.dtype) -> Backbone:
    """The model both sides share."""
    if tiny:
        return sides.random_llama(sides.TINY, dtype, CPU)
    return load_backbone(MODEL, dtype=dtype, device=CPU)


def dtypes(precision: str) -> tuple[torch.dtype, torch.dtype]:
    """Of our side and of PEFT's. "default": what each takes untold, ours the fastest, PEFT float32."""
    if precision == "default":
        return resolve_dtype("auto", CPU), torch.float32
    dtype = resolve_dtype(precision, CPU)  # type: ignore[arg-type]
    return dtype, dtype


# --- training ----------------------------------------------------------------------------------------------


def make_step(setting: Setting, side: Side, length: int, rows: Sequence[Ids]) -> Callable[[], Outcome]:
    """One side's training step, the same prompt in both."""
    who, dtype = side
    model = setting.backbone(dtype)
    prompt = setting.prompt(length)
    if who == "ours":
        return sides.our_step(model, prompt, rows, LABELLED)
    tuned = sides.peft_prompt_tuning(model.model, prompt)
    return sides.peft_step(tuned, [sides.prompt_weight(tuned)], sides.padded(rows, LABELLED, CPU))


def training(setting: Setting) -> list[Row]:
    """Seconds per step, by prompt length and precision, and what share of the machine's rate that is."""
    made: list[Row] = []
    for length, precisions in STEPS.items():
        cases = {p: f"P={length} {p}" for p in precisions}
        cases = {
            p: case
            for p, case in cases.items()
            if setting.wants(case) or setting.wants(f"share of GEMM rate {case}")
        }
        if not cases:
            continue
        seconds, difference = time_steps(setting, length, [dtypes(p) for p in cases])
        for precision, case in cases.items():
            ours, peer = dtypes(precision)
            times = seconds["ours", ours], seconds["peer", peer]
            extra: dict[str, Any] = {"ours_dtype": _name(ours), "peer_dtype": _name(peer)}
            if precision == "float32":
                extra["relative_difference"] = difference
            made.append(harness.row_of_times(case, *times, **extra))
            if precision != "default":
                made += rates(setting, case, length, ours, *times)
    return made


def time_steps(
    setting: Setting, length: int, pairs: Sequence[tuple[torch.dtype, torch.dtype | None]]
) -> tuple[dict[Side, list[float]], dict[str, float]]:
    """Seconds of each side in each precision, all in turns; and how far the float32 sides are apart."""
    rows = setting.rows(BATCH)
    steps: dict[Side, Callable[[], Outcome]] = {}
    for ours, peer in pairs:
        wanted: list[Side] = [("ours", ours)] if peer is None else [("ours", ours), ("peer", peer)]
        for side in wanted:
            if side not in steps:
                steps[side] = make_step(setting, side, length, rows)
    difference: dict[str, float] = {}

    def compare(results: Mapping[Side, Outcome]) -> None:
        ours, peer = results.get(("ours", torch.float32)), results.get(("peer", torch.float32))
        if ours is None or peer is None:
            return
        difference["loss"] = abs(ours.loss - peer.loss) / abs(peer.loss)
        difference["prompt_gradient"] = sides.relative_difference(ours.gradient, peer.gradient)
        print(f"P={length} float32, relative difference: {_said(difference)}", flush=True)

    return harness.interleaved(steps, 1 if setting.tiny else 5, compare), difference


def sweep(setting: Setting, measured: Sequence[Row]) -> list[Row]:
    """Seconds per step by prompt length, default precisions. With --quick only ours is measured anew."""
    known = {row.case: row for row in measured}
    ours, peer = dtypes("default")
    made = []
    for length in SWEEP:
        case = f"sweep P={length}"
        if not setting.wants(case):
            continue
        if (done := known.get(f"P={length} default")) is not None:
            made.append(Row(case, done.ours, done.peer, done.unit, extra=done.extra))
            continue
        seconds, _ = time_steps(setting, length, [(ours, None if setting.quick else peer)])
        made.append(harness.row_of_times(case, seconds["ours", ours], seconds.get(("peer", peer), [])))
    return made


# --- rate --------------------------------------------------------------------------------------------------


def rates(
    setting: Setting, case: str, length: int, dtype: torch.dtype, ours: Sequence[float], peer: Sequence[float]
) -> list[Row]:
    """Useful GFLOP per second of both sides, that of bare products of the same shapes, and the share.

    Useful: two products (forward, and backward to the activations; weights are frozen) per linear layer for
    each virtual token, once, and each token that is read; the head at labelled positions only. Attention,
    norms and softmax are not counted.
    """
    tokens = length + sum(
        len(ids) - 1 for ids in setting.rows(BATCH)
    )  # the last one is predicted, never read
    products = forward_products(setting.backbone(dtype).model, tokens, BATCH * LABELLED)
    gflop = 2 * sum(product.flop for product in products) / 1e9
    gemm = gemm_rate(products, 1 if setting.tiny else 5)
    made = harness.row_of_rates(f"useful rate {case}", gflop, "GFLOP/s", ours, peer)
    ours_share, peer_share = (None if side is None else 100 * side / gemm for side in (made.ours, made.peer))
    return [
        made,
        Row(f"GEMM rate {case}", gemm, None, "GFLOP/s", True),
        Row(f"share of GEMM rate {case}", ours_share, peer_share, "%", True),
    ]


# --- memory ------------------------------------------------------------------------------------------------


def memory(setting: Setting) -> list[Row]:
    """Peak extra memory of one step at P=100; each side in a process of its own."""
    measured: dict[Side, int | None] = {}
    made = []
    for precision in ("float32", "default"):
        case = f"memory P=100 {precision}"
        if not setting.wants(case) or not harness.measures_memory(CPU):
            continue
        ours, peer = dtypes(precision)
        pair: tuple[Side, Side] = ("ours", ours), ("peer", peer)
        for side in pair:
            if side not in measured:
                measured[side] = harness.in_fresh_process(step_memory, setting, side, 100)
        names = {"ours_dtype": _name(ours), "peer_dtype": _name(peer)}
        made.append(harness.row_of_memory(case, measured[pair[0]], measured[pair[1]], **names))
    return made


def step_memory(setting: Setting, side: Side, length: int) -> int | None:
    """Bytes; a step of one short row comes first, so that all weights and code are resident."""
    make_step(setting, side, 1, [ids[: LABELLED + 2] for ids in setting.rows(1)])()
    return harness.peak_extra_bytes(make_step(setting, side, length, setting.rows(BATCH)), CPU)


# --- use ---------------------------------------------------------------------------------------------------


def use(setting: Setting) -> list[Row]:
    """Scoring labels of many rows, and the time to the first token of one."""
    cases = {"batch inference P=100": _batch_inference, "first token P=100": _first_token}
    made = []
    for prefix, make in cases.items():
        wanted = [p for p in ("float32", "default") if setting.wants(f"{prefix} {p}")]
        if not wanted:
            continue
        calls: dict[Side, Callable[[], Tensor]] = {}
        for precision in wanted:
            ours, peer = dtypes(precision)
            for side in (("ours", ours), ("peer", peer)):
                if side not in calls:
                    calls[side] = make(setting, side)
        difference: dict[str, float] = {}

        seconds = harness.interleaved(
            calls, setting.repetitions, partial(_compare_results, prefix, difference)
        )
        for precision in wanted:
            ours, peer = dtypes(precision)
            extra: dict[str, Any] = {"relative_difference": difference} if precision == "float32" else {}
            times = seconds["ours", ours], seconds["peer", peer]
            made.append(harness.row_of_times(f"{prefix} {precision}", *times, **extra))
    return made


def _compare_results(case: str, difference: dict[str, float], results: Mapping[Side, Tensor]) -> None:
    ours, peer = results.get(("ours", torch.float32)), results.get(("peer", torch.float32))
    if ours is not None and peer is not None:
        difference["result"] = sides.relative_difference(ours, peer)
        print(f"{case} float32, relative difference: {_said(difference)}", flush=True)


def _batch_inference(setting: Setting, side: Side) -> Callable[[], Tensor]:
    who, dtype = side
    model, prompt = setting.backbone(dtype), setting.prompt(100)
    if who == "ours":
        return our_scores(model, prompt, setting.rows(64), LABELLED, BATCH)
    return peft_scores(sides.peft_prompt_tuning(model.model, prompt), 100, setting.rows(64), LABELLED, BATCH)


def _first_token(setting: Setting, side: Side) -> Callable[[], Tensor]:
    who, dtype = side
    model, prompt = setting.backbone(dtype), setting.prompt(100)
    [ids] = sides.random_rows(1, 48, 48, model.spec.vocabulary)
    if who == "ours":
        return our_first_token(model, prompt, ids)
    return peft_first_token(sides.peft_prompt_tuning(model.model, prompt), ids, model.tokenizer.pad_token_id)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _said(difference: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in difference.items())


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    options = harness.parser(NAME, "Prompt tuning of SmolLM2-135M on the CPU, against PEFT.").parse_args(argv)
    setting = Setting(options.quick, options.tiny, options.only)
    start = time.perf_counter()
    rows = training(setting)
    rows += memory(setting)
    rows += sweep(setting, rows)
    rows += use(setting)
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
