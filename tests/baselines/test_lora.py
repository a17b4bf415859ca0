"""LoRA against PEFT's own: the same logits from its folder and from ours; merged weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.testing import assert_close

from softprompt import LoRA, SequenceClassification, fit, from_peft
from softprompt.baselines import merged
from softprompt.baselines.lora import lora_parameters
from softprompt.store import PromptFileError
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import Architecture, tiny_causal_lm
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tiny.vision import LAYERS, TOWERS, Tower, vision_backbone

SHORT: dict[str, Any] = {"steps": 4, "batch_size": 8, "learning_rate": 1e-2, "progress": False}
IDS = torch.tensor([[20, 21, 30, 31, 40]])
# PEFT 0.21.2 reads this property of transformers 5.23.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS).logits
    return found


def random_lora(architecture: Architecture, **settings: Any) -> Any:
    """PEFT's LoRA of a tiny model, none of its tensors zero."""
    config = peft.LoraConfig(**{"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", **settings})
    model = peft.get_peft_model(tiny_causal_lm(architecture), config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"target_modules": "all-linear", "use_rslora": True}),
        ("gpt2", {"fan_in_fan_out": True}),
        ("llama", {"init_lora_weights": "gaussian"}),
        ("llama", {"init_lora_weights": False, "lora_dropout": 0.5}),
        ("llama", {"init_lora_weights": "orthogonal", "r": 4}),
    ],
)
def test_a_folder_of_peft_gives_its_logits(architecture: Architecture, settings: Any, tmp_path: Path) -> None:
    theirs = random_lora(architecture, **settings)
    theirs.save_pretrained(tmp_path / "lora")
    backbone = tiny_backbone(architecture)
    tuned = from_peft(tmp_path / "lora", backbone, TASK)
    assert isinstance(tuned.method, LoRA)
    assert_close(logits(tuned.backbone.model), logits(theirs), rtol=0, atol=1e-10)
    assert (logits(backbone.model) - logits(theirs)).abs().max() > 1e-3
    assert len(tuned.predict(["film"])) == 1


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_what_we_trained_gives_the_same_logits_in_peft(architecture: Architecture, tmp_path: Path) -> None:
    tuned = fit(tiny_backbone(architecture), TASK, LoRA(rank=3, alpha=5), ROWS, **SHORT)
    tuned.export_peft(tmp_path / "lora")
    theirs = peft.PeftModel.from_pretrained(tiny_causal_lm(architecture), str(tmp_path / "lora")).eval()
    assert_close(logits(theirs), logits(tuned.backbone.model), rtol=0, atol=1e-7)
    back = from_peft(tmp_path / "lora", tiny_backbone(architecture), TASK)
    assert_close(logits(back.backbone.model), logits(tuned.backbone.model), rtol=0, atol=1e-7)
    assert back.method == LoRA(rank=3, alpha=5, targets=back.method.targets)  # type: ignore[attr-defined]


def test_merged_weights_are_a_plain_model_with_the_same_logits(tmp_path: Path) -> None:
    backbone = tiny_backbone("llama")
    tuned = fit(backbone, TASK, LoRA(rank=3), ROWS, **SHORT)
    whole = merged(tuned.backbone.model)
    assert dict(whole.named_parameters()).keys() == dict(backbone.model.named_parameters()).keys()
    assert type(whole) is type(backbone.model)
    assert_close(logits(whole), logits(tuned.backbone.model), rtol=0, atol=1e-7)
    assert (logits(whole) - logits(backbone.model)).abs().max() > 1e-3
    changed = {
        n
        for n, p in whole.named_parameters()
        if not torch.equal(p, dict(backbone.model.named_parameters())[n])
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    assert tuned.predict(["film"])  # the unmerged copy is as it was
    assert any(".lora_" in name for name in tuned.trained())


def test_an_option_that_is_not_supported_is_named(tmp_path: Path) -> None:
    random_lora("llama", use_dora=True).save_pretrained(tmp_path / "dora")
    with pytest.raises(PromptFileError, match="use_dora=True is an option of PEFT that is not supported"):
        from_peft(tmp_path / "dora", tiny_backbone("llama"), TASK)


def saved_config(folder: Path, **settings: Any) -> Path:
    """A folder of plain LoRA in whose adapter_config.json these settings are written."""
    random_lora("llama").save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "pissa_niter_4"},
        {"init_lora_weights": "olora"},
        {"init_lora_weights": "corda"},
        {"init_lora_weights": "loftq"},
        {"init_lora_weights": "lora_ga"},
        {"alora_invocation_tokens": [20, 21]},
        {"kasa_config": {"beta": 1e-4}},
        {"arrow_config": {"top_k": 3}},
        {"monteclora_config": {"num_samples": 8}},
        {"velora_config": {"num_groups": 2}},
        {"use_qalora": True},
        {"use_bdlora": {"nblocks": 2}},
        {"lora_bias": True},
        {"bias": "all"},
        {"rank_pattern": {"q_proj": 2}},
        {"layers_to_transform": [0]},
        {"layers_to_transform": 0},
        {"ensure_weight_tying": True},
        {"what_peft_may_think_of_next": True},
    ],
    ids=lambda setting: "-".join(map(str, next(iter(setting.items()))))[:40],
)
def test_options_that_change_what_the_tensors_mean_are_refused_by_name(
    setting: dict[str, Any], tmp_path: Path
) -> None:
    (name,) = setting
    with pytest.raises(
        PromptFileError, match=f"{name}=.* is an option of PEFT that is not supported; expected"
    ):
        from_peft(saved_config(tmp_path / "lora", **setting), tiny_backbone("llama"), TASK)


