"""Both directions against the real PEFT, on models built here: the naive reference is plain concatenation."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration

from softprompt.exchange import read_peft, write_peft
from softprompt.store import PromptFileError, save
from tests.store.samples import sample
from tests.tiny.language import tiny_causal_lm
from tests.tolerances import assert_equal_up_to_rounding

peft = pytest.importorskip("peft")

# PEFT 0.21.2 reads this property of transformers 5.23; nothing of ours does.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXT = torch.tensor([[11, 25, 7, 300, 42, 9], [4, 8, 15, 16, 23, 42]])  # (B, T)
MODEL = {"base_model_name": "tiny/llama", "num_layers": 2, "num_attention_heads": 4}


def concatenated_logits(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The prompt in front of what the embedding module returns: (P, d) -> (B, P + T, V)."""
    text = model.get_input_embeddings()(TEXT)  # (B, T, d), scaled where the model scales
    prompt = tokens.to(text.dtype).expand(len(TEXT), -1, -1)  # (P, d) -> (B, P, d)
    with torch.no_grad():
        return model(inputs_embeds=torch.cat([prompt, text], dim=1)).logits


def peft_logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TEXT).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_peft(tmp_path / "prompt", torch.randn(5, 48), **MODEL)
    return tmp_path / "prompt"


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
@pytest.mark.parametrize("init", ["RANDOM", "SAMPLE_VOCAB"])
def test_a_prompt_that_peft_wrote_gives_peft_s_logits(tmp_path: Path, architecture: Any, init: str) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, prompt_tuning_init=init)
    theirs = peft.get_peft_model(tiny_causal_lm(architecture), config).eval()
    theirs.save_pretrained(tmp_path)
    prompt = read_peft(tmp_path)
    assert prompt.peft_type == "PROMPT_TUNING"
    assert prompt.tokens.shape == (5, 48)
    assert prompt.tokens.dtype == torch.float32
    assert prompt.base_model_name is None
    expected = peft_logits(theirs)
    actual = concatenated_logits(tiny_causal_lm(architecture), prompt.tokens)
    assert_equal_up_to_rounding(actual, expected)


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text"])
def test_a_prompt_written_here_gives_the_same_logits_in_peft(tmp_path: Path, architecture: Any) -> None:
    tokens = torch.randn(7, 48, dtype=torch.float64).float()
    write_peft(tmp_path / "ours", tokens, base_model_name=None, num_layers=2, num_attention_heads=4)
    theirs = peft.PeftModel.from_pretrained(tiny_causal_lm(architecture), tmp_path / "ours").eval()
    expected = concatenated_logits(tiny_causal_lm(architecture), tokens)
    assert_equal_up_to_rounding(peft_logits(theirs), expected)


