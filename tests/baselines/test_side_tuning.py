"""Side-tuning: a side network's output blended into what the head reads, the backbone frozen."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import PromptFileError, SideTuning, fit, load
from softprompt.baselines.side_tuning import ConvNet, Side, SideBackbone, network_class
from softprompt.images import POOLINGS
from softprompt.outputs import EncodedRow, PromptOutput
from tests.naive import side as naive
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import TASK as WORDS
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import PATCHES, ROWS, SIZE, TASK, WIDTH, images, vision_backbone

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SHORT: dict[str, Any] = {"steps": 3, "batch_size": 8, "progress": False}


class Corner(nn.Module):
    """A side network that sees the first pixel."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        outputs: Tensor = self.linear(pixels[:, :, 0, 0])
        return outputs


class Wide(Corner):
    """One whose output has another width than it should."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs + 1)


def prepared(method: SideTuning = SideTuning(), **settings: Any) -> tuple[SideBackbone, Side]:  # noqa: B008
    own = method.prepare(vision_backbone(**settings), torch.Generator().manual_seed(0))
    assert isinstance(own, SideBackbone)
    side = own.model.get_submodule("side")
    assert isinstance(side, Side)
    return own, side


@pytest.mark.parametrize("tower", ["vit", "siglip"])
def test_states_and_gradients_are_those_of_the_equation(tower: Any) -> None:
    own, side = prepared(tower=tower)
    with torch.no_grad():
        side.alpha.fill_(0.3)
    reads = [["mean"], ["pooler"], []] if tower == "siglip" else [["class"], ["mean", "class"], ["mean"]]
    pixels = [*images(2), images(1, size=2 * SIZE)[0]]  # of two sizes
    if tower == "siglip":
        pixels[2] = images(3)[2]
    rows = [
        EncodedRow((), read=tuple(POOLINGS.index(r) for r in read), media=image)  # type: ignore[arg-type]
        for read, image in zip(reads, pixels, strict=True)
    ]
    found = own.states(rows, PromptOutput())
    patches = [PATCHES * (image.shape[-1] // SIZE) ** 2 for image in pixels]
    expected = torch.stack(
        [
            naive.state(own.model, image, n, side.network, side.alpha, r)
            for read, image, n in zip(reads, pixels, patches, strict=True)
            for r in read
        ]
    )
    assert_close(found, expected, **CLOSE)
    weights, parameters = torch.randn_like(found), list(side.parameters())
    got = torch.autograd.grad((found * weights).sum(), parameters)
    want = torch.autograd.grad((expected * weights).sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **CLOSE)
        assert one.abs().sum() > 0


def test_it_starts_as_an_even_blend_that_the_seed_decides() -> None:
    own, side = prepared()
    base = vision_backbone()
    rows = [EncodedRow((), read=(0,), media=image) for image in images(2)]
    seen = side.network(images(2))
    assert_close(
        own.states(rows, PromptOutput()), 0.5 * base.states(rows, PromptOutput()) + 0.5 * seen, **CLOSE
    )
    again, other = prepared()[1], SideTuning().prepare(base, torch.Generator().manual_seed(1)).model
    assert torch.equal(side.network.last.weight, again.network.last.weight)  # type: ignore[arg-type, union-attr]
    assert not torch.equal(side.network.last.weight, other.side.network.last.weight)  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("network", ["conv-net", Corner])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_side_alone_moves_and_is_saved_and_loaded(
    network: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    backbone = vision_backbone(dtype=dtype)
    before = copy.deepcopy(backbone.model.state_dict())
    method = SideTuning(network=network)
    tuned = fit(backbone, TASK, method, ROWS, **SHORT)
    state = torch.get_rng_state()
    generator = torch.Generator().manual_seed(0)
    start = dict(method.prepare(backbone, generator).model.named_parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert backbone.model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    changed = {
        n.removeprefix("backbone."): t for n, t in tuned.trained().items() if n.startswith("backbone.")
    }
    assert changed
    for name, tensor in changed.items():
        assert name.startswith("side.")
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, start[name]), name
    again = load(tuned.save(tmp_path / "saved"), backbone)
    inputs = [row["image"] for row in ROWS]
    assert again.method == method
    assert again.predict(inputs) == tuned.predict(inputs)


def test_the_shipped_network_sees_each_image_alone() -> None:
    network = ConvNet(WIDTH).double()
    pixels = images(3)
    together = network(pixels)
    assert together.shape == (3, WIDTH)
    assert_close(together[1:2], network(pixels[1:2]), **CLOSE)


def test_a_saved_prompt_imports_nothing_and_calls_nothing_but_classes_of_modules(tmp_path: Path) -> None:
    for name, said in {
        "no_such_package.nets:Net": "is not imported: import it first",
        "os:system": "not a subclass of torch.nn.Module",
        "torch:no_such_thing": "not a subclass of torch.nn.Module",
    }.items():
        with pytest.raises(ValueError, match=said):
            network_class(name)
    tuned = fit(vision_backbone(dtype=torch.float32), TASK, SideTuning(network=Corner), ROWS, **SHORT)
    path = tuned.save(tmp_path / "saved") / "prompt.json"
    path.write_text(path.read_text().replace("test_side_tuning:Corner", "test_side_tuning:Path"))
    with pytest.raises((ValueError, PromptFileError)):
        load(tmp_path / "saved", vision_backbone(dtype=torch.float32))


def test_a_network_of_another_width_and_a_backbone_without_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Wide makes \(8, 33\) of 8 images, expected \(8, 32\)"):
        fit(vision_backbone(dtype=torch.float32), TASK, SideTuning(network=Wide), ROWS, **SHORT)
    with pytest.raises(ValueError, match="its side network reads pixels, and this backbone reads none"):
        fit(tiny_backbone(), WORDS, SideTuning(), TEXTS, **SHORT)
