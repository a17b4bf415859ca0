"""Prompts that are functions of their rows: their features, the cache, mixed batches, and their penalty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from softprompt.backbones.row_features import RowFeatures
from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.images import POOLINGS, ImagePooling
from softprompt.model import HeadModel, PromptedModel, WordModel, stack_prompts
from softprompt.outputs import EncodedRow, Penalized, PromptOutput
from softprompt.prompts.base import PromptModule
from softprompt.training.loop import train
from softprompt.training.parallel import Step, backward
from softprompt.training.progress import Record
from softprompt.training.recipe import Recipe
from softprompt.training.run import Run
from tests.naive import vision as naive
from tests.tiny.vision import LAYERS, PATCHES, SIZE, WIDTH, images, vision_backbone

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
P = 2


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Conditional(PromptModule):
    """Virtual tokens that are a linear function of the row's feature (as CoCoOp's are)."""

    length = 0

    def __init__(
        self, *, length: int = P, deep: bool = False, penalty: str = "row", reads: ImagePooling = "class"
    ) -> None:
        super().__init__()
        self.base = nn.Parameter(random(LAYERS, length, WIDTH))
        self.weight = nn.Parameter(0.1 * random(WIDTH, WIDTH, seed=2))
        self.deep, self.penalty, self.reads = deep, penalty, reads
        self.given: list[Tensor] = []
        self.register_buffer("seen", torch.zeros(2, dtype=torch.long))

    def tallies(self) -> dict[str, Tensor]:
        return {"seen": self.get_buffer("seen")}

    def prompts(self, features: Tensor) -> Tensor:
        """(B, d) -> (L, B, P, d)."""
        return self.base[:, None] + (features @ self.weight)[:, None]

    def forward(self, features: Tensor | None = None) -> PromptOutput:
        assert features is not None
        self.given.append(features)
        prompts = self.prompts(features)
        if torch.is_grad_enabled():
            self.get_buffer("seen").add_(torch.tensor([len(features), 1]))
        each = (features @ self.weight).square().mean(1)
        penalty = {"row": each, "batch": each.mean(), "none": None}[self.penalty]
        rows = torch.arange(len(features))
        if self.deep:
            return PromptOutput(layers=tuple(prompts), rows=rows, penalty=penalty)
        return PromptOutput(tokens=prompts[0], rows=rows, penalty=penalty)


class Fixed(PromptModule):
    """Virtual tokens that are the same for every row."""

    length = 0

    def __init__(self, length: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(random(length, WIDTH, seed=7))

    def forward(self) -> PromptOutput:
        return PromptOutput(tokens=self.tokens[None])


def rows_of(pixels: Tensor, read: ImagePooling = "class", prompt: int = 0) -> list[EncodedRow]:
    read_at = (POOLINGS.index(read),)
    # Each its own tensor, as an encoder makes them.
    return [EncodedRow((), read=read_at, media=image.clone(), prompt=prompt, answer=(0,)) for image in pixels]


def counting(backbone: VisionBackbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of images of each pass without a prompt."""
    seen: list[int] = []
    states = backbone.states

    def counted(rows: Sequence[EncodedRow], prompt: Any) -> Tensor:
        if isinstance(prompt, PromptOutput) and prompt.tokens is None and prompt.layers is None:
            seen.append(len(rows))
        return states(rows, prompt)

    monkeypatch.setattr(backbone, "states", counted)
    return seen


# --- what a module is given ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("tower", "reads"), [("vit", "class"), ("clip", "mean"), ("siglip", "pooler")])
@pytest.mark.parametrize("deep", [False, True])
def test_states_and_gradients_are_those_of_one_image_at_a_time(tower: Any, reads: Any, deep: bool) -> None:
    backbone, pixels, module = vision_backbone(tower), images(3), Conditional(deep=deep, reads=reads)
    model = PromptedModel(backbone, [module])
    found = model.states(rows_of(pixels, reads))
    expected = []
    for x in pixels:
        feature = naive.state(backbone.model, x, PATCHES, read=reads).detach()
        own = module.prompts(feature[None])[:, 0]
        told: dict[str, Any] = {"deep": [*own]} if deep else {"shallow": own[0]}
        expected.append(naive.state(backbone.model, x, PATCHES, **told, read=reads))
    assert_close(found, torch.stack(expected), **CLOSE)
    weights = random(*found.shape, seed=3)
    parameters = [module.base, module.weight]
    got = torch.autograd.grad((found * weights).sum(), parameters)
    want = torch.autograd.grad((torch.stack(expected) * weights).sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **CLOSE)
        assert one.abs().sum() > 0
    with torch.no_grad():
        assert_close(model.states(rows_of(pixels, reads)), found, **CLOSE)


