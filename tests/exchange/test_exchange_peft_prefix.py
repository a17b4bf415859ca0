"""Key-value prefixes in PEFT's format, both directions against the real PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import PrefixTuning, PTuningV2, TunedPrompt, fit, from_peft
from softprompt.exchange import read_peft, write_peft, write_peft_prefix
from softprompt.outputs import EncodedRow
from softprompt.prompts import prefix
from softprompt.store import PromptFileError, load_prefix, load_tokens
from tests.tiny.language import Architecture, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.* layers attend to the last:softprompt.SoftpromptWarning"),
]

TEXTS = ["film and dog", "the house by the river is old", "dog"]
MODEL: dict[str, Any] = {"base_model_name": "tiny/llama", "num_layers": 2, "num_key_value_heads": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "prefix": {"peft_type": "PREFIX_TUNING"},
    "projected": {"peft_type": "PREFIX_TUNING", "prefix_projection": True, "encoder_hidden_size": 16},
    "cartridge": {"peft_type": "CARTRIDGE", "num_frozen_tokens": 2},
}


def theirs_of(architecture: Architecture, kind: str, length: int = 4) -> Any:
    """PEFT's model with random trained numbers."""
    config = peft.get_peft_config({"task_type": "CAUSAL_LM", "num_virtual_tokens": length, **CONFIGS[kind]})
    return peft.get_peft_model(tiny_backbone(architecture).model, config).eval()


def assert_same_logits(tuned: TunedPrompt, theirs: nn.Module) -> None:
    """Ours against PEFT's for rows of our template, alone and as a batch."""
    rows = [tuned.encoder.encode({"text": text}, answer=False) for text in TEXTS]
    together = tuned.backbone.next_token_logits(rows, tuned.model.prompt())  # type: ignore[attr-defined]
    for row, ours in zip(rows, together, strict=True):
        assert min(row.context) >= 0
        with torch.no_grad():
            expected = theirs(input_ids=torch.tensor([row.context])).logits[0, -1]
        assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "opt", "gemma3_text"])
def test_a_prefix_that_peft_wrote_gives_peft_s_logits(
    tmp_path: Path, architecture: Architecture, kind: str
) -> None:
    theirs = theirs_of(architecture, kind)
    theirs.save_pretrained(tmp_path)
    tuned = from_peft(tmp_path, tiny_backbone(architecture), TASK)
    assert_same_logits(tuned, theirs)
    assert tuned.method == PrefixTuning(length=4, reparametrize=False, frozen=2 if kind == "cartridge" else 0)
    assert not any(p.requires_grad for p in tuned.module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        PrefixTuning(length=4, hidden=8),
        PTuningV2(length=3),
        PrefixTuning(length=4, reparametrize=False, frozen=1),
    ],
    ids=["mlp", "v2", "cartridge"],
)
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "opt", "gemma3_text"])
def test_a_prefix_written_here_gives_the_same_logits_in_peft(
    tmp_path: Path, architecture: Architecture, method: Any
) -> None:
    tuned = fit(tiny_backbone(architecture), TASK, method, ROWS, steps=2, progress=False)
    folder = tuned.export_peft(tmp_path / "p")
    kind = "CARTRIDGE" if getattr(method, "frozen", 0) else "PREFIX_TUNING"
    assert read_peft(folder).peft_type == kind
    theirs = peft.PeftModel.from_pretrained(tiny_backbone(architecture).model, folder).eval()
    assert_same_logits(tuned, theirs)
    again = from_peft(folder, tuned.backbone, TASK)
    assert again.predict(TEXTS) == tuned.predict(TEXTS)
    assert torch.equal(load_prefix(folder), load_prefix(tuned.save(tmp_path / "ours")))