def test_an_encoder_decoder_prompt_goes_both_ways(tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=512, d_model=32, d_kv=8, d_ff=32, num_layers=2, num_heads=4, decoder_start_token_id=0,
        dropout_rate=0.0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    tokens = torch.randn(3, 32)
    write_peft(
        tmp_path / "ours", tokens, base_model_name=None, num_layers=2, num_attention_heads=4,
        task_type="SEQ_2_SEQ_LM",
    )  # fmt: skip
    assert torch.equal(read_peft(tmp_path / "ours").tokens, tokens)
    decoder = torch.tensor([[0, 5], [0, 6]])
    inputs = torch.cat([tokens.expand(2, -1, -1), model.shared(TEXT)], dim=1)
    with torch.no_grad():
        expected = model(inputs_embeds=inputs, decoder_input_ids=decoder).logits
        theirs = peft.PeftModel.from_pretrained(model, tmp_path / "ours").eval()
        actual = theirs(input_ids=TEXT, decoder_input_ids=decoder).logits
    assert_close(actual, expected, rtol=0, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    assert torch.equal(read_peft(tmp_path / "theirs").tokens, tokens)


def test_the_config_has_peft_s_own_fields_and_values(tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    theirs = peft.get_peft_model(tiny_causal_lm("llama"), config)
    theirs.save_pretrained(tmp_path / "theirs")
    write_peft(
        tmp_path / "ours", read_peft(tmp_path / "theirs").tokens,
        base_model_name=None, num_layers=2, num_attention_heads=4,
    )  # fmt: skip
    ours, expected = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")
    )
    assert ours == {**expected, "peft_version": ours["peft_version"]}
    for name in ("ours", "theirs"):
        assert (tmp_path / name / "adapter_model.safetensors").exists()
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("ours", "theirs")]
    assert weights[0] == weights[1]


def test_the_smallest_config_is_enough(folder: Path) -> None:
    expected = read_peft(folder).tokens
    small = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    (folder / "adapter_config.json").write_text(json.dumps(small))
    prompt = read_peft(folder)
    assert torch.equal(prompt.tokens, expected)
    assert prompt.config == small


def test_adapters_in_sub_folders_are_found_by_name_or_alone(tmp_path: Path) -> None:
    model = tiny_causal_lm("llama")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    theirs = peft.get_peft_model(model, config, adapter_name="mood")
    theirs.save_pretrained(tmp_path)
    assert read_peft(tmp_path).tokens.shape == (5, 48)
    write_peft(tmp_path / "topic", torch.zeros(2, 48), **MODEL)
    with pytest.raises(PromptFileError, match="several adapters; pass adapter= one of: mood, topic"):
        read_peft(tmp_path)
    assert read_peft(tmp_path, adapter="topic").tokens.shape == (2, 48)
    with pytest.raises(PromptFileError, match="no adapter 'taste'; it has: mood, topic"):
        read_peft(tmp_path, adapter="taste")


def test_a_trained_head_is_handed_over_too(folder: Path) -> None:
    head = {"base_model.classifier.weight": torch.ones(3, 48)}
    weights = {"prompt_embeddings": torch.zeros(5, 48), **head}
    safetensors.torch.save_file(weights, folder / "adapter_model.safetensors")
    assert read_peft(folder).other_tensors.keys() == head.keys()


def test_a_bin_file_is_read_without_running_what_is_in_it(folder: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (folder / "pwned",))

    tokens = torch.randn(5, 48)
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"prompt_embeddings": tokens}, folder / "adapter_model.bin")
    assert torch.equal(read_peft(folder).tokens, tokens)
    for content in ({"prompt_embeddings": tokens, "x": Attack()}, Attack()):
        torch.save(content, folder / "adapter_model.bin")
        with pytest.raises(PromptFileError, match=r"adapter_model\.bin cannot be read"):
            read_peft(folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(PromptFileError, match=r"adapter_model\.bin cannot be read"):
        read_peft(folder)
    torch.save([tokens], folder / "adapter_model.bin")
    with pytest.raises(PromptFileError, match="something other than tensors by name"):
        read_peft(folder)
    assert not (folder / "pwned").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type 'LORA'; the types that can be read are: PROMPT_TUNING"),
        ({"peft_type": None}, "peft_type None"),
        ({"peft_type": ["PROMPT_TUNING"]}, "the types that can be read"),
        ({"num_virtual_tokens": 6}, r"shape \(5, 48\).* asks for floating point of shape \(6, 48\)"),
        ({"num_virtual_tokens": "5"}, "num_virtual_tokens is '5'"),
        ({"num_virtual_tokens": None}, "num_virtual_tokens is None"),
        ({"token_dim": 32}, r"shape \(5, 32\)"),
        ({"num_transformer_submodules": 2}, r"shape \(10, 48\): 5 virtual tokens for encoder and decoder"),
        ({"num_transformer_submodules": "x"}, "num_transformer_submodules is 'x'"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(PromptFileError, match=message):
        read_peft(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no tensor 'prompt_embeddings', only nothing"),
        ({"lora_A": torch.zeros(1)}, "only lora_A"),
        ({"prompt_embeddings": torch.zeros(5)}, r"shape \(5,\)"),
        ({"prompt_embeddings": torch.tensor(0.0)}, r"shape \(\)"),
        ({"prompt_embeddings": torch.zeros(5, 48, dtype=torch.int32)}, r"torch\.int32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder: Path, tensors: dict[str, Tensor], message: str) -> None:
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(PromptFileError, match=message):
        read_peft(folder)


def test_folders_that_hold_no_peft_prompt_are_told_apart(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(PromptFileError, match="does not exist"):
        read_peft(tmp_path / "nowhere")
    with pytest.raises(PromptFileError, match="is a file"):
        read_peft(folder / "README.md")
    (tmp_path / "empty").mkdir()
    with pytest.raises(PromptFileError, match=r"no adapter_config\.json.*found nothing"):
        read_peft(tmp_path / "empty")
    save(tmp_path / "mood", sample())
    with pytest.raises(PromptFileError, match=r"read it with sp\.load"):
        read_peft(tmp_path / "mood")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(PromptFileError, match=r"no adapter_model\.safetensors"):
        read_peft(folder)


@pytest.mark.parametrize(
    ("tokens", "changes", "message"),
    [
        (torch.zeros(48), {}, r"shape \(48,\); PROMPT_TUNING holds floating-point \(P, d\)"),
        (torch.zeros(0, 48), {}, r"shape \(0, 48\)"),
        (torch.zeros(2, 48, dtype=torch.int64), {}, "int64"),
        (torch.zeros(2, 48), {"task_type": "CAUSAL"}, "task_type is 'CAUSAL'; PEFT knows CAUSAL_LM"),
    ],
)
def test_what_peft_could_not_read_is_not_written(
    tmp_path: Path, tokens: Tensor, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_peft(tmp_path / "prompt", tokens, **{**MODEL, **changes})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_overwriting_is_asked_for(folder: Path) -> None:
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_peft(folder, torch.zeros(2, 48), **MODEL)
    write_peft(folder, torch.zeros(2, 48), **MODEL, overwrite=True)
    assert read_peft(folder).tokens.shape == (2, 48)


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_damage_gives_an_error_or_a_prompt(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("peft") / "prompt"
    write_peft(folder, torch.zeros(2, 4), **MODEL)
    path = folder / data.draw(st.sampled_from(["adapter_config.json", "adapter_model.safetensors"]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        read = read_peft(folder)
        assert (read.prefix if read.tokens is None else read.tokens).dim() == 2
    except PromptFileError:
        return