def test_compiled_prompts_are_each_rows_own_too() -> None:
    backbone, pixels, module = vision_backbone(), images(3), Conditional(deep=True)
    rows = rows_of(pixels)
    with torch.no_grad():
        output = PromptedModel(backbone, [module]).prompt(rows)
        found = backbone.states(rows, backbone.compile(rows, output))
        assert_close(found, backbone.states(rows, output), **CLOSE)
    assert not torch.allclose(output.layers[0][0], output.layers[0][1])  # type: ignore[index]


def test_a_module_is_given_numbers_without_a_gradient() -> None:
    module = Conditional()
    PromptedModel(vision_backbone(), [module]).states(rows_of(images(2)))
    (features,) = module.given
    assert features.shape == (2, WIDTH)
    assert not features.requires_grad


def test_features_of_a_backbone_in_half_precision_are_float32() -> None:
    features = RowFeatures(vision_backbone(dtype=torch.bfloat16))
    assert features(rows_of(images(2)), "class").dtype == torch.float32


# --- what is kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cached_features_are_bit_identical_to_those_computed_again(dtype: torch.dtype) -> None:
    backbone, rows = vision_backbone(dtype=dtype), rows_of(images(7))
    kept, again = RowFeatures(backbone), RowFeatures(backbone, keep=0)
    for batch in ([0, 1, 2], [4, 2, 0, 6], [5], [6, 5, 4, 3, 2, 1, 0]):
        mine = [rows[i] for i in batch]
        assert torch.equal(kept(mine, "class"), again(mine, "class"))
    assert (len(kept), len(again)) == (7, 0)


def test_a_rows_features_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, rows = vision_backbone(), rows_of(images(5))
    passes = counting(backbone, monkeypatch)
    model = PromptedModel(backbone, [Conditional()])
    for batch in (rows[:3], rows[2:], rows):
        model.states(batch)
        with torch.no_grad():
            # The same images in other rows, as mixed batches make them.
            model.states([replace(row) for row in batch])
    assert sum(passes) == 5
    model.forget()
    model.states(rows)
    assert sum(passes) == 5


def test_an_image_that_changes_is_looked_at_again() -> None:
    backbone, rows = vision_backbone(), rows_of(images(2))
    features = RowFeatures(backbone)
    first = features(rows, "class")
    assert rows[0].media is not None
    rows[0].media.mul_(2)
    second = features(rows, "class")
    assert not torch.allclose(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert torch.equal(second, RowFeatures(backbone, keep=0)(rows, "class"))
    rows[1] = replace(rows[1], media=images(3)[2])
    assert not torch.allclose(features(rows, "class")[1], second[1])
    assert not torch.allclose(features(rows, "mean")[1], features(rows, "class")[1])


def test_what_is_kept_is_bounded() -> None:
    rows, features = rows_of(images(6)), RowFeatures(vision_backbone(), keep=4)
    first = features(rows, "class")
    assert len(features) == 4
    assert torch.equal(features(rows, "class"), first)


def test_images_that_are_read_anew_are_known_and_those_of_another_form_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = vision_backbone()
    passes, features = counting(backbone, monkeypatch), RowFeatures(backbone)
    first = features(rows_of(images(3)), "class")
    assert torch.equal(features(rows_of(images(3)), "class"), first)
    assert sum(passes) == 3
    upright = [
        replace(row, media=row.media.mT.contiguous()) for row in rows_of(images(3)) if row.media is not None
    ]
    features(upright, "class")
    assert sum(passes) == 6


def test_features_of_weights_that_were_changed_in_place_are_not_used() -> None:
    backbone, rows = vision_backbone(), rows_of(images(2))
    features = RowFeatures(backbone)
    first = features(rows, "class")
    with torch.no_grad():
        next(backbone.model.parameters()).mul_(2)
    second = features(rows, "class")
    assert not torch.allclose(first, second)
    assert torch.equal(second, RowFeatures(backbone, keep=0)(rows, "class"))


def test_on_a_gpu_every_batch_has_one_shape_whatever_is_asked_for() -> None:
    class Gpu:
        device = torch.device("cuda")
        model = torch.nn.Module()
        lengths: ClassVar[list[int]] = []

        def states(self, rows: Sequence[EncodedRow], prompt: PromptOutput) -> Tensor:
            self.lengths.append(len(rows))
            return torch.stack([media.flatten()[:3] for row in rows if (media := row.media) is not None])

    pixels = images(40)
    found = RowFeatures(Gpu())(rows_of(pixels), "class")  # type: ignore[arg-type]
    assert torch.equal(found, pixels.flatten(1)[:, :3])
    assert Gpu.lengths == [32, 32]


def test_images_of_several_sizes_stand_in_one_batch() -> None:
    backbone = vision_backbone()
    rows = [*rows_of(images(2)), *rows_of(images(1, 2 * SIZE)), *rows_of(images(1, seed=4))]
    found = RowFeatures(backbone)(rows, "class")
    each = [RowFeatures(backbone)([row], "class")[0] for row in rows]
    assert torch.equal(found, torch.stack(each))


def test_a_row_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="a row has none"):
        PromptedModel(vision_backbone(), [Conditional()]).states([EncodedRow(())])


