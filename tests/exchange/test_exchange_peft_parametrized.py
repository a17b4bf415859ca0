"""P-tuning and multitask prompts in PEFT's format, and what is baked to virtual tokens, against the real PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import (
    ULPT,
    LowRankPromptTuning,
    PromptFileError,
    PTuning,
    ResidualPromptTuning,
    TextClassification,
    fit,
    from_peft,
)
from softprompt.exchange import read_peft, write_peft
from softprompt.outputs import PromptOutput
from softprompt.prompts import Method
from tests.prompts.against_naive import rows_in_front
from tests.tiny.language import tiny_causal_lm, tiny_seq2seq
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import assert_equal_up_to_rounding

peft = pytest.importorskip("peft")

# PEFT 0.21.2 reads this property of transformers 5.23; nothing of ours does.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

TEXT = torch.tensor([[11, 25, 7, 300, 42, 9], [4, 8, 15, 16, 23, 42]])  # (B, T)
MODEL = {"base_model_name": None, "num_layers": 2, "num_attention_heads": 4}


def concatenated_logits(tokens: Tensor) -> Tensor:
    """The prompt in front of the text: (P, d) -> (B, P + T, V)."""
    model = tiny_causal_lm("llama")
    text = model.get_input_embeddings()(TEXT)
    prompt = tokens.to(text.dtype).expand(len(TEXT), -1, -1)
    with torch.no_grad():
        return model(inputs_embeds=torch.cat([prompt, text], dim=1)).logits


def peft_logits(model: Any, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=TEXT, **options).logits


def multitask(folder: Path, tasks: int = 3) -> Any:
    """A multitask prompt that PEFT wrote, its factors away from their tiny start."""
    config = peft.MultitaskPromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=5, num_tasks=tasks, num_ranks=2
    )
    theirs = peft.get_peft_model(tiny_causal_lm("llama"), config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "prefix_task" in name:
                parameter.normal_()
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_a_p_tuning_prompt_that_peft_wrote_gives_peft_s_logits(tmp_path: Path, encoder: str) -> None:
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=5,
        encoder_reparameterization_type=encoder,
        encoder_hidden_size=32,
    )
    theirs = peft.get_peft_model(tiny_causal_lm("llama"), config).eval()
    theirs.save_pretrained(tmp_path)
    prompt = read_peft(tmp_path)
    assert prompt.peft_type == "P_TUNING"
    assert prompt.tokens is not None
    assert prompt.tokens.shape == (5, 48)
    # PEFT computes the encoder anew for the batch, in float32.
    assert_close(concatenated_logits(prompt.tokens), peft_logits(theirs), rtol=0, atol=1e-5)


def test_a_p_tuning_prompt_written_here_gives_the_same_logits_and_has_peft_s_fields(tmp_path: Path) -> None:
    tokens = torch.randn(7, 48)
    write_peft(tmp_path / "ours", tokens, **MODEL, peft_type="P_TUNING")
    theirs = peft.PeftModel.from_pretrained(tiny_causal_lm("llama"), tmp_path / "ours").eval()
    assert_equal_up_to_rounding(peft_logits(theirs), concatenated_logits(tokens))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, expected = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")
    )
    assert ours == {**expected, "peft_version": ours["peft_version"]}
    again = read_peft(tmp_path / "theirs").tokens
    assert again is not None
    assert torch.equal(again, tokens)


def test_each_task_of_a_multitask_prompt_gives_peft_s_logits(tmp_path: Path) -> None:
    theirs = multitask(tmp_path)
    for task in range(3):
        tokens = read_peft(tmp_path, peft_task=task).tokens
        assert tokens is not None
        expected = peft_logits(theirs, task_ids=torch.full((len(TEXT),), task))
        assert_close(concatenated_logits(tokens), expected, rtol=0, atol=1e-5)


def test_which_task_must_be_said_where_there_are_several(tmp_path: Path) -> None:
    multitask(tmp_path / "three")
    for task in (None, 3, -1):
        with pytest.raises(PromptFileError, match=f"for 3 tasks and peft_task is {task}; expected 0 to 2"):
            read_peft(tmp_path / "three", peft_task=task)
    multitask(tmp_path / "one", tasks=1)
    tokens = read_peft(tmp_path / "one").tokens
    assert tokens is not None
    assert tokens.shape == (5, 48)
    write_peft(tmp_path / "plain", tokens, **MODEL)
    with pytest.raises(PromptFileError, match="holds one prompt, not one for each task"):
        read_peft(tmp_path / "plain", peft_task=0)
    tuned = from_peft(tmp_path / "three", tiny_backbone(), TASK, peft_task=1)
    assert tuned.module.length == 5
    tuned.export_peft(tmp_path / "back")  # as a prompt of its own
    back = read_peft(tmp_path / "back")
    assert back.peft_type == "PROMPT_TUNING"
    assert back.tokens is not None
    assert torch.equal(back.tokens, tuned.module.state_dict()["tokens"])


def test_a_multitask_prompt_whose_tensors_do_not_fit_is_refused(tmp_path: Path) -> None:
    multitask(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(path)
    for changes in (
        {"prefix_task_cols": torch.zeros(3, 4, 2)},
        {"prefix_task_rows": torch.zeros(3, 2, 32)},
        {"prefix_task_rows": torch.zeros(2, 2, 48)},
        {"prefix_task_cols": torch.zeros(0, 5, 2), "prefix_task_rows": torch.zeros(0, 2, 48)},
    ):
        safetensors.torch.save_file({**tensors, **changes}, path)
        with pytest.raises(PromptFileError, match=r"needs prefix_task_cols \(tasks, 5, rank\)"):
            read_peft(tmp_path)
    safetensors.torch.save_file({"prompt_embeddings": tensors["prompt_embeddings"]}, path)
    with pytest.raises(
        PromptFileError, match=r"found \{'prefix_task_cols': None, 'prefix_task_rows': None\}"
    ):
        read_peft(tmp_path)


def test_prompts_of_several_tasks_written_as_one_multitask_prompt_give_peft_each_its_logits(
    tmp_path: Path,
) -> None:
    tokens = torch.randn(3, 5, 48)
    write_peft(tmp_path / "ours", tokens, **MODEL, peft_type="MULTITASK_PROMPT_TUNING")
    theirs = peft.PeftModel.from_pretrained(tiny_causal_lm("llama"), tmp_path / "ours").eval()
    for task in range(3):
        found = peft_logits(theirs, task_ids=torch.full((len(TEXT),), task))
        assert_equal_up_to_rounding(found, concatenated_logits(tokens[task]))
        again = read_peft(tmp_path / "ours", peft_task=task).tokens
        assert again is not None
        assert torch.equal(again, tokens[task])
    theirs.save_pretrained(tmp_path / "theirs")
    ours, expected = (
        json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("ours", "theirs")
    )
    assert ours == {**expected, "peft_version": ours["peft_version"]}


def test_a_multitask_prompt_of_an_encoder_decoder_has_no_one_meaning_and_is_refused(tmp_path: Path) -> None:
    kind: Any = {"peft_type": "MULTITASK_PROMPT_TUNING", "task_type": "SEQ_2_SEQ_LM"}
    with pytest.raises(ValueError, match="in front of the decoder in training and is left out in generation"):
        write_peft(tmp_path / "ours", torch.zeros(2, 4, 48), **MODEL, **kind)
    config = peft.MultitaskPromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4, num_tasks=2)
    peft.get_peft_model(tiny_seq2seq("bart"), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(PromptFileError, match="save a PROMPT_TUNING for each task"):
        read_peft(tmp_path / "theirs", peft_task=0)


def test_what_is_no_prompt_for_each_task_is_no_multitask_prompt(tmp_path: Path) -> None:
    kind: Any = "MULTITASK_PROMPT_TUNING"
    with pytest.raises(
        ValueError, match=r"shape \(2, 48\); MULTITASK_PROMPT_TUNING holds .* a prompt for each"
    ):
        write_peft(tmp_path / "p", torch.zeros(2, 48), **MODEL, peft_type=kind)
    kind = "PREFIX_TUNINGS"
    with pytest.raises(ValueError, match="that can be written are: PROMPT_TUNING, P_TUNING"):
        write_peft(tmp_path / "p", torch.zeros(2, 48), **MODEL, peft_type=kind)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        PTuning(length=4),
        ResidualPromptTuning(length=4, bottleneck=16),
        LowRankPromptTuning(length=4, rank=2),
        ULPT(length=4, rank=2),
    ],
    ids=str,
)
def test_what_bakes_to_virtual_tokens_goes_to_peft_and_comes_back(method: Method, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    task = TextClassification("{soft}{text} sentiment", labels=TASK.labels)
    tuned = fit(backbone, task, method, ROWS, steps=2, progress=False)
    tuned.export_peft(tmp_path / "p")
    read = read_peft(tmp_path / "p")
    assert read.peft_type == ("P_TUNING" if isinstance(method, PTuning) else "PROMPT_TUNING")
    tokens = tuned.module().tokens
    assert tokens is not None
    theirs = peft.PeftModel.from_pretrained(tiny_causal_lm("llama"), tmp_path / "p").eval()
    assert_equal_up_to_rounding(peft_logits(theirs), concatenated_logits(tokens[0]))
    back = from_peft(tmp_path / "p", backbone, task)
    rows = rows_in_front(4)
    with torch.no_grad():
        expected = backbone.score(rows, PromptOutput(tokens=tokens)).logits
        assert torch.equal(backbone.score(rows, back.module()).logits, expected)
