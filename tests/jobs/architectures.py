"""Build every type of model that transformers lists small, and say how softprompt runs it.

    python -m tests.jobs.architectures > docs/reference/architectures.md
    python -m tests.jobs.architectures --only phi3 deepseek_v3      # these alone, with the whole error

Each causal type is built with random weights and compared with the plain model, one row at a time: scores with gradients,
states, compiled prompts, key-value prefixes, batched generation. Masked and encoder-decoder types: scores. A type whose
default config does not build at a small size is left out.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

from softprompt import load_backbone
from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.masked import MaskedBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.backbones.agreement import CHECKS, assert_near
from tests.naive import masked as naive_masked
from tests.naive import seq2seq as naive_seq2seq
from tests.tiny.architectures import VOCABULARY, tiny_model
from tests.tiny.encoders import encoder_tokenizer
from tests.tiny.language import tiny_tokenizer

LARGEST = 3_000_000  # parameters
SECONDS = 25  # for one type
SIZES: dict[str, Any] = {
    "head_dim": 12, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "num_layers": 2,
    "num_decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "d_ff": 64, "d_kv": 12, "num_heads": 4, "max_position_embeddings": 128,
    "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12, "first_k_dense_replace": 1, "n_embd": 48,
    "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 64, "ffn_dim": 64, "word_embed_proj_dim": 48,
    "embedding_size": 48, "decoder_start_token_id": 1, "dropout": 0.0, "eos_token_id": 2, "bos_token_id": 1,
    "rotary_dim": 4, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    "num_kv_shared_layers": 0, "dim_model": 48, "dim_head": 12, "dim_ff": 64, "mamba_d_ssm": 96, "mamba_n_heads": 4,
    "mamba_d_head": 24, "mamba_n_groups": 1, "mamba_d_state": 8, "state_size": 8, "n_groups": 1, "lru_width": 48,
    "d_inner": 64, "attention_window": 4, "entity_vocab_size": 5, "entity_emb_size": 8, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "intermediate_size_mlp": 64,
    "shared_expert_intermediate_size": 32, "global_head_dim": 12, "expert_ffn_hidden_size": 32, "ffn_hidden_size": 64,
}  # fmt: skip


class TooLongError(Exception):
    """A type took more than SECONDS."""


def _too_long(*_: Any) -> None:
    raise TooLongError


def build(kind: str, auto: Any) -> Any:
    """The smallest model of a type that a few settings give, or None."""
    dense = {name: value for name, value in SIZES.items() if "expert" not in name}
    first = SIZES if auto is AutoModelForCausalLM else dense
    if auto is AutoModelForMaskedLM:
        first = first | {"vocab_size": len(encoder_tokenizer())}
    for sizes in (first, SIZES | {"num_key_value_heads": 4}, {"num_key_value_heads": 4}):
        for without in ((), ("num_key_value_heads",), ("num_hidden_layers", "num_attention_heads")):
            try:
                with torch.device("meta"):
                    probe = auto.from_config(tiny_config(kind, sizes, without))
                if sum(p.numel() for p in probe.parameters()) > LARGEST:
                    continue
                model = tiny_model(kind, auto, without=without, **sizes)
                ids = torch.tensor([[5, 6, 7, 8, 9]])
                with torch.no_grad():
                    model(
                        input_ids=ids, **({"decoder_input_ids": ids} if auto is AutoModelForSeq2SeqLM else {})
                    )
                return model
            except TooLongError:
                raise
            except Exception:
                continue
    return None


def tiny_config(kind: str, sizes: dict[str, Any], without: tuple[str, ...]) -> Any:
    from transformers import AutoConfig

    from tests.tiny.architectures import SHARED

    shared = {name: value for name, value in SHARED.items() if name not in without}
    return AutoConfig.for_model(kind, **{**shared, **sizes})


def causal(model: Any) -> list[str]:
    """Packing, and the outcome of each of CHECKS."""
    backbone = load_backbone(model, tokenizer=tiny_tokenizer())
    if not isinstance(backbone, CausalBackbone):
        return [f"is of the family {backbone.spec.family}", *[""] * len(CHECKS)]
    shares = "no" if not backbone.packed else "yes" if backbone._tried.prefixes else "yes, not compiled"
    cells = [shares]
    for name, check in CHECKS.items():
        if name == "prefixes" and not backbone.spec.key_values:
            cells.append("takes none")
            continue
        cells.append(outcome(lambda check=check: check(backbone)))
    return cells


def outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except TooLongError:
        raise
    except AssertionError:
        return "**differs**"
    except ValueError as error:
        return f"refused: {short(error)}"
    except Exception as error:
        return f"**{type(error).__name__}**: {short(error)}"
    return "equal"


def short(error: BaseException) -> str:
    return " ".join(str(error).split()).replace("|", "/")[:160]


def masked(model: Any) -> list[str]:
    tokenizer = encoder_tokenizer()
    backbone = load_backbone(model, tokenizer=tokenizer)
    if not isinstance(backbone, MaskedBackbone):
        return [f"is of the family {backbone.spec.family}", ""]
    mask = tokenizer.mask_token_id
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    rows = [
        EncodedRow((first, -1, -2, 20, 21, mask, last), ((40,), (41, 42))),
        EncodedRow((first, -1, -2, 22, 23, 24, 25, mask, 26, last), ((40,), (41, 42))),
    ]
    tokens = torch.randn(
        1, 2, backbone.spec.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def check() -> None:
        found = backbone.score(rows, PromptOutput(tokens=tokens)).token_log_likelihoods()
        expected = [
            naive_masked.target_log_likelihood(backbone.model, row, target, mask, tokens[0])
            for row in rows
            for target in row.targets
        ]
        assert_near(found, torch.cat(expected))

    return ["yes" if backbone.packed else "no", outcome(check)]


def seq2seq(model: Any) -> list[str]:
    backbone = load_backbone(model, tokenizer=tiny_tokenizer())
    start = model.config.decoder_start_token_id
    rows = [
        EncodedRow((-1, -2, 20, 21, 2), ((40,), (41, 42))),
        EncodedRow((-1, -2, 20, 22, 23, 24, 2), ((40,), (41, 42))),
    ]
    tokens = torch.randn(
        1, 2, backbone.spec.width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )

    def check() -> None:
        found = backbone.score(rows, PromptOutput(tokens=tokens)).token_log_likelihoods()
        expected = [
            naive_seq2seq.target_log_likelihood(backbone.model, row, target, tokens[0], start=(start,))
            for row in rows
            for target in row.targets
        ]
        assert_near(found, torch.cat(expected))

    return [outcome(check)]


TABLES = {
    "Causal language models": (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM, causal, ("shares the prompt", *CHECKS),
    ),
    "Masked language models": (MODEL_FOR_MASKED_LM_MAPPING_NAMES, AutoModelForMaskedLM, masked, ("packed", "scores")),
    "Encoder-decoders": (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM, seq2seq, ("scores",)),
}  # fmt: skip


def row_of(kind: str, auto: Any, check: Callable[[Any], list[str]], columns: int) -> list[str] | None:
    """The cells of a type; None: it does not build."""
    signal.alarm(SECONDS)
    try:
        model = build(kind, auto)
        if model is None:
            return None
        return check(model)
    except ValueError as error:
        return [f"refused: {short(error)}", *[""] * (columns - 1)]
    except TooLongError:
        return [f"not finished in {SECONDS} s", *[""] * (columns - 1)]
    except Exception as error:
        return [f"**{type(error).__name__}**: {short(error)}", *[""] * (columns - 1)]
    finally:
        signal.alarm(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", help="types")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="for each table; what is left is named"
    )
    asked = parser.parse_args()
    only = asked.only
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    signal.signal(signal.SIGALRM, _too_long)
    print("# Architectures\n")
    print(
        "Which language models of transformers run, found by trying a tiny random model of each type in float64 against\n"
        "the plain model, one row at a time. *Equal*: to 2e-5 of the largest value, gradients of scores too. *Shares the\n"
        "prompt*: rows are packed and the prompt is run once for all of them; the others run it for each row, which is\n"
        "slower and as exact.\n"
        "*Refused*: `load_backbone` or the call raises ValueError and says why.\n"
    )
    print(f"Made by `python -m tests.jobs.architectures` with transformers {transformers.__version__}.\n")
    for title, (kinds, auto, check, columns) in TABLES.items():
        chosen = [kind for kind in sorted(kinds) if not only or kind in only]
        left: list[str] = []
        unreached: list[str] = []
        begun = time.monotonic()
        print(f"## {title}\n\n| type | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}", flush=True)
        for kind in chosen:
            if time.monotonic() - begun > asked.seconds:
                unreached.append(kind)
                continue
            cells = row_of(kind, auto, check, len(columns))
            print(kind, cells, file=sys.stderr, flush=True)
            if cells is None:
                left.append(kind)
            else:
                print(f"| {kind} | {' | '.join(cells)} |", flush=True)
        print(f"\nNot tried, because no small config was found: {', '.join(left) or 'none'}.\n", flush=True)
        if unreached:
            print(f"Not reached in {asked.seconds:.0f} s: {', '.join(unreached)}.\n", flush=True)


if __name__ == "__main__":
    main()
