"""Build every type of model that transformers lists small, and say how softprompt runs it.

    python -m tests.jobs.architectures --minutes 5      # again and again, until all are tried
    python -m tests.jobs.architectures --only phi3      # this type again
    python -m tests.jobs.architectures --table > docs/reference/architectures.md

What is found is kept in architectures.json beside this file. Each type is tried in a process of its own, for a limited time.

Each causal type is built with random weights and compared with the plain model, one row at a time: scores with gradients,
states, compiled prompts, key-value prefixes, batched generation. Masked and encoder-decoder types: scores. A type whose
default config does not build at a small size is left out.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import textwrap
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from softprompt import load_backbone
from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.loading import main_input
from softprompt.backbones.masked import MaskedBackbone
from softprompt.files import write_text
from softprompt.outputs import EncodedRow, PromptOutput
from tests.backbones.agreement import CHECKS, assert_near
from tests.backbones.dual.test_backbone_trial import SEES, dual_of
from tests.naive import masked as naive_masked
from tests.naive import seq2seq as naive_seq2seq
from tests.tiny.architectures import SHARED, VOCABULARY, tiny_model
from tests.tiny.dual import dual_tokenizer
from tests.tiny.encoders import encoder_tokenizer
from tests.tiny.language import tiny_tokenizer
from tests.tiny.vision import RULE

LARGEST = 12_000_000  # parameters
FOUND = Path(__file__).with_suffix(".json")
Results = dict[str, Any]
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


def small(kind: str, auto: Any) -> Any:
    """The smallest model of a type that a few settings give, or None."""
    dense = {name: value for name, value in SIZES.items() if "expert" not in name}
    first = SIZES if auto is AutoModelForCausalLM else dense
    if auto is AutoModelForMaskedLM:
        first = first | {"vocab_size": len(encoder_tokenizer())}
    headless = {name: value for name, value in SIZES.items() if name != "head_dim"}
    wider = SIZES | {"hidden_size": 64, "head_dim": 16}  # a quarter of a head is turned in StableLM
    for sizes in (first, SIZES | {"num_key_value_heads": 4}, headless, wider, {"num_key_value_heads": 4}):
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
            except Exception:
                continue
    return None


def tiny_config(kind: str, sizes: dict[str, Any], without: tuple[str, ...]) -> Any:
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


def outcome(check: Callable[[], Any], right: str = "equal") -> str:
    try:
        check()
    except AssertionError:
        return "**differs**"
    except ValueError as error:
        return f"refused: {short(error)}"
    except Exception as error:
        return f"**{type(error).__name__}**: {short(error)}"
    return right


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


def tower(kind: str, auto: Any) -> Any:
    """A small vision tower, or None."""
    for without in (
        (),
        ("num_attention_heads",),
        ("num_hidden_layers", "num_attention_heads", "hidden_size"),
    ):
        try:
            sees = {name: value for name, value in SEES.items() if name not in without}
            with torch.device("meta"):
                probe = auto.from_config(AutoConfig.for_model(kind, **sees))
            if sum(p.numel() for p in probe.parameters()) < LARGEST:
                return auto.from_config(AutoConfig.for_model(kind, **sees)).eval()
        except Exception:
            continue
    return None


def sees(kind: str) -> bool:
    """Whether the plain model of a type reads images and nothing else."""
    try:
        return main_input(AutoConfig.for_model(kind)) == "pixel_values"
    except Exception:
        return False


def vision(model: Any) -> list[str]:
    """Whether it loads by itself, and whether as the tower of a dual encoder; the trials at loading judge."""
    return [
        outcome(lambda: load_backbone(model.double(), processor=RULE), "loads"),
        outcome(
            lambda: load_backbone(
                dual_of(model.config), tokenizer=dual_tokenizer("vit-bert"), processor=RULE
            ),
            "loads",
        ),
    ]


def pair(kind: str, auto: Any) -> Any:
    """A small dual encoder, or None."""
    reads = {
        "hidden_size": 32, "projection_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 32,
        "vocab_size": len(tokenizer_for(kind)), "max_position_embeddings": 20, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": tokenizer_for(kind)("a")["input_ids"][-1],
    }  # fmt: skip
    try:
        config = AutoConfig.for_model(kind, text_config=reads, vision_config=SEES, projection_dim=16)
        with torch.device("meta"):
            probe = auto.from_config(config)
        small_enough = sum(p.numel() for p in probe.parameters()) < LARGEST
        return auto.from_config(config, dtype=torch.float64).eval() if small_enough else None
    except Exception:
        return None


def tokenizer_for(kind: str) -> Any:
    if kind.startswith("siglip"):
        return dual_tokenizer("siglip")
    return dual_tokenizer("clip" if kind in ("clip", "clipseg", "metaclip_2", "tipsv2") else "vit-bert")


def dual(model: Any) -> list[str]:
    """The trial at loading compares scores with the model's own."""
    tokenizer = tokenizer_for(model.config.model_type)
    return [outcome(lambda: load_backbone(model, tokenizer=tokenizer, processor=RULE), "equal")]


