"""Partial tuning: the last layers of a copy train as in the plain model, everything below is shared and stays."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import (
    Adapter,
    BitFit,
    FullTuning,
    LoRA,
    PartialTuning,
    SequenceClassification,
    fit,
    load,
)
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.baselines._copies import NoPrompt
from softprompt.baselines._layers import last_layers, layer_lists
from softprompt.images import POOLINGS
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import vision as naive
from tests.tiny.encoders import ENCODERS, Encoder, encoder_backbone, tiny_encoder
from tests.tiny.language import ARCHITECTURES, SEQ2SEQ, Architecture, Seq2Seq, tiny_seq2seq
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tiny.vision import LAYERS, PATCHES, TOWERS, Tower, images, tiny_tower, vision_backbone
from tests.tiny.vision import ROWS as IMAGES
from tests.tiny.vision import TASK as COLOURS

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False}
HEAD = SequenceClassification("{text} sentiment", labels=["neg", "pos"])
BEHIND = {"bart": [], "whisper": ["layer_norm"], "t5": ["final_layer_norm"]}


def gradients(states: Tensor, weights: Tensor, model: torch.nn.Module) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found = torch.autograd.grad((states * weights).sum(), list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tower", "read"),
    [(tower, "class") for tower in TOWERS if tower != "siglip"]
    + [("siglip", "pooler"), ("siglip", "mean"), ("dinov2", "mean")],
)
@pytest.mark.parametrize(
    "method",
    [
        PartialTuning(),
        PartialTuning(layers=2),
        FullTuning(),
        BitFit(),
        Adapter(bottleneck=3),
        Adapter(bottleneck=3, places="houlsby"),
        LoRA(rank=2, targets="all-linear"),
    ],
    ids=str,
)
def test_states_and_gradients_are_those_of_the_plain_model(method: NoPrompt, tower: Tower, read: str) -> None:
    backbone = vision_backbone(tower)
    own = method.prepare(backbone, torch.Generator())
    if isinstance(method, FullTuning):  # it trains in float32
        own = backbone.with_model(own.model.double())
    moved = torch.Generator().manual_seed(1)
    with torch.no_grad():  # adapters and LoRA start as no change
        for parameter in own.model.parameters():
            if parameter.requires_grad:
                parameter.add_(
                    torch.randn(parameter.shape, generator=moved, dtype=parameter.dtype), alpha=0.1
                )
    pixels = images(3)
    rows = [EncodedRow((), read=(POOLINGS.index(read),), media=image) for image in pixels]  # type: ignore[arg-type]
    plain = copy.deepcopy(own.model)
    found = own.states(rows, PromptOutput())
    expected = torch.stack([naive.state(plain, x, PATCHES, read=read) for x in pixels])
    assert_close(found, expected, **CLOSE)
    weights = torch.randn_like(found)
    got, want = gradients(found, weights, own.model), gradients(expected, weights, plain)
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        assert_close(got[name], gradient, **CLOSE, msg=name)


@pytest.mark.parametrize("k", [1, 2, LAYERS])
@pytest.mark.parametrize("tower", TOWERS)
def test_the_last_k_layers_and_the_last_norm_are_trained(tower: Tower, k: int) -> None:
    backbone = vision_backbone(tower)
    own = PartialTuning(layers=k).prepare(backbone, torch.Generator())
    assert isinstance(own, VisionBackbone)
    _, layers, after = naive.parts(own.model)
    wanted = {id(p) for module in (*layers[-k:], after) for p in module.parameters()}
    given = {id(p) for p in backbone.model.parameters()}
    for parameter in own.model.parameters():
        assert parameter.requires_grad == (id(parameter) in wanted)
        assert (id(parameter) in given) != parameter.requires_grad  # frozen tensors are shared, not copied


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *ENCODERS, *SEQ2SEQ])
def test_the_norm_behind_the_last_layer_is_found(architecture: Architecture | Encoder | Seq2Seq) -> None:
    if architecture in ENCODERS:
        model = tiny_encoder(architecture)  # type: ignore[arg-type]
    elif architecture in SEQ2SEQ:
        model = tiny_seq2seq(architecture)  # type: ignore[arg-type]
    else:
        model = tiny_backbone(architecture).model  # type: ignore[arg-type]
    names = {id(module): name for name, module in model.named_modules()}
    if architecture == "albert":
        with pytest.raises(ValueError, match="with the weights of 1"):
            last_layers(model, 1)
        return
    layers, norms = last_layers(model, 1)
    (own, *_) = reversed(layer_lists(model))
    assert [names[id(layer)] for layer in layers] == [f"{own}.{len(model.get_submodule(own)) - 1}"]  # type: ignore[arg-type]
    found = [names[id(norm)].rpartition(".")[2] for norm in norms]
    match architecture:
        case "gpt2":
            assert found == ["ln_f"]
        case "opt" | "gpt_neox":
            assert found == ["final_layer_norm"]
        case "modernbert":
            assert found == ["final_norm"]
        case "bert" | "roberta" | "distilbert" | "deberta-v2":
            assert found == []  # each layer ends with its own
        case "t5" | "bart" | "whisper":
            assert found == BEHIND[architecture]
        case _:
            assert found == ["norm"]


@pytest.mark.filterwarnings("ignore:every validation:softprompt.SoftpromptWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_trained_moves_and_is_all_that_is_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=dtype)
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, COLOURS, PartialTuning(), IMAGES, **SHORT)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in backbone.model.parameters())
    assert not any(module.training for module in tuned.backbone.model.modules())
    changed = {
        n.removeprefix("backbone."): t for n, t in tuned.trained().items() if n.startswith("backbone.")
    }
    assert changed.keys() == {
        name for name in before if name.startswith(("layers.2.", "layernorm.", "encoder.layer.2."))
    }
    for name, tensor in changed.items():
        assert tensor.dtype == torch.float32
        if "k_proj.bias" not in name:  # takes part in no softmax: its gradient is rounding
            assert not torch.equal(tensor, before[name].float()), name
    again = load(tuned.save(tmp_path / "saved"), backbone)
    inputs = [row["image"] for row in IMAGES]
    assert again.predict(inputs) == tuned.predict(inputs)
    assert again.trained().keys() == tuned.trained().keys()


def test_a_copy_that_was_trained_in_bfloat16_is_loaded_in_float32(tmp_path: Path) -> None:
    tuned = fit(vision_backbone(dtype=torch.bfloat16), COLOURS, PartialTuning(), IMAGES, **SHORT)
    again = load(tuned.save(tmp_path / "saved"), vision_backbone(dtype=torch.bfloat16))
    wide = VisionBackbone(
        tiny_tower("vit", dtype=torch.bfloat16).float().requires_grad_(False),
        again.backbone.rule,  # type: ignore[attr-defined]
        name="tiny/vit",
    )
    other = load(tmp_path / "saved", wide)
    for name, tensor in other.trained().items():
        assert torch.equal(tensor, again.trained()[name])


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_it_trains_language_models_too(architecture: str) -> None:
    backbone = tiny_backbone() if architecture == "llama" else encoder_backbone()
    task = TASK if architecture == "llama" else HEAD
    before = copy.deepcopy(backbone.model.state_dict())
    tuned = fit(backbone, task, PartialTuning(layers=1), ROWS, learning_rate=1e-3, **SHORT)
    changed = {
        n.removeprefix("backbone."): t for n, t in tuned.trained().items() if n.startswith("backbone.")
    }
    assert all(".1." in name or name.endswith("model.norm.weight") for name in changed)
    assert all(
        not torch.equal(tensor, before[name]) for name, tensor in changed.items() if "key.bias" not in name
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


def test_more_layers_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"ViTModel has 3 layers, 4 are to be trained"):
        PartialTuning(layers=4).prepare(vision_backbone(), torch.Generator())
