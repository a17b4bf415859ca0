"""DualPrompt against its equations, and what moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import DualPrompt, TunedPrompt, fit, load
from softprompt.backbones.base import BackboneSpec
from softprompt.images import POOLINGS
from softprompt.mixed import MixedPrompts
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts.base import BuildContext
from softprompt.prompts.dual_prompt import DualPrefixes
from tests.naive import dual_prompt, l2p
from tests.tiny.vision import PATCHES, ROWS, TASK, WIDTH, images, vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SMALL: dict[str, Any] = {"general": 2, "general_layers": 1, "expert": 3, "expert_layers": 1, "pool": 4}


def built(method: DualPrompt, spec: BackboneSpec) -> DualPrefixes:
    module = method.build(BuildContext(spec, generator=torch.Generator().manual_seed(0)))
    assert isinstance(module, DualPrefixes)
    return module


def rows_of(pixels: Tensor) -> list[EncodedRow]:
    return [EncodedRow((), read=(POOLINGS.index("class"),), media=image.clone()) for image in pixels]


@pytest.mark.parametrize("task", [None, 1])
@pytest.mark.parametrize("layers", [(1, 1), (1, 2), (2, 1)])
def test_states_gradients_and_the_key_pull_are_those_of_the_equations(
    task: int | None, layers: tuple[int, int]
) -> None:
    backbone, pixels = vision_backbone(), images(4)
    settings = SMALL | {"general_layers": layers[0], "expert_layers": layers[1], "pull": 0.3}
    module = built(DualPrompt(**settings, task=task), backbone.spec).double()
    model, rows = PromptedModel(backbone, [module]), rows_of(pixels)

    def naive(task: int | None) -> tuple[Tensor, Tensor]:
        states, pulls = [], []
        for x in pixels:
            q = l2p.query(backbone.model, x, PATCHES)
            which = l2p.chosen(q, module.keys, 1)[0] if task is None else task
            own = [(g[0], g[1]) for g in module.general] + [
                (e[0, which], e[1, which]) for e in module.experts
            ]
            states.append(dual_prompt.class_state(backbone.model, x, [*own, *[None] * (3 - sum(layers))]))
            pulls.append(0.3 * l2p.gamma(q, module.keys[which]))
        return torch.stack(states), torch.stack(pulls)

    output = model.prompt(rows)
    found, (expected, pull) = backbone.states(rows, output), naive(task)
    assert output.penalty is not None
    assert_close(found, expected, **CLOSE)
    assert_close(output.penalty, pull, **CLOSE)
    parameters = list(module.parameters())
    got = torch.autograd.grad(found.square().sum() + found.sum() + output.penalty.sum(), parameters)
    want = torch.autograd.grad(expected.square().sum() + expected.sum() + pull.sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **CLOSE)
        assert one.abs().sum() > 0
    # In use the task is not known, whatever it was in training.
    with torch.no_grad():
        assert_close(model.states(rows), naive(None)[0], **CLOSE)


def test_the_tasks_expert_moves_and_the_others_do_not(tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    method = DualPrompt(**SMALL, task=2)
    settings: dict[str, Any] = {"steps": 30, "batch_size": 8, "learning_rate": 0.02, "warmup": 0}
    tuned = fit(backbone, TASK, method, ROWS, ROWS, progress=False, **settings)
    assert tuned.metrics["validation"]["accuracy"] == 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())

    generator = torch.Generator().manual_seed(0)
    method.head(WIDTH, 2, generator)
    start = method.build(BuildContext(backbone.spec, generator=generator)).state_dict()
    moved = {name: tensor != start[name] for name, tensor in tuned.module.state_dict().items()}
    assert moved["general"].all()
    assert moved["keys"].any(1).tolist() == [False, False, True, False]
    assert moved["experts"].any(-1).any(-1).any(-1).all(1).all(0).tolist() == [False, False, True, False]

    again = load(tuned.save(tmp_path / "prompt"), backbone)
    inputs = [row["image"] for row in ROWS]
    assert again.predict(inputs) == tuned.predict(inputs)


def test_rows_of_two_tasks_prefixes_share_a_batch_and_depend_on_nobody() -> None:
    backbone, prompts = vision_backbone(), []
    for seed, layers in enumerate((1, 2)):
        generator = torch.Generator().manual_seed(seed)
        method = DualPrompt(
            **SMALL | {"expert": 2, "expert_layers": 1, "general_layers": 1, "pool": 2 + layers}
        )
        module = method.build(BuildContext(backbone.spec, generator=generator)).double().requires_grad_(False)
        head = nn.Linear(WIDTH, 2).double()
        prompts.append(TunedPrompt(backbone, TASK, method, module, head=head))
    inputs, numbers = [row["image"] for row in ROWS[:6]], [0, 1, 1, 0, 0, 1]
    for image, n, found in zip(inputs, numbers, MixedPrompts(prompts).predict(inputs, numbers), strict=True):
        (alone,) = prompts[n].predict([image])
        assert_equal_up_to_rounding(found, alone, torch.float64)


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="task is 10, and there are 10 experts"):
        DualPrompt(task=10)
    with pytest.raises(ValueError, match=r"asked for in 2 \+ 3 layers, the backbone has 3"):
        fit(vision_backbone(), TASK, DualPrompt(), ROWS, progress=False)
    with pytest.raises(ValueError, match="none were given"):
        built(DualPrompt(**SMALL), vision_backbone().spec)()
    with pytest.raises(ValueError, match="its attention cannot be reached"):
        fit(vision_backbone(packed=False), TASK, DualPrompt(**SMALL), ROWS, progress=False)
