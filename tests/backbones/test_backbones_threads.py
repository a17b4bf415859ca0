"""Threads that use one backbone answer as each alone, and nothing of ours stands on the user's model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from threading import Barrier, Thread
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

import softprompt as sp
from softprompt.backbones.base import Backbone
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.backbones.causal.padded import padded_logits
from softprompt.backbones.encoder_decoder import EncoderDecoderBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.surroundings import own_settings
from tests.tiny.dual import TASK as COMPARED
from tests.tiny.dual import dual_backbone
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import tiny_causal_lm, tiny_seq2seq, tiny_tokenizer
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tiny.vision import ROWS as PICTURES
from tests.tiny.vision import TASK as SEEN
from tests.tiny.vision import vision_backbone

FLOAT = torch.float32

# So few steps teach nothing. Filters of warnings hold for all threads, so none is set within one.
pytestmark = pytest.mark.filterwarnings("ignore::softprompt.errors.SoftpromptWarning")


def t5_backbone() -> EncoderDecoderBackbone:
    return EncoderDecoderBackbone(tiny_seq2seq("t5", dtype=FLOAT).requires_grad_(False), tiny_tokenizer())


CLOZE = sp.TextClassification("{text} {mask}", labels={"neg": " bad", "pos": " good"})

CASES: dict[str, tuple[Callable[[], Backbone], Any, Any, list[dict[str, Any]]]] = {
    "causal": (lambda: tiny_backbone(dtype=FLOAT), TASK, sp.PromptTuning(length=3), ROWS),
    "causal-prefix": (lambda: tiny_backbone(dtype=FLOAT), TASK, sp.PrefixTuning(length=2), ROWS),
    "masked": (lambda: encoder_backbone("bert", dtype=FLOAT), CLOZE, sp.PTuningV2(length=2), ROWS),
    "encoder-decoder": (t5_backbone, TASK, sp.PrefixTuning(length=2), ROWS),
    "vision": (lambda: vision_backbone(dtype=FLOAT), SEEN, sp.VPT(length=2, dropout=0.1), PICTURES),
    "dual": (lambda: dual_backbone(dtype=FLOAT), COMPARED, sp.CoOp(length=2), PICTURES),
}


def fitted(case: str, backbone: Backbone | None = None) -> sp.TunedPrompt:
    make, task, method, rows = CASES[case]
    return sp.fit(backbone or make(), task, method, rows[:6], steps=2, batch_size=3, warmup=0, progress=False)


def everything_on(model: nn.Module) -> list[tuple[Any, ...]]:
    """What stands on a model: the attributes of each module and config by identity, and its hooks."""
    found: list[tuple[Any, ...]] = []
    for module in model.modules():
        found.append((id(module), type(module), *((k, id(v)) for k, v in sorted(module.__dict__.items()))))
        found.append(tuple(len(v) for k, v in sorted(module.__dict__.items()) if "_hooks" in k))
        if hasattr(module, "config"):
            found.append((copy.deepcopy(module.config.to_dict()), module.config._attn_implementation))
    return found


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return bool(one == other)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_threads_that_predict_fit_and_generate_find_what_each_finds_alone(case: str) -> None:
    backbone, (_, _, _, rows) = CASES[case][0](), CASES[case]
    before = everything_on(backbone.model)
    tuned = fitted(case, backbone)
    inputs = rows[:3]
    context = EncodedRow((5, 6, 7, 8))
    writes = backbone.spec.family in ("causal-lm", "encoder-decoder")

    def predict() -> Any:
        return [tuned.predict([one])[0] for one in inputs]

    def fit() -> Any:
        return {name: tensor.clone() for name, tensor in fitted(case, backbone).state().items()}

    def write() -> Any:
        return backbone.generate([context], PromptOutput(), max_new_tokens=3) if writes else predict()

    work = [predict, write, fit, predict] * 2
    alone = [job() for job in work[:4]] * 2
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda job: job(), work))
    assert [equal(one, other) for one, other in zip(found, alone, strict=True)] == [True] * 8
    assert everything_on(backbone.model) == before


def test_predictions_overlap_and_the_user_s_own_call_runs_between_them() -> None:
    backbone = tiny_backbone(dtype=FLOAT)
    tuned, ids = fitted("causal", backbone), torch.tensor([[5, 6, 7]])
    model: Any = backbone.model
    alone, own = tuned.predict(["film"]), model(input_ids=ids).logits
    between: list[Tensor] = []
    # Both are inside the attention of the last layer when the user's own call runs.
    barrier = Barrier(2, action=lambda: between.append(model(input_ids=ids).logits), timeout=20)
    attention: nn.Module = model.model.layers[-1].self_attn.o_proj

    def meet(module: nn.Module, _: Any) -> None:
        if module is not attention:  # a view of it
            barrier.wait()

    handle = attention.register_forward_pre_hook(meet)
    found: list[Any] = []
    threads = [Thread(target=lambda: found.append(tuned.predict(["film"]))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handle.remove()
    assert found == [alone, alone]
    assert len(between) == 1
    assert torch.equal(between[0], own)


@pytest.mark.parametrize("case", ["causal", "masked", "encoder-decoder", "vision"])
def test_after_an_error_in_a_layer_the_model_is_as_it_was(case: str) -> None:
    tuned = fitted(case)
    model, rows = tuned.backbone.model, CASES[case][3]
    alone, before = tuned.predict(rows[:1]), everything_on(model)

    def stop(*_: Any) -> None:
        raise RuntimeError("stop")

    handle = [module for module in model.modules() if isinstance(module, nn.Linear)][
        -2
    ].register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="stop"):
        tuned.predict(rows[:1])
    handle.remove()
    assert everything_on(model) == before
    assert tuned.predict(rows[:1]) == alone


def test_a_model_in_training_mode_predicts_without_dropout_and_stays_in_it() -> None:
    model = tiny_causal_lm("gpt2", dtype=FLOAT)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    tuned = fitted("causal", sp.load_backbone(model, tokenizer=tiny_tokenizer()))
    alone = tuned.predict(["film", "dog"])
    model.train()
    assert tuned.predict(["film", "dog"]) == alone
    assert all(module.training for module in model.modules())


def test_a_model_that_was_cast_or_changed_after_loading_is_run_as_it_is_now() -> None:
    row, prompt = EncodedRow((5, 6, 7), ((8,), (9,))), PromptOutput()
    backbone = tiny_backbone(dtype=FLOAT)
    model: Any = backbone.model
    other: Any = tiny_causal_lm("llama", seed=3).requires_grad_(False)
    backbone.score([row], prompt)
    model.to(torch.float64)
    for change in (
        lambda: None,
        lambda: nn.init.normal_(model.lm_head.weight),
        lambda: setattr(model.model.layers[0], "self_attn", other.model.layers[0].self_attn),
        lambda: model.set_attn_implementation("eager"),
    ):
        change()
        expected = padded_logits(model, [row], prompt).token_log_likelihoods()
        found = backbone.score([row], prompt).token_log_likelihoods()
        assert found.dtype == torch.float64
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-5
        )  # eager attention has a float32 softmax


def test_hooks_of_the_user_see_softprompt_s_calls_too() -> None:
    backbone = tiny_backbone(dtype=FLOAT)
    model: Any = backbone.model
    backbone.score([EncodedRow((5, 6), ((8,),))], PromptOutput())
    seen: list[Any] = []
    handle = model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    backbone.score([EncodedRow((5, 6), ((8,),))], PromptOutput())
    handle.remove()
    backbone.score([EncodedRow((5, 6), ((8,),))], PromptOutput())
    assert seen == [1]


def test_predict_inside_attach_answers_as_outside() -> None:
    tuned = fitted("causal")
    alone = tuned.predict(["film"])
    with sp.attach(tuned.backbone.model, tuned):
        assert tuned.predict(["film"]) == alone


SETTINGS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_of_torch_change_neither_what_is_learned_nor_what_is_answered(setting: str) -> None:
    backbone = tiny_backbone(dtype=FLOAT)
    expected = fitted("causal", backbone)
    answers = expected.predict(["film", "dog"])
    with SETTINGS[setting]():
        assert expected.predict(["film", "dog"]) == answers
        found = fitted("causal", backbone)
        assert found.predict(["film", "dog"]) == answers
    assert equal(found.state(), expected.state())


METHODS = [
    sp.PTuning(length=2),
    sp.ResidualPromptTuning(length=2),
    sp.DePT(length=3, rank=1),
    sp.LoRA(rank=1),
]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_default_dtype_changes_nothing(method: Any, dtype: torch.dtype) -> None:
    settings: Any = {"steps": 2, "batch_size": 3, "warmup": 0, "progress": False}
    backbone = tiny_backbone(dtype=FLOAT)
    expected = sp.fit(backbone, TASK, method, ROWS[:6], **settings)
    torch.set_default_dtype(dtype)
    try:
        found = sp.fit(backbone, TASK, method, ROWS[:6], **settings)
        answers = found.predict(["film"])
    finally:
        torch.set_default_dtype(torch.float32)
    assert equal(found.state(), expected.state())
    assert answers == expected.predict(["film"])


def test_random_numbers_of_the_caller_are_not_touched() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fitted("vision")
    assert torch.equal(torch.rand(3), expected)


def test_numbers_without_a_dtype_are_float32_inside_and_others_stay_as_they_are() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with own_settings():
            made = [torch.zeros(2), torch.tensor([0.1]), torch.full((1,), 0.5), torch.arange(3) / 2]
            kept = [torch.zeros(1, dtype=torch.float64), torch.arange(3), torch.tensor([1, 2])]
            assert nn.Linear(2, 2).weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert [x.dtype for x in made] == [torch.float32] * 4
    assert [x.dtype for x in kept] == [torch.float64, torch.int64, torch.int64]
    assert torch.equal(made[1], torch.tensor([0.1]))


def test_a_model_that_runs_its_layers_in_a_loop_computes_every_token_in_each_round() -> None:
    size: Any = {"vocab_size": 261, "hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(
        "hrm_text", **size, num_hidden_layers=3, intermediate_size=64, initializer_range=0.2, pad_token_id=0
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).double().eval().requires_grad_(False)
    rows = [EncodedRow((-1, 5, 6, 7), ((8,), (9, 10))), EncodedRow((-1, 11, 12), ((8,), (13,)))]
    prompt = PromptOutput(tokens=torch.ones(1, 1, 48, dtype=torch.float64))
    expected = padded_logits(model, rows, prompt).token_log_likelihoods()
    for packed in (None, True):
        backbone = CausalBackbone(model, tiny_tokenizer(), packed=packed)
        found = backbone.score(rows, prompt).token_log_likelihoods()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # its norms compute in float32
