"""L2P against its equations, what moves and what does not, and how it goes with everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import L2P, VPT, ImageClassification, SequenceClassification, TunedPrompt, fit, load
from softprompt.backbones.base import BackboneSpec
from softprompt.images import POOLINGS
from softprompt.mixed import MixedPrompts
from softprompt.model import PromptedModel
from softprompt.outputs import EncodedRow
from softprompt.prompts.base import BuildContext
from softprompt.prompts.l2p import PromptPool, nearest
from softprompt.training.progress import Record, Silent
from tests.naive import l2p as naive
from tests.prompts.test_vpt import vit_b16
from tests.tiny.task import ROWS as TEXTS
from tests.tiny.task import tiny_backbone
from tests.tiny.vision import PATCHES, ROWS, TASK, WIDTH, images, vision_backbone
from tests.tolerances import FLOAT64, assert_equal_up_to_rounding

CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SMALL: dict[str, Any] = {"pool": 6, "length": 2, "top": 2}
QUICK: dict[str, Any] = {"batch_size": 4, "warmup": 0, "progress": False}
quietly = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


def built(method: L2P, spec: BackboneSpec, seed: int = 0) -> PromptPool:
    module = method.build(BuildContext(spec, generator=torch.Generator().manual_seed(seed)))
    assert isinstance(module, PromptPool)
    return module


def rows_of(pixels: Tensor, read: str) -> list[EncodedRow]:
    return [EncodedRow((), read=(POOLINGS.index(read),), media=image.clone()) for image in pixels]


# --- the equations -------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("read", ["prompts", "class", "mean"])
@pytest.mark.parametrize("selection", ["row", "batch"])
@pytest.mark.parametrize(("top", "before"), [(1, None), (3, None), (3, [7, 0, 2, 0, 1, 5])])
def test_states_gradients_and_the_key_pull_are_those_of_the_equations(
    read: str, selection: Any, top: int, before: list[int] | None
) -> None:
    backbone, pixels = vision_backbone(), images(5)
    method = L2P(pool=6, length=2, top=top, selection=selection, diversify=before is not None)
    module = built(method, backbone.spec).double()
    shares = None
    if before is not None:
        module.before += torch.tensor(before)
        shares = [n / sum(before) for n in before]
    queries = [naive.query(backbone.model, x, PATCHES) for x in pixels]
    picked = [naive.chosen(q, module.keys, top, shares) for q in queries]
    if selection == "batch":
        picked = [naive.chosen_by_all(picked, top)] * len(pixels)
    pairs = list(zip(pixels, queries, picked, strict=True))
    expected = torch.stack(
        [naive.state(backbone.model, x, PATCHES, module.prompts, own, read) for x, _, own in pairs]
    )
    pull = torch.stack([naive.pull(q, module.keys, own) for _, q, own in pairs])

    model = PromptedModel(backbone, [module])
    rows = rows_of(pixels, read)
    output = model.prompt(rows)
    found = backbone.states(rows, output)
    assert output.penalty is not None
    assert_close(found, expected, **CLOSE)
    assert_close(output.penalty, 0.5 * pull, **CLOSE)

    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(3), dtype=found.dtype)
    parameters = [module.prompts, module.keys]
    got = torch.autograd.grad((found * weights).sum() + output.penalty.sum(), parameters)
    want = torch.autograd.grad((expected * weights).sum() + 0.5 * pull.sum(), parameters)
    for one, other in zip(got, want, strict=True):
        assert_close(one, other, **CLOSE)
    # The keys learn by the pull alone, and what nobody chose learns nothing.
    by_hand = torch.zeros_like(module.keys)
    for _, q, own in pairs:
        for i in own:
            by_hand[i] += 0.5 * naive.cosine_gradient(q, module.keys[i].detach())
    assert_close(got[1], by_hand, **CLOSE)
    idle = sorted(set(range(6)) - {i for own in picked for i in own})
    assert not got[0][idle].any()
    assert not got[1][idle].any()
    assert module.chosen.tolist() == [sum(own.count(i) for own in picked) for i in range(6)]


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_on_other_towers_the_query_is_the_class_token_or_what_they_are_read_by(tower: Any) -> None:
    backbone, pixels = vision_backbone(tower), images(2)
    module = built(L2P(**SMALL), backbone.spec).double()
    query = "pooler" if tower == "siglip" else "class"
    found = PromptedModel(backbone, [module]).states(rows_of(pixels, "prompts"))
    for x, state in zip(pixels, found, strict=True):
        own = naive.chosen(naive.query(backbone.model, x, PATCHES, query), module.keys, 2)
        assert_close(state, naive.state(backbone.model, x, PATCHES, module.prompts, own, "prompts"), **CLOSE)


def test_never_chosen_prompts_cost_nothing_and_of_these_the_nearest_are_taken() -> None:
    distance = torch.tensor([[0.1, 0.2, 0.9, 0.8], [0.5, 0.5, 0.5, 0.5]])
    chosen = torch.tensor([6, 2, 0, 0])
    assert nearest(distance, 3, chosen).tolist() == [[3, 2, 1], [2, 3, 1]]
    assert nearest(distance, 3).tolist() == [[0, 1, 3], [0, 1, 2]]
    assert nearest(distance, 3, torch.zeros(4)).tolist() == nearest(distance, 3).tolist()


def test_equation_4_is_for_training_alone() -> None:
    backbone = vision_backbone()
    module = built(L2P(**SMALL, diversify=True), backbone.spec).double()
    features = torch.stack([naive.query(backbone.model, x, PATCHES) for x in images(3)])
    with torch.no_grad():
        usual = module.select(features)
        favourites = torch.bincount(usual.flatten(), minlength=6)
        module.chosen += favourites
    assert torch.equal(module.select(features), usual)  # the first task: nothing was chosen before it
    module.goes_on()
    assert (module.before.tolist(), module.chosen.tolist()) == (favourites.tolist(), [0] * 6)
    assert not torch.equal(module.select(features), usual)
    with torch.no_grad():
        assert torch.equal(module.select(features), usual)
        module(features)
    module.requires_grad_(False)
    assert torch.equal(module.select(features), usual)
    module(features)
    assert not module.chosen.any()


# --- numbers of the paper --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pool", "top", "numbers"), [(10, 5, 46_080), (20, 4, 92_160)])
def test_as_many_numbers_are_trained_as_the_paper_counts(pool: int, top: int, numbers: int) -> None:
    module = built(L2P(pool=pool, length=5, top=top), vit_b16())
    assert sum(p.numel() for p in module.parameters()) == numbers


@pytest.mark.parametrize("bound", [1.0, 0.01])
def test_prompts_and_keys_start_uniform_and_are_the_seeds(bound: float) -> None:
    method = L2P(bound=bound)
    module = built(method, vit_b16(), 1)
    for tensor in (module.prompts, module.keys):
        assert 0.99 * bound < tensor.abs().max() <= bound
        assert abs(tensor.mean()) < 0.03 * bound
    assert torch.equal(module.keys, built(method, vit_b16(), 1).keys)
    assert not torch.equal(module.keys, built(method, vit_b16(), 2).keys)


# --- training and use ------------------------------------------------------------------------------------------


def test_what_is_chosen_moves_and_nothing_else(tmp_path: Path) -> None:
    backbone = vision_backbone(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    method = L2P(pool=12, length=2, top=2)
    tuned = fit(backbone, TASK, method, ROWS, ROWS, steps=30, learning_rate=0.02, **QUICK)
    module = tuned.module
    assert isinstance(module, PromptPool)
    assert tuned.metrics["validation"]["accuracy"] == 1.0
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert all(p.grad is None for p in backbone.model.parameters())

    start, used = built_as_fit_does(method, backbone.spec), module.chosen > 0
    assert 2 <= used.sum() < 12
    for name in ("prompts", "keys"):
        moved = (getattr(module, name) != getattr(start, name)).flatten(1)
        assert moved[used].any(1).all()
        assert not moved[~used].any()
    assert int(module.chosen.sum()) == 30 * 4 * 2
    assert tuned.head is not None
    assert all(p.any() for p in tuned.head.parameters())
    assert all(record["penalty"] > 0 for record in tuned.history)

    again = load(tuned.save(tmp_path / "prompt"), backbone)
    inputs = [row["image"] for row in ROWS]
    assert again.predict(inputs) == tuned.predict(inputs)
    assert torch.equal(again.module.state_dict()["chosen"], module.chosen)
    assert again.recipe["trained_parameters"] == 12 * 2 * WIDTH + 12 * WIDTH + 2 * WIDTH + 2


def built_as_fit_does(method: L2P, spec: BackboneSpec) -> PromptPool:
    """With the generator where `fit` has it when the module is built: behind the head."""
    generator = torch.Generator().manual_seed(0)
    method.head(spec.width, 2, generator)
    module = method.build(BuildContext(spec, generator=generator))
    assert isinstance(module, PromptPool)
    return module


@quietly
@pytest.mark.parametrize("stopped_after", [3, 5])
def test_a_run_that_is_resumed_ends_bit_identical_and_counts(tmp_path: Path, stopped_after: int) -> None:
    backbone, method = vision_backbone(dtype=torch.float32), L2P(**SMALL, diversify=True)
    settings = {**QUICK, "steps": 6, "checkpoint_every": 2}
    whole = fit(backbone, TASK, method, ROWS[:10], **settings)

    class Stopping(Silent):
        def update(self, record: Record) -> None:
            if record.step == stopped_after:
                raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(backbone, TASK, method, ROWS[:10], **{**settings, "progress": Stopping()}, folder=tmp_path)
    resumed = fit(backbone, TASK, method, ROWS[:10], **settings, folder=tmp_path)
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name
    assert [r["penalty"] for r in whole.history] == [r["penalty"] for r in resumed.history]


@quietly
def test_a_run_that_starts_from_another_weighs_by_the_choices_of_that_one() -> None:
    backbone, method = vision_backbone(dtype=torch.float32), L2P(**SMALL, diversify=True)
    first = fit(backbone, TASK, method, ROWS[:8], steps=3, **QUICK)
    second = fit(backbone, TASK, method, ROWS[8:], start=first, steps=2, **QUICK)
    third = fit(backbone, TASK, method, ROWS[:8], start=second, steps=1, **QUICK)
    counts = [tuned.module.state_dict() for tuned in (first, second, third)]
    assert [int(c["chosen"].sum()) for c in counts] == [3 * 8, 2 * 8, 1 * 8]
    assert not counts[0]["before"].any()
    assert torch.equal(counts[1]["before"], counts[0]["chosen"])
    assert torch.equal(counts[2]["before"], counts[0]["chosen"] + counts[1]["chosen"])


def random_prompt(method: L2P | VPT, seed: int = 0, task: Any = TASK) -> TunedPrompt:
    backbone = BACKBONES.setdefault("vit", vision_backbone())
    generator = torch.Generator().manual_seed(seed)
    module = method.build(BuildContext(backbone.spec, generator=generator)).double().requires_grad_(False)
    head = nn.Linear(WIDTH, 2).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_(generator=generator)
    return TunedPrompt(backbone, task, method, module, head=head)


BACKBONES: dict[str, Any] = {}


def test_predictions_depend_on_the_rest_of_the_batch_only_where_that_was_asked_for() -> None:
    inputs = [row["image"] for row in ROWS] + [ROWS[0]["image"].rotate(90), ROWS[1]["image"].rotate(180)]
    differ = {}
    for selection in ("row", "batch"):
        tuned = random_prompt(L2P(pool=12, length=2, top=1, selection=selection))
        together = [p.probabilities["red"] for p in tuned.predict(inputs)]
        alone = [tuned.predict([image])[0].probabilities["red"] for image in inputs]
        differ[selection] = max(abs(a - b) for a, b in zip(together, alone, strict=True))
    assert differ["row"] < FLOAT64
    assert differ["batch"] > 1e-3


def test_the_head_reads_the_prompts_unless_the_task_says_otherwise() -> None:
    assert random_prompt(L2P(**SMALL)).encoder.encode(ROWS[0]).read == (POOLINGS.index("prompts"),)
    task = ImageClassification(labels=["red", "blue"], pooling="class")
    tuned = random_prompt(L2P(**SMALL), task=task)
    assert tuned.encoder.encode(ROWS[0]).read == (POOLINGS.index("class"),)
    assert len(tuned.predict([ROWS[0]["image"]])) == 1


def test_rows_of_a_pool_and_of_other_prompts_share_a_batch() -> None:
    prompts = [
        random_prompt(L2P(**SMALL)),
        random_prompt(VPT(length=3, deep=False), 1),
        random_prompt(L2P(pool=4, length=3, top=3), 2),
        random_prompt(L2P(pool=4, length=1, top=1, selection="batch"), 3),
    ]
    inputs = [row["image"] for row in ROWS[:8]]
    numbers = [0, 1, 2, 0, 3, 2, 1, 0]
    mixed = MixedPrompts(prompts).predict(inputs, numbers)
    for image, n, found in zip(inputs, numbers, mixed, strict=True):
        (alone,) = prompts[n].predict([image])
        assert_equal_up_to_rounding(found, alone, torch.float64)


# --- what is refused -------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="top is 11, and the pool has 10 prompts"):
        L2P(top=11)
    with pytest.raises(ValueError, match="none were given"):
        built(L2P(), vision_backbone().spec)()
    task = SequenceClassification("{text}", labels=["neg", "pos"])
    with pytest.raises(ValueError, match="for text take PromptTuning"):
        fit(tiny_backbone(), task, L2P(), TEXTS, progress=False)