def test_what_plain_lora_writes_in_this_peft_is_read(tmp_path: Path) -> None:
    """Fails where a new PEFT has a setting that is on by default: whether it is harmless must be looked at then."""
    settings = peft.LoraConfig(r=3, lora_alpha=5).to_dict() | {"target_modules": ["q_proj", "v_proj"]}
    from_peft(saved_config(tmp_path / "lora", **settings), tiny_backbone("llama"), TASK)


@pytest.mark.filterwarnings("ignore:PiSSA changes the base weights:UserWarning")
def test_an_adapter_of_weights_that_pissa_changed_is_read_once_peft_has_converted_it(tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, init_lora_weights="pissa", task_type="CAUSAL_LM")
    theirs = peft.get_peft_model(tiny_causal_lm("llama", dtype=torch.float32), config)
    theirs.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.5)
    theirs.eval().save_pretrained(tmp_path / "lora")
    backbone = tiny_backbone("llama")
    said = "init_lora_weights='pissa'.* or save it again with path_initial_model_for_weight_conversion"
    with pytest.raises(PromptFileError, match=said):
        from_peft(tmp_path / "lora", backbone, TASK)

    file = tmp_path / "lora" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"init_lora_weights": True}))
    silent = from_peft(tmp_path / "lora", backbone, TASK)  # what it would be taken for
    assert (logits(silent.backbone.model) - logits(theirs)).abs().max() > 1e-2

    start = str(tmp_path / "start")
    theirs.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=start)
    read = from_peft(tmp_path / "plain", backbone, TASK)
    assert_close(logits(read.backbone.model), logits(theirs).double(), rtol=0, atol=1e-3)


def test_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    random_lora("llama").save_pretrained(tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text())
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["q_proj"]})
    )
    with pytest.raises(PromptFileError, match="only on one side"):
        from_peft(tmp_path / "lora", tiny_backbone("llama"), TASK)
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config | {"r": 2}))
    with pytest.raises(PromptFileError, match="has shape"):
        from_peft(tmp_path / "lora", tiny_backbone("llama"), TASK)
    (tmp_path / "lora" / "adapter_config.json").write_text(
        json.dumps(config | {"target_modules": ["nowhere"]})
    )
    with pytest.raises(PromptFileError, match="nowhere"):
        from_peft(tmp_path / "lora", tiny_backbone("llama"), TASK)


def test_lora_with_a_head_does_not_go_to_peft(tmp_path: Path) -> None:
    task = SequenceClassification("{text}", labels=["neg", "pos"])
    tuned = fit(tiny_backbone("llama"), task, LoRA(rank=2), ROWS, **SHORT)
    with pytest.raises(ValueError, match="holds no head"):
        tuned.export_peft(tmp_path / "lora")


def test_a_model_that_peft_has_no_layers_for_needs_names() -> None:
    backbone = encoder_backbone("modernbert")
    with pytest.raises(ValueError, match=r'peft finds no layers by default in .*targets="all-linear"'):
        LoRA().prepare(backbone, torch.Generator())
    prepared = LoRA(targets="all-linear").prepare(backbone, torch.Generator())
    assert any(".lora_" in name for name, _ in prepared.model.named_parameters())


@pytest.mark.parametrize("tower", TOWERS)
def test_of_vision_transformers_query_and_value_are_changed(tower: Tower) -> None:
    prepared = LoRA(rank=2).prepare(vision_backbone(tower), torch.Generator())
    changed = {name.split(".lora_")[0].rpartition(".")[2] for name in lora_parameters(prepared.model)}
    assert changed in ({"query", "value"}, {"q_proj", "v_proj"})
    assert len(lora_parameters(prepared.model)) == 2 * 2 * LAYERS


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda t: (t * 1000).to(torch.int32), "is torch.int32, expected floating-point numbers"),
        (lambda t: t * torch.nan, r"numbers of base_model\.model\..* are NaN or infinite"),
    ],
)
def test_tensors_that_cannot_be_lora_are_refused_by_name(tmp_path: Path, changed: Any, message: str) -> None:
    tuned = fit(tiny_backbone(), TASK, LoRA(rank=2), ROWS, steps=1, progress=False)
    file = tuned.export_peft(tmp_path / "lora") / "adapter_model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())
    file.write_bytes(safetensors.torch.save({name: changed(t) for name, t in tensors.items()}))
    with pytest.raises(PromptFileError, match=message):
        from_peft(tmp_path / "lora", tiny_backbone(), TASK)