# --- batches of several prompts ------------------------------------------------------------------------------


def test_rows_of_several_prompts_get_what_each_prompt_gives_alone() -> None:
    backbone, pixels = vision_backbone(), images(8)
    modules: list[PromptModule] = [Fixed(3), Conditional(length=2), Fixed(1), Conditional(length=4)]
    numbers = [1, 0, 3, 1, 2, 3, 0, 1]
    rows = [replace(row, prompt=n) for row, n in zip(rows_of(pixels, "prompts"), numbers, strict=True)]
    model = PromptedModel(backbone, modules)
    found = model.states(rows)
    with torch.no_grad():
        assert_close(model.states(rows), found, **CLOSE)
    parameters = [p for module in modules for p in module.parameters()]
    got = torch.autograd.grad(found.square().sum(), parameters)
    alone = [
        PromptedModel(backbone, [modules[n]]).states(rows_of(image[None], "prompts"))[0]
        for image, n in zip(pixels, numbers, strict=True)
    ]
    assert_close(found, torch.stack(alone), **CLOSE)
    want = torch.autograd.grad(torch.stack(alone).square().sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **CLOSE)


def test_a_penalty_is_that_of_each_row_wherever_it_stands() -> None:
    backbone, pixels = vision_backbone(), images(4)
    modules: list[PromptModule] = [Conditional(penalty="batch"), Fixed(1), Conditional(penalty="row")]
    rows = [replace(row, prompt=n) for row, n in zip(rows_of(pixels), [2, 0, 1, 2], strict=True)]
    penalty = PromptedModel(backbone, modules).prompt(rows).penalty
    assert penalty is not None
    each = PromptedModel(backbone, [Conditional()]).prompt(rows_of(pixels)).penalty
    assert each is not None
    assert_close(penalty, torch.stack([each[0], each[1], 0 * each[2], each[3]]), **CLOSE)


def test_prefixes_whose_layers_differ_are_not_padded_into_wrong_ones() -> None:
    def prefix(*lengths: int) -> PromptOutput:
        return PromptOutput(prefix=tuple((random(1, 4, n, 8), random(1, 4, n, 8)) for n in lengths))

    assert stack_prompts([prefix(0, 3, 3), prefix(0, 2, 2), PromptOutput()]).lengths.tolist() == [3, 2, 0]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="split it by prompt"):
        stack_prompts([prefix(0, 3, 3), prefix(2, 2, 2)])


# --- what is added to the loss -------------------------------------------------------------------------------


class Task:
    def loss(self, answers: Tensor, rows: Sequence[EncodedRow]) -> Tensor:
        return functional.cross_entropy(
            answers, torch.tensor([int(r.answer[0]) for r in rows]), reduction="none"
        )


