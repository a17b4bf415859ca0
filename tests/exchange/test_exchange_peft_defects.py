"""What PEFT 0.21.2 gets wrong, and is right here: what no other test shows, and that docs/peft.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.testing import assert_close
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedConfig

from softprompt import LoRA, PromptTuning, PTuningV2, fit, load_backbone
from softprompt.backbones.engine.generating import SET_HERE
from softprompt.baselines import merged
from softprompt.model import carrying, stack_prompts
from softprompt.outputs import EncodedRow, PromptOutput
from tests.backbones.encoder_decoder.test_backbone import FRONT, START, backbone_of, virtual_tokens
from tests.tiny.image_text import tiny_image_text_backbone
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone

ROOT = Path(__file__).parents[2]
SHORT: dict[str, Any] = {"steps": 2, "batch_size": 8, "progress": False}


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", page)
    assert len(named) >= 40
    missing = [
        f"{file}::{test}"
        for file, test in named
        if not (ROOT / file).is_file()
        or not re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert not missing
    numbers = [int(n) for n in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)]
    assert numbers == list(range(1, 41))


@pytest.mark.parametrize("option", ["assistant_model", "prompt_lookup_num_tokens"])
def test_what_cannot_run_behind_a_prompt_is_refused_by_name(option: str) -> None:
    prompt = PromptOutput(tokens=torch.zeros(1, 1, 48).double())
    for backbone in (tiny_backbone(), backbone_of("t5")):
        with pytest.raises(ValueError, match=f"'{option}'.*cannot be used behind a prompt"):
            backbone.generate([EncodedRow((-1, 20))], prompt, **{option: 3})


GIVEN = {
    "position_ids": torch.arange(2)[None],
    "attention_mask": torch.zeros(1, 1, 2, 2),  # four dimensions
    "inputs_embeds": torch.zeros(1, 2, 48),
    "input_ids": torch.tensor([[20, 21]]),
    "past_key_values": DynamicCache(),
}


@pytest.mark.parametrize("option", sorted(SET_HERE))
@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_what_a_caller_would_place_by_hand_is_refused_by_name(architecture: str, option: str) -> None:
    backbone = tiny_backbone() if architecture == "llama" else backbone_of("t5")
    prompt = PromptOutput(tokens=torch.zeros(1, 1, 48).double())
    with pytest.raises(ValueError, match=rf"generate\(\) sets \['{option}'\] itself; remove them"):
        backbone.generate([EncodedRow((-1, 20))], prompt, **{option: GIVEN[option]})


def test_a_prompt_is_trained_on_merged_lora_weights_and_both_stay() -> None:
    backbone = tiny_backbone(dtype=torch.float32)
    lora = fit(backbone, TASK, LoRA(rank=2), ROWS, **SHORT)
    on_top = load_backbone(merged(lora.backbone.model), tokenizer=backbone.tokenizer)
    before = {name: tensor.clone() for name, tensor in on_top.model.state_dict().items()}
    start = PromptTuning(length=2)
    tuned = fit(on_top, TASK, start, ROWS, **SHORT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in on_top.model.state_dict().items())
    assert set(tuned.trained()) == {"prompt.tokens"}
    assert lora.predict(["film"])


def test_a_parameter_of_the_model_itself_is_frozen_and_not_taken_for_the_embedding() -> None:
    class Odd(LlamaForCausalLM):
        def __init__(self, config: PreTrainedConfig) -> None:
            super().__init__(config)  # type: ignore[arg-type]
            table = nn.Parameter(torch.ones(config.vocab_size, config.hidden_size))
            self._parameters = {"decoy": table, **self._parameters}  # PEFT takes the first of this size

    plain = tiny_causal_lm("llama", dtype=torch.float32)
    odd = Odd(plain.config)
    odd.load_state_dict(plain.state_dict(), strict=False)
    assert next(iter(odd.named_parameters()))[0] == "decoy"
    backbone = load_backbone(odd, tokenizer=tiny_tokenizer())
    assert torch.equal(backbone.table, plain.get_input_embeddings().weight)
    tuned = fit(backbone, TASK, PromptTuning(length=2), ROWS, **SHORT)
    assert torch.equal(odd.decoy, torch.ones_like(odd.decoy))
    assert not any(p.requires_grad for p in odd.parameters())
    assert set(tuned.trained()) == {"prompt.tokens"}


def test_every_virtual_token_of_an_encoder_decoder_is_trained() -> None:
    backbone = backbone_of("t5")
    tokens = virtual_tokens(backbone)
    backbone.score(FRONT, PromptOutput(tokens=tokens)).token_log_likelihoods().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().amax(dim=-1).min() > 0  # (1, P): all P rows, and there are no others


@pytest.mark.parametrize("architecture", ["t5", "bart"])
def test_without_its_prompt_an_encoder_decoder_generates_what_the_model_generates(architecture: str) -> None:
    backbone = backbone_of(architecture)
    ids = (20, 21, 22, 2)
    with torch.no_grad():
        backbone.generate(FRONT, PromptOutput(tokens=virtual_tokens(backbone)), max_new_tokens=3)
        theirs = backbone.model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)  # type: ignore[operator]
    ours = backbone.generate([EncodedRow(ids)], PromptOutput(), max_new_tokens=5, do_sample=False)
    expected = theirs[0, len(START[architecture]) :].tolist()  # a forced BOS is none of the new tokens here
    assert expected == ours[0][: len(expected)]
    assert len(expected) >= 4


def test_a_vision_language_model_has_the_positions_that_it_gives_itself() -> None:
    backbone = tiny_image_text_backbone("qwen2_5_vl")
    backbone.check()  # logits and words to come, behind images, against the model's own forward
    assert backbone.spec.family == "image-text-to-text"


def test_a_backbone_in_bfloat16_takes_float32_prompts_and_gives_float32_gradients() -> None:
    full, half = tiny_backbone(dtype=torch.float32), tiny_backbone(dtype=torch.bfloat16)
    rows = [EncodedRow((-1, -2, 20, 21), ((40,), (41, 42))), EncodedRow((-1, -2, 30, 31, 32, 33), ((40,),))]
    plain = [EncodedRow(row.context[2:], row.targets) for row in rows]
    tokens = (torch.randn(1, 2, 48, generator=torch.Generator().manual_seed(0)) * 0.2).requires_grad_()
    module = PTuningV2(length=3).restore(full.spec, {"rows.weight": torch.randn(3, 96)})
    for batch, prompt in ((rows, PromptOutput(tokens=tokens)), (plain, module())):
        leaves = [tokens] if prompt.tokens is not None else [*module.parameters()]
        found, expected = (b.score(batch, prompt).token_log_likelihoods() for b in (half, full))
        assert_close(found, expected, rtol=0.1, atol=0.3)
        gradients = torch.autograd.grad(found.sum(), leaves)
        assert all(g.dtype == torch.float32 and g.isfinite().all() and g.abs().max() > 0 for g in gradients)


def test_a_saved_prompt_holds_the_prompt_and_no_table(tmp_path: Path) -> None:
    tuned = fit(tiny_backbone(), TASK, PromptTuning(length=3), ROWS, **SHORT)
    tensors = safetensors.torch.load_file(tuned.save(tmp_path / "p") / "prompt.safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"prompt.tokens": (3, 48)}


def test_text_that_a_prompt_starts_from_is_tokenised_without_special_tokens() -> None:
    backbone = tiny_backbone(bos=True)
    ids = backbone.tokenizer("film good", add_special_tokens=False)["input_ids"]
    assert backbone.tokenizer("film good")["input_ids"] != ids
    method = PromptTuning(length=len(ids), init="text", init_text="film good")
    tuned = fit(backbone, TASK, method, ROWS, steps=1, learning_rate=1e-12, progress=False)
    tokens = tuned.module().tokens
    assert tokens is not None
    assert_close(tokens[0], backbone.spec.embed(torch.tensor(ids)), rtol=1e-5, atol=1e-6)


def test_rows_of_different_prompts_in_a_batch_never_get_each_others() -> None:
    backbone = tiny_backbone()
    outputs = [PromptOutput(tokens=torch.randn(1, n, 48, dtype=torch.float64)) for n in (1, 3)]
    rows = [EncodedRow((*(-1 - k for k in range(n)), 20, 21), ((40,),)) for n in (1, 3)]
    together = backbone.score([rows[0], *carrying(rows[1:], 1)], stack_prompts(outputs)).logits
    for logits, row, output in zip(together, rows, outputs, strict=True):
        assert_close(logits, backbone.score([row], output).logits[0], rtol=1e-10, atol=1e-10)
