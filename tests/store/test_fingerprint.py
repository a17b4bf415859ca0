from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPConfig, LlamaConfig, PreTrainedModel

from softprompt.store import BackboneIdentity, WrongBackboneError, check_backbone, fingerprint
from softprompt.store.fingerprint import config_digest, table_digest, tokenizer_digest
from tests.store.samples import IDENTITY, sample
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer


def identity(model: PreTrainedModel) -> BackboneIdentity:
    return fingerprint(
        model.config,
        model.get_input_embeddings().weight,
        name="tiny",
        family="causal-lm",
        vocabulary=tiny_tokenizer().get_vocab(),
    )


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_a_model_saved_and_loaded_in_another_precision_is_the_same_backbone(
    tmp_path: Path, architecture: Any
) -> None:
    model = tiny_causal_lm(architecture, dtype=torch.float32)
    expected = identity(model)
    model.save_pretrained(tmp_path / "model")
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "model", dtype=dtype, attn_implementation="eager"
        )
        assert identity(loaded) == expected
    assert expected.width == 48
    assert expected.vocabulary == model.config.vocab_size


def test_a_float16_checkpoint_is_one_backbone_in_every_precision() -> None:
    stored = torch.randn(50, 8).half()
    assert table_digest(stored) == table_digest(stored.float()) == table_digest(stored.bfloat16())


def test_what_only_loading_or_generation_looks_at_does_not_change_the_backbone() -> None:
    config = LlamaConfig(hidden_size=32, num_attention_heads=4)
    other = LlamaConfig(
        hidden_size=32, num_attention_heads=4, use_cache=False, pad_token_id=7, dtype="bfloat16",
        architectures=["LlamaForSequenceClassification"], num_labels=5,
    )  # fmt: skip
    other._name_or_path = "elsewhere"
    assert config_digest(config) == config_digest(other)


def test_a_default_that_a_later_release_adds_does_not_change_the_backbone() -> None:
    class Later(LlamaConfig):
        later_setting: int = 3

    assert config_digest(LlamaConfig(hidden_size=32)) == config_digest(Later(hidden_size=32))
    assert config_digest(LlamaConfig()) != config_digest(Later(later_setting=4))


@pytest.mark.parametrize("change", [{"rms_norm_eps": 1e-5}, {"num_hidden_layers": 3}, {"rope_theta": 5e5}])
def test_what_changes_the_computation_changes_the_backbone(change: dict[str, Any]) -> None:
    assert config_digest(LlamaConfig(hidden_size=64)) != config_digest(LlamaConfig(hidden_size=64, **change))


def test_nested_configs_count() -> None:
    assert config_digest(CLIPConfig()) == config_digest(CLIPConfig(use_cache=False))
    assert config_digest(CLIPConfig()) != config_digest(CLIPConfig(vision_config={"patch_size": 16}))
    assert config_digest(CLIPConfig()) == config_digest(CLIPConfig(vision_config={"dtype": "bfloat16"}))


def test_one_changed_weight_another_order_and_another_shape_change_the_table() -> None:
    table = torch.randn(5000, 4)  # more rows than are hashed at a time
    changed = table.clone()
    changed[4999, 3] += 1
    digests = {table_digest(each) for each in (table, changed, table.flip(0), table.view(2500, 8))}
    assert len(digests) == 4
    assert table_digest(table.T.contiguous().T) == table_digest(table)
    assert table_digest(nn.Parameter(table)) == table_digest(table)


@pytest.mark.parametrize("table", [torch.zeros(4), torch.zeros(4, 2, dtype=torch.uint8)])
def test_a_table_that_is_packed_or_flat_is_refused(table: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"get_input_embeddings\(\)\.weight, dequantized"):
        table_digest(table)


def test_a_tokenizer_is_told_by_its_pieces_and_ids_in_whatever_order() -> None:
    assert tokenizer_digest({"a": 0, "b": 1}) == tokenizer_digest({"b": 1, "a": 0})
    assert tokenizer_digest({"a": 0, "b": 1}) != tokenizer_digest({"a": 1, "b": 0})


def test_the_right_backbone_under_another_name_passes() -> None:
    check_backbone(sample(), IDENTITY)
    check_backbone(sample(), dataclasses.replace(IDENTITY, name="a/copy"))
    check_backbone(sample(), dataclasses.replace(IDENTITY, tokenizer_digest=None))


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"width": 8}, ["width 8, trained on 4", "Load 'tiny/llama' instead"]),
        ({"vocabulary": 12, "table_digest": "x"}, ["12 rows .* trained on 11", "Was the vocabulary resized"]),
        (
            {"table_digest": "x" * 64},
            ["other weights in the embedding table", "train a new prompt on 'other'"],
        ),
        (
            {"config_digest": "x" * 64},
            ["another config", r"dataclasses\.replace\(saved, backbone=identity\)"],
        ),
        ({"family": "prefix-lm"}, ["family 'prefix-lm', trained on 'causal-lm'"]),
        ({"tokenizer_digest": "x"}, ["another tokenizer vocabulary"]),
    ],
)
def test_a_wrong_backbone_is_refused_with_what_differs_and_what_to_do(
    changes: dict[str, Any], messages: list[str]
) -> None:
    for message in ["trained on 'tiny/llama', and 'other' differs", *messages]:
        with pytest.raises(WrongBackboneError, match=message):
            check_backbone(sample(), dataclasses.replace(IDENTITY, name="other", **changes))


def test_every_difference_is_listed_at_once() -> None:
    other = dataclasses.replace(IDENTITY, width=8, vocabulary=12, config_digest="x", tokenizer_digest="y")
    with pytest.raises(WrongBackboneError) as raised:
        check_backbone(sample(), other)
    assert str(raised.value).count("\n  - ") == 4
