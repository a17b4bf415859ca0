"""Baselines that change weights of a copy: what is trained, what is shared, what stays bit-identical; saved and loaded."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import Adapter, BitFit, LoRA, SequenceClassification, fit, load
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.baselines._layers import transformer_layers
from softprompt.baselines.adapter import Bottleneck, sublayer_outputs, width_of
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import Method
from softprompt.store import PromptFileError
from softprompt.tasks.base import Task
from tests.tiny.encoders import ENCODERS, Encoder, tiny_encoder
from tests.tiny.language import ARCHITECTURES, Architecture
from tests.tiny.task import ROWS, TASK, tiny_backbone

SHORT: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-3, "progress": False}
TEXTS = [row["text"] for row in ROWS]
HEAD = SequenceClassification("{text} sentiment", labels=["neg", "pos"])
unlearned = pytest.mark.filterwarnings("ignore:every validation row was given:softprompt.SoftpromptWarning")
METHODS: list[Method] = [BitFit(), Adapter(places="houlsby"), Adapter(bottleneck=4), LoRA(rank=2)]
each_method = pytest.mark.parametrize("method", METHODS, ids=["bitfit", "houlsby", "pfeiffer", "lora"])


def assert_untouched(backbone: CausalBackbone, before: dict[str, Tensor]) -> None:
    after = backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert all(p.grad is None and not p.requires_grad for p in backbone.model.parameters())
    for module in backbone.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)
    assert not hasattr(backbone.model, "peft_config")


def scores(backbone: CausalBackbone) -> Tensor:
    rows = [EncodedRow((20, 21, 30 + i), ((40,), (41, 42)), gold=0) for i in range(3)]
    with torch.no_grad():
        return backbone.score(rows, PromptOutput()).token_log_likelihoods()


@pytest.mark.slow
@unlearned
@each_method
@pytest.mark.parametrize("task", [TASK, HEAD], ids=["words", "head"])
@pytest.mark.parametrize("architecture", ["gpt2", "opt"])
def test_every_trained_tensor_moves_and_the_given_backbone_stays(
    method: Method, task: Task, architecture: Architecture
) -> None:
    backbone = tiny_backbone(architecture, dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    start = {
        f"backbone.{name}": p.detach().clone()
        for name, p in method.prepare(backbone, torch.Generator().manual_seed(0)).model.named_parameters()
    }
    saving = {"gradient_checkpointing": architecture == "opt"}
    tuned = fit(backbone, task, method, ROWS, ROWS[:4], evaluate_every=1, **SHORT, **saving)
    last = fit(backbone, task, method, ROWS, **SHORT, **saving)
    assert_untouched(backbone, before)
    changed = {name: t for name, t in last.trained().items() if name.startswith("backbone.")}
    assert changed
    for name, tensor in changed.items():
        # The keys' bias takes part in no softmax: its gradient is rounding.
        if not name.endswith("k_proj.bias"):
            assert not torch.equal(tensor, start[name]), name
        assert tensor.dtype == torch.float32
    given = {id(p) for p in backbone.model.parameters()}
    own = dict(last.backbone.model.named_parameters())
    for name, parameter in own.items():
        assert parameter.requires_grad == (f"backbone.{name}" in changed)
        assert (id(parameter) in given) != parameter.requires_grad  # frozen tensors are shared, not copied
    assert tuned.recipe["trained_parameters"] == sum(
        t.numel() for name, t in last.trained().items() if not name.startswith("prompt.")
    )


@pytest.mark.slow
@each_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_copy_predicts_what_the_saved_one_did(
    method: Method, dtype: torch.dtype, tmp_path: Path
) -> None:
    backbone = tiny_backbone("gpt2", dtype=dtype)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, HEAD, method, ROWS, **SHORT)
    assert all(t.dtype == torch.float32 for t in tuned.trained().values())
    again = load(tuned.save(tmp_path / "saved"), backbone)
    assert again.predict(TEXTS) == tuned.predict(TEXTS)
    assert again.trained().keys() == tuned.trained().keys()
    assert_untouched(backbone, before)
    # A few weights of a frozen model, not the model.
    assert (tmp_path / "saved" / "prompt.safetensors").stat().st_size < sum(
        p.numel() * 4 for p in backbone.model.parameters()
    ) / 3


@pytest.mark.slow
@each_method
def test_the_same_seed_trains_the_same_weights_and_the_callers_randomness_is_left_alone(
    method: Method,
) -> None:
    backbone = tiny_backbone("gpt2")
    state = torch.get_rng_state()
    one, again, other = (
        fit(backbone, TASK, method, ROWS, seed=seed, **SHORT).trained() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, again[name]) for name, tensor in one.items())
    assert any(not torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.slow
@each_method
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_untrained_it_is_the_model_itself(method: Method, architecture: Architecture) -> None:
    backbone = tiny_backbone(architecture)
    if isinstance(method, BitFit) and architecture in ("llama", "qwen3", "mistral", "gemma3_text"):
        with pytest.raises(ValueError, match="has no biases"):
            method.prepare(backbone, torch.Generator())
        return
    prepared = method.prepare(backbone, torch.Generator())
    assert isinstance(prepared, CausalBackbone)
    assert torch.equal(scores(prepared), scores(backbone))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in prepared.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    packed = scores(prepared)
    assert (packed - scores(backbone)).abs().max() > 1e-4
    padded = CausalBackbone(prepared.model, backbone.tokenizer, name="tiny", packed=False)
    assert_close(packed, scores(padded), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
@each_method
def test_the_copy_keeps_nothing_of_the_model_twice(method: Method) -> None:
    backbone = tiny_backbone("gpt2")
    gc.collect()
    own = method.prepare(backbone, torch.Generator()).model
    shared = {p.data_ptr() for p in backbone.model.parameters()}
    new = [p for p in own.parameters() if p.data_ptr() not in shared]
    assert new == [p for p in own.parameters() if p.requires_grad]


@each_method
def test_a_model_that_is_not_frozen_is_refused(method: Method) -> None:
    backbone = tiny_backbone("gpt2")
    backbone.model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"freeze it with model.requires_grad_\(False\)"):
        method.prepare(backbone, torch.Generator())


def test_a_saved_copy_of_another_layout_says_which_weight_it_misses(tmp_path: Path) -> None:
    backbone = tiny_backbone("gpt2")
    tuned = fit(backbone, TASK, Adapter(places="houlsby"), ROWS, **SHORT)
    object.__setattr__(tuned, "method", Adapter(places="pfeiffer"))
    with pytest.raises(PromptFileError, match=r"the backbone that adapter prepares has no weight '.*adapter"):
        load(tuned.save(tmp_path / "saved"), backbone)


# --- BitFit -------------------------------------------------------------------------------------------------


def test_bitfit_trains_every_bias_and_nothing_else() -> None:
    backbone = tiny_backbone("gpt_neox", dtype=torch.float32)
    tuned = fit(backbone, TASK, BitFit(), ROWS, **SHORT)
    named = {f"backbone.{name}" for name, _ in backbone.model.named_parameters() if name.endswith("bias")}
    assert {name for name in tuned.trained() if name.startswith("backbone.")} == named


# --- adapters -----------------------------------------------------------------------------------------------


def test_an_adapter_starts_as_no_change_and_both_of_its_layers_learn() -> None:
    adapter = Bottleneck(8, 3, torch.float64, torch.device("cpu"), torch.Generator().manual_seed(0))
    assert adapter.down.weight.std().item() == pytest.approx(0.01, rel=0.5)
    states = torch.randn(5, 8, dtype=torch.float64)
    assert torch.equal(adapter(states), torch.zeros_like(states))
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    moved: list[bool] = []
    for _ in range(2):
        before = adapter.down.weight.detach().clone()
        optimizer.zero_grad()
        (adapter(states) - states).square().sum().backward()
        optimizer.step()
        moved.append(not torch.equal(before, adapter.down.weight))
    assert moved == [False, True]  # W_down as soon as W_up is not zero
    naive = torch.nn.functional.gelu(states @ adapter.down.weight.T + adapter.down.bias)
    assert_close(adapter(states), naive @ adapter.up.weight.T + adapter.up.bias)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ENCODERS])
def test_the_places_of_adapters_are_the_ends_of_the_sublayers(architecture: Architecture | Encoder) -> None:
    model = (
        tiny_encoder(architecture)  # type: ignore[arg-type]
        if architecture in ENCODERS
        else tiny_backbone(architecture).model  # type: ignore[arg-type]
    )
    names = {id(module): name for name, module in model.named_modules()}
    layers = transformer_layers(model)
    assert len(layers) == (1 if architecture == "albert" else model.config.num_hidden_layers)
    ends = {
        "o_proj",
        "c_proj",
        "out_proj",
        "dense",
        "Wo",
        "out_lin",
        "down_proj",
        "fc2",
        "dense_4h_to_h",
        "lin2",
        "ffn_output",
    }
    for layer in layers:
        attention, feed_forward = sublayer_outputs(layer, width_of(model))
        assert len(attention) == 1
        assert "att" in names[id(attention[0])]
        assert "att" not in names[id(feed_forward)].replace("albert", "")
        assert {names[id(m)].rpartition(".")[2] for m in (attention[0], feed_forward)} <= ends


def test_a_layer_without_a_feed_forward_network_is_refused() -> None:
    layer = nn.Module()
    layer.attention = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="adapters cannot be placed"):
        sublayer_outputs(layer, 8)