TABLES = {
    "Causal language models": (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, AutoModelForCausalLM, causal, ("shares the prompt", *CHECKS),
    ),
    "Masked language models": (MODEL_FOR_MASKED_LM_MAPPING_NAMES, AutoModelForMaskedLM, masked, ("packed", "scores")),
    "Encoder-decoders": (MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, AutoModelForSeq2SeqLM, seq2seq, ("scores",)),
    "Vision encoders": (
        {kind: name for kind, name in MODEL_MAPPING_NAMES.items() if sees(kind)}, AutoModel, vision,
        ("alone", "as a tower of VisionTextDualEncoder"),
    ),
    "Dual encoders": (MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES, AutoModel, dual, ("scores",)),
}  # fmt: skip


HEAD = """# Architectures

Which models of transformers run, found by trying a tiny random model of each type in float64 against the plain model, one row
at a time. *Equal*: to 2e-5 of the largest value, gradients of scores too. *Shares the prompt*: rows are packed and the prompt
is run once for all of them; the others run it for each row, which is slower and as exact. *Refused*: `load_backbone` or the
call raises ValueError and says why (the text is cut off here).
"""


def row_of(kind: str, title: str) -> list[str] | None:
    """The cells of a type; None: it does not build."""
    _, auto, check, columns = TABLES[title]
    try:
        model = {vision: tower, dual: pair}.get(check, small)(kind, auto)
        return None if model is None else check(model)
    except ValueError as error:
        cell = f"refused: {short(error)}"
    except Exception as error:
        cell = f"**{type(error).__name__}**: {short(error)}"
    return [cell, *[""] * (len(columns) - 1)]


def tried(kind: str, title: str, seconds: float) -> list[str] | None:
    """The cells of a type, found in a forked process that may crash or hang."""
    here, there = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(
        target=lambda: there.send(row_of(kind, title)), daemon=True
    )
    child.start()
    there.close()
    rest = [""] * (len(TABLES[title][3]) - 1)
    try:
        if here.poll(seconds):
            return here.recv()  # type: ignore[no-any-return]
        return [f"not finished in {seconds:.0f} s", *rest]
    except EOFError:
        child.join()
        return [f"**the process ended** with exit code {child.exitcode}", *rest]
    finally:
        child.kill()
        child.join()


def write_table(found: Results) -> None:
    print(HEAD)
    for title, (kinds, _, _, columns) in TABLES.items():
        rows = found["types"].get(title, {})
        print(f"## {title}\n\n| type | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        for kind in sorted(kinds):
            if (cells := rows.get(kind)) is not None:
                print(f"| {kind} | {' | '.join(cells)} |")
        unbuilt = [kind for kind in sorted(kinds) if kind in rows and rows[kind] is None]
        unreached = [kind for kind in sorted(kinds) if kind not in rows]
        for why, names in (
            ("Not tried, because no small config was found", unbuilt),
            ("Not reached", unreached),
        ):
            if names:
                print("\n" + textwrap.fill(f"{why}: {', '.join(names)}.", 120, break_on_hyphens=False))
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", help="types, tried again")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="stop after them; the next call resumes"
    )
    parser.add_argument("--seconds", type=float, default=40, help="for one type")
    parser.add_argument("--table", action="store_true", help="try nothing, print the page of what was found")
    asked = parser.parse_args()
    found: Results = json.loads(FOUND.read_text()) if FOUND.exists() else {"types": {}}
    if asked.table:
        write_table(found)
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found["versions"] = {"transformers": transformers.__version__, "torch": torch.__version__}
    end = time.monotonic() + 60 * asked.minutes
    for title, (kinds, *_) in TABLES.items():
        rows = found["types"].setdefault(title, {})
        for kind in sorted(kinds):
            if (kind not in asked.only) if asked.only else kind in rows:
                continue
            if time.monotonic() > end:
                return
            rows[kind] = tried(kind, title, asked.seconds)
            print(title, kind, rows[kind], flush=True)
            write_text(FOUND, json.dumps(found, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