def headed(module: PromptModule) -> PromptedModel:
    head = nn.Linear(WIDTH, 2).double()
    with torch.no_grad():
        head.weight.copy_(random(2, WIDTH, seed=5))
        head.bias.zero_()
    return PromptedModel(vision_backbone(), [module], [head])


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("penalty", ["row", "batch", "none"])
def test_the_penalty_is_added_to_the_loss_of_each_row(penalty: str, accumulation: int) -> None:
    module, rows = Conditional(penalty=penalty), rows_of(images(5))
    model = headed(module)
    trained = list(module.parameters())
    step = Step(rows, trained, accumulation, seed=0)
    [(loss, share)] = backward(HeadModel(model), Task(), [step], Accelerator())
    got = [parameter.grad for parameter in trained]
    answers = Task().loss(model.outputs(rows), rows).mean()
    each = model.prompt(rows).penalty
    added = torch.zeros(()).double() if each is None else each.mean()
    if penalty == "batch" and accumulation == 2:  # the mean of each micro-batch, for as many rows as it has
        parts = [rows[0::2], rows[1::2]]
        penalties = [model.prompt(part).penalty for part in parts]
        added = torch.cat([p for p in penalties if p is not None]).mean()
    assert_close(loss, (answers + added).detach(), **CLOSE)
    assert_close(share, added.detach(), check_dtype=False, **CLOSE)
    assert (share > 0) == (penalty != "none")
    for one, other in zip(got, torch.autograd.grad(answers + added, trained), strict=True):
        assert one is not None
        assert_close(one, other, **CLOSE)


def test_what_grew_in_each_process_is_added_up() -> None:
    class Twice:
        """As if another process had found the same."""

        num_processes, process_index, device = 2, 0, torch.device("cpu")

        def reduce(self, flat: Tensor, how: str) -> Tensor:
            return 2 * flat

    module, rows = Conditional(), rows_of(images(4))
    seen, trained = module.get_buffer("seen"), list(module.parameters())
    seen += 100
    step = Step(rows, trained, accumulation=1, seed=0, tallies=[seen])
    [(loss, share)] = backward(HeadModel(headed(module)), Task(), [step], Twice())
    assert seen.tolist() == [104, 102]  # two rows and one call in each process
    alone = [rows[0], rows[2]]
    model = headed(module)
    penalty = model.prompt(alone).penalty
    assert penalty is not None
    losses = Task().loss(model.outputs(alone), alone)
    assert_close(share, penalty.detach().mean(), check_dtype=False, **CLOSE)
    assert_close(loss, (losses + penalty).detach().mean(), **CLOSE)
    for parameter, gradient in zip(
        trained, torch.autograd.grad((losses + penalty).mean(), trained), strict=True
    ):
        assert parameter.grad is not None
        assert_close(parameter.grad, gradient, **CLOSE)


def test_words_are_penalized_like_heads() -> None:
    class Words:
        def score(self, rows: object, prompt: PromptOutput) -> str:
            return "logits"

    class Shrunk(PromptModule):
        def forward(self) -> PromptOutput:
            return PromptOutput(penalty=torch.ones(()))

    answers = WordModel(PromptedModel(Words(), [Shrunk()])).score([])  # type: ignore[arg-type]
    assert isinstance(answers, Penalized)
    assert answers.answers == "logits"


def test_penalty_and_tallies_are_in_history_and_checkpoint(tmp_path: Path) -> None:
    def run(steps: int, folder: Path) -> tuple[Conditional, tuple[Record, ...]]:
        module = Conditional()
        parameters = dict(module.named_parameters())
        groups = [{"params": list(module.parameters()), "lr": 1e-2}]
        recipe = Recipe(steps=6, batch_size=2, checkpoint_every=1, seed=3)

        class Told:
            def begin(self, steps: int, done: int) -> None: ...
            def report(self, record: Record, *, is_best: bool) -> None: ...
            def end(self) -> None: ...
            def update(self, record: Record) -> None:
                if record.step > steps:
                    raise InterruptedError

        try:
            told = Run(
                parameters, groups, rows_of(images(5)), recipe,
                folder=folder, progress=Told(), tallies=module.tallies(),
            )  # fmt: skip
            found = train(HeadModel(headed(module)), Task(), told)
        except InterruptedError:
            return module, ()
        return module, found.history

    whole, history = run(6, tmp_path / "whole")
    run(3, tmp_path / "killed")
    resumed, again = run(6, tmp_path / "killed")
    assert whole.get_buffer("seen").tolist() == [10, 6] == resumed.get_buffer("seen").tolist()
    assert torch.equal(whole.base, resumed.base)
    assert [record.penalty for record in history] == [record.penalty for record in again]
    assert all(0 < record.penalty < record.loss for record in history)
    assert history[0].as_dict()["penalty"] == history[0].penalty
    assert "penalty" not in Record(1, 0.5, 0.1, 1.0, 2, 0.1).as_dict()