def test_a_bos_that_the_tokenizer_adds_stands_behind_the_prefix_as_in_peft(tmp_path: Path) -> None:
    theirs = theirs_of("llama", "prefix")
    theirs.save_pretrained(tmp_path)
    tuned = from_peft(tmp_path, tiny_backbone(bos=True), TASK)
    ids = tiny_tokenizer(bos=True)("film sentiment")["input_ids"]
    row = tuned.encoder.encode({"text": "film"}, answer=False)
    assert list(row.context) == ids
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).logits[0, -1]
    ours = tuned.backbone.next_token_logits([row], tuned.model.prompt())[0]  # type: ignore[attr-defined]
    assert_close(ours, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["prefix", "cartridge"])
def test_the_files_have_peft_s_own_fields_values_and_bytes(tmp_path: Path, kind: str) -> None:
    theirs_of("qwen3", kind, length=5).save_pretrained(tmp_path / "theirs")
    read = read_peft(tmp_path / "theirs")
    assert read.prefix is not None
    assert read.tokens is None
    write_peft_prefix(
        tmp_path / "ours", read.prefix, **{**MODEL, "base_model_name": None},
        frozen=None if kind == "prefix" else 2,
    )  # fmt: skip
    ours, expected = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")
    )
    assert ours == {**expected, "peft_version": ours["peft_version"]}
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "theirs")]
    assert weights[0] == weights[1]


def test_what_peft_takes_from_a_text_is_what_a_prefix_of_ours_starts_with(tmp_path: Path) -> None:
    theirs = theirs_of("llama", "cartridge", length=3)
    cache = theirs.get_base_model()(input_ids=torch.tensor([[1, 20, 21]]), use_cache=True).past_key_values
    rows = peft.initialize_kv_prefix_from_past_key_values(theirs, past_key_values=cache)
    spec = tiny_backbone().spec
    assert spec.key_values_of is not None
    found = prefix.join_rows(spec.key_values_of(torch.tensor([1, 20, 21])))
    assert_close(found, rows.float(), rtol=1e-6, atol=1e-6)


def test_the_smallest_config_is_enough(tmp_path: Path) -> None:
    rows = torch.randn(5, 96)
    for kind in ("PREFIX_TUNING", "CARTRIDGE"):
        folder = tmp_path / kind
        write_peft_prefix(folder, rows, **MODEL, frozen=3 if kind == "CARTRIDGE" else None)
        small = {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
        (folder / "adapter_config.json").write_text(json.dumps(small))
        read = read_peft(folder)
        assert read.prefix is not None
        assert torch.equal(read.prefix, rows)
        assert read.frozen == (1 if kind == "CARTRIDGE" else 0)  # PEFT's default
        assert from_peft(folder, tiny_backbone(), TASK).predict(["film"])


def test_a_cartridge_that_is_wholly_frozen_can_be_used(tmp_path: Path) -> None:
    rows = torch.randn(2, 96)
    write_peft_prefix(tmp_path / "p", rows, **MODEL, frozen=2)
    output = from_peft(tmp_path / "p", tiny_backbone(), TASK).module()
    assert output.prefix is not None
    assert torch.equal(prefix.join_rows(output.prefix), rows)


def test_a_prefix_and_virtual_tokens_are_not_taken_for_each_other(tmp_path: Path) -> None:
    write_peft_prefix(tmp_path / "prefix", torch.zeros(2, 96), **MODEL)
    write_peft(
        tmp_path / "tokens", torch.zeros(2, 48), base_model_name=None, num_layers=2, num_attention_heads=4
    )
    with pytest.raises(PromptFileError, match="a PREFIX_TUNING prompt has no virtual tokens to start from"):
        load_tokens(tmp_path / "prefix")
    with pytest.raises(PromptFileError, match="a PROMPT_TUNING prompt has no keys and values to start from"):
        load_prefix(tmp_path / "tokens")


def test_a_prefix_of_another_model_is_an_error_that_names_its_model(tmp_path: Path) -> None:
    write_peft_prefix(tmp_path / "p", torch.zeros(2, 128), **{**MODEL, "base_model_name": "big/one"})
    with pytest.raises(ValueError, match=r"shape \(2, 128\), tiny/llama needs \(n, 96\).*big/one"):
        from_peft(tmp_path / "p", tiny_backbone(), TASK)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_virtual_tokens": 6}, r"shape \(5, 96\).* asks for floating point of shape \(6, 96\)"),
        ({"num_layers": 3}, r"of shape \(5, 144\): 5 positions of keys and values in 3 layers"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"num_frozen_tokens": 6}, "num_frozen_tokens is 6 in adapter_config.json; expected 0 to 5"),
        ({"num_frozen_tokens": True}, "num_frozen_tokens is True"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write_peft_prefix(tmp_path / "p", torch.zeros(5, 96), **MODEL, frozen=1)
    path = tmp_path / "p" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(PromptFileError, match=message):
        read_peft(tmp_path / "p")


@pytest.mark.parametrize(
    "tensor", [torch.zeros(5), torch.tensor(0.0), torch.zeros(5, 0), torch.ones(5, 96).int()]
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, tensor: Tensor) -> None:
    write_peft_prefix(tmp_path / "p", torch.zeros(5, 96), **MODEL)
    safetensors.torch.save_file({"prompt_embeddings": tensor}, tmp_path / "p" / "adapter_model.safetensors")
    small = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5}
    for config in (None, small):
        if config is not None:
            (tmp_path / "p" / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(PromptFileError, match="config and tensors are of different prompts"):
            read_peft(tmp_path / "p")


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (torch.zeros(96), {}, r"shape \(96,\); expected floating-point \(P, W\)"),
        (torch.zeros(2, 95), {}, "W a multiple of 8: keys and values of 2 heads in 2 layers"),
        (torch.zeros(2, 96), {"frozen": 3}, "frozen is 3; the prefix has 2 positions"),
        (torch.zeros(2, 96), {"task_type": "CAUSAL"}, "task_type is 'CAUSAL'; PEFT knows CAUSAL_LM"),
    ],
)
def test_what_peft_could_not_read_is_not_written(
    tmp_path: Path, rows: Tensor, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_peft_prefix(tmp_path / "p", rows, **{**MODEL, **changes})
    assert list(tmp_path.iterdir()) == []


# What PEFT 0.21.2 gets wrong with prefixes, and is right here. (Resume, checkpointing, generation and shapes are tested
# beside what they belong to: tests/prompts/test_prefix_tuning.py, tests/backbones/causal/test_backbone_prefixes.py.)


def test_loading_leaves_nothing_to_train_and_a_settings_object_as_it_was(tmp_path: Path) -> None:
    method = PrefixTuning(length=3, reparametrize=False)
    for architecture in ("llama", "gpt2"):  # PEFT writes the first model's shape into its config
        tuned = fit(tiny_backbone(architecture), TASK, method, ROWS, steps=1, progress=False)  # type: ignore[arg-type]
        assert len(tuned.module().prefix or ()) == 2
    assert method == PrefixTuning(length=3, reparametrize=False)
    assert not any(p.requires_grad for p in tuned.module.parameters())


def test_logits_are_those_of_the_text_and_the_prefix_stands_in_front_once() -> None:
    backbone = tiny_backbone()
    module = PTuningV2(length=3).restore(backbone.spec, {"rows.weight": torch.randn(3, 96)})
    row = EncodedRow((20, 21, 30), ((40,),))
    once = backbone.score([row], module())
    assert once.logits.shape[0] == 1
    compiled = backbone.compile([row, row], module())
    again = backbone.compile([row, row], module())
    for kept in (compiled, again):
        assert_close(backbone.score([row], kept).logits, once.logits, rtol=0, atol=1e-10)


def test_the_padding_side_and_the_batch_change_no_answer_behind_a_prefix() -> None:
    tuned = fit(tiny_backbone(padding_side="left"), TASK, PTuningV2(length=3), ROWS, steps=1, progress=False)
    other = fit(tiny_backbone(padding_side="right"), TASK, PTuningV2(length=3), ROWS, steps=1, progress=False)
    found, expected = (
        [p.probabilities for t in TEXTS for p in tuned.predict([t])],
        [p.probabilities for p in other.predict(TEXTS)],
    )
    for a, b in zip(found, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-9)
