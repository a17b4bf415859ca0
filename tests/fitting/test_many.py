"""fit_many: every run gives its own result, whatever is trained beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softprompt import (
    L2P,
    VPT,
    ADePT,
    DePT,
    LoRA,
    MLPProbe,
    PrefixTuning,
    PromptTuning,
    PTuning,
    PTuningV2,
    Recipe,
    SequenceClassification,
    SoftpromptWarning,
    TrainingDiverged,
    TunedPrompt,
    ZeroShot,
    fit,
    fit_many,
)
from softprompt.backbones.base import Backbone
from softprompt.prompts.base import Method
from softprompt.tasks.base import Task
from softprompt.training.progress import Record, Silent
from tests.tiny.encoders import encoder_backbone
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tiny.vision import ROWS as IMAGES
from tests.tiny.vision import TASK as IMAGE_TASK
from tests.tiny.vision import vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

WHOLE = SequenceClassification("{text}", labels=["neg", "pos"])
Runs = list[tuple[Method, Recipe]]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[nn.ModuleDict]:
    """Prompt and head of every run that is prepared, in order, all of them in float64."""
    from softprompt.fitting import preparation

    found: list[nn.ModuleDict] = []
    prepare = preparation.prepare

    def wrapped(backbone: Backbone, task: Task, method: Method, *rest: Any, **options: Any) -> Any:
        build, new_head = type(method).build, preparation.new_head
        with monkeypatch.context() as patch:
            patch.setattr(type(method), "build", lambda self, context: build(self, context).double())
            patch.setattr(preparation, "new_head", lambda *given: (h := new_head(*given)) and h.double())
            prepared = prepare(backbone, task, method, *rest, **options)
        parts = {"prompt": prepared.module, "head": prepared.head}
        found.append(nn.ModuleDict({name: part for name, part in parts.items() if part is not None}))
        return prepared

    monkeypatch.setattr("softprompt.fitting.one.prepare", wrapped)
    monkeypatch.setattr("softprompt.fitting.many.prepare", wrapped)
    return found


class Steps(Silent):
    """Keeps what was trained after every step of one run."""

    def __init__(self, built: list[nn.ModuleDict], number: int) -> None:
        self.built, self.number = built, number
        self.tensors: list[dict[str, Tensor]] = []

    def update(self, record: Record) -> None:
        module = self.built[self.number]
        self.tensors.append({name: tensor.clone() for name, tensor in module.state_dict().items()})


def facts(tuned: TunedPrompt) -> dict[str, Any]:
    return {name: value for name, value in tuned.recipe.items() if name != "seconds"}


def assert_as_alone(
    built: list[nn.ModuleDict], backbone: Backbone, task: Task, runs: Runs, rows: list[Any], **options: Any
) -> list[TunedPrompt]:
    watchers = [Steps(built, n) for n in range(len(runs))]
    together = fit_many(backbone, task, runs, rows, rows[:6], progress=watchers, **options)
    for (method, recipe), ours, told in zip(runs, together, watchers, strict=True):
        own = Steps(built, len(built))
        alone = fit(backbone, task, method, rows, rows[:6], recipe=recipe, progress=own)
        assert len(told.tensors) == len(own.tensors) > 0
        assert_equal_up_to_rounding(told.tensors, own.tensors)
        assert any(not torch.equal(told.tensors[0][name], last) for name, last in told.tensors[-1].items())
        assert_equal_up_to_rounding(ours.trained(), alone.trained())
        assert facts(ours) == facts(alone)
        assert_equal_up_to_rounding(ours.metrics, alone.metrics, torch.float64)
        for name in ("step", "loss", "lr", "gradient_norm", "tokens", "penalty"):
            found, expected = ([r.get(name) for r in one.history] for one in (ours, alone))
            assert_equal_up_to_rounding(found, expected, torch.float64)
    return together


def recipes(count: int = 3, scale: float = 1.0, **settings: Any) -> list[Recipe]:
    """Of runs that differ in seed and learning rate, and in how they go on from there.

    scale: of the rates. Where a gradient is zero but for rounding, AdamW makes steps of what is left of it.
    """
    common = {"steps": 5, "batch_size": 6, "evaluate_every": 2, **settings}
    own: list[dict[str, Any]] = [
        {"learning_rate": 0.05 * scale},
        {"learning_rate": 0.3 * scale, "clip_norm": None, "schedule": "cosine", "warmup": 2},
        {"learning_rate": 0.1 * scale, "optimizer": "adafactor", "evaluate_every": 1, "patience": 2},
    ]
    return [Recipe(**{**common, **own[n], "seed": n}) for n in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "methods",
    [
        [PromptTuning(length=3), PromptTuning(length=3, init="uniform"), PromptTuning(length=3)],
        [PTuning(length=2), DePT(length=2, budget=8), ADePT(length=4)],
        [PTuningV2(length=3, dropout=0.3), PrefixTuning(length=2, dropout=0.2), PromptTuning(length=2)],
    ],
    ids=["seeds", "offsets", "prefixes with dropout"],
)
def test_each_step_of_each_run_is_the_one_it_takes_alone(
    methods: list[Method], built: list[nn.ModuleDict]
) -> None:
    backbone = tiny_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    chance = torch.random.get_rng_state()
    scale = 0.01 if any(isinstance(method, PrefixTuning) for method in methods) else 1.0
    runs = list(zip(methods, recipes(scale=scale, accumulation=2), strict=True))
    assert_as_alone(built, backbone, TASK, runs, ROWS)
    assert torch.equal(torch.random.get_rng_state(), chance)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())


def test_heads_of_an_encoder_with_their_own_dropout(built: list[nn.ModuleDict]) -> None:
    backbone = encoder_backbone(head=False)
    methods = [
        MLPProbe(hidden=8, dropout=0.4),
        PTuningV2(length=2, dropout=0.3),
        MLPProbe(hidden=8, dropout=0.4),
    ]
    assert_as_alone(built, backbone, WHOLE, list(zip(methods, recipes(), strict=True)), ROWS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    [
        VPT(length=2, dropout=0.3, dropout_mask="batch"),
        VPT(length=2, first_layers=2),
        L2P(pool=4, length=2, top=2),
    ],
    ids=["vpt", "vpt below", "l2p"],
)
def test_images_with_prompts_in_their_layers_or_picked_by_each_row(
    method: Method, built: list[nn.ModuleDict]
) -> None:
    rows = list(IMAGES[:12])
    assert_as_alone(built, vision_backbone(), IMAGE_TASK, [(method, recipe) for recipe in recipes(2)], rows)


def test_a_run_that_stops_early_and_one_that_diverges_do_not_touch_the_others(
    built: list[nn.ModuleDict],
) -> None:
    backbone, method = tiny_backbone(), PromptTuning(length=3)
    usual = Recipe(steps=6, batch_size=6, learning_rate=0.05, evaluate_every=1)
    early = Recipe(steps=6, batch_size=6, learning_rate=1e-12, evaluate_every=1, patience=1, seed=1)
    wild = Recipe(steps=6, batch_size=6, learning_rate=1.7e308, clip_norm=None, seed=2, evaluate_every=1)
    with pytest.warns(SoftpromptWarning, match="run 1: training diverged at step"):
        first, gone, short = fit_many(
            backbone, TASK, [(method, usual), (method, wild), (method, early)], ROWS, ROWS, progress=False
        )
    alone = fit(backbone, TASK, method, ROWS, ROWS, recipe=usual, progress=False)
    assert_equal_up_to_rounding(first.trained(), alone.trained())
    losses = ([r["loss"] for r in one.history] for one in (first, alone))
    assert_equal_up_to_rounding(*losses, torch.float64)
    with pytest.raises(TrainingDiverged) as caught:
        fit(backbone, TASK, method, ROWS, ROWS, recipe=wild, progress=False)
    assert gone.recipe["diverged_at"] == caught.value.step > 1
    assert_equal_up_to_rounding(gone.trained(), caught.value.last_good.trained())
    assert short.recipe["steps_made"] == 2
    assert first.recipe["steps_made"] == 6


def test_runs_that_were_broken_off_go_on_together_or_alone(
    tmp_path: Path, built: list[nn.ModuleDict]
) -> None:
    class Stopping(Silent):
        def update(self, record: Record) -> None:
            if record.step == 3:
                raise InterruptedError

    backbone, method = tiny_backbone(), PTuningV2(length=2, dropout=0.3)
    runs: Runs = [(method, Recipe(steps=5, batch_size=6, checkpoint_every=1, seed=seed)) for seed in (0, 1)]
    whole = fit_many(backbone, TASK, runs, ROWS, progress=False)
    with pytest.raises(InterruptedError):
        fit_many(backbone, TASK, runs, ROWS, folder=tmp_path, progress=[Silent(), Stopping()])
    alone = fit(
        backbone, TASK, *runs[0][:1], ROWS, recipe=runs[0][1], folder=tmp_path / "run-0", progress=False
    )
    together = fit_many(backbone, TASK, runs, ROWS, folder=tmp_path, progress=False)
    assert_equal_up_to_rounding(alone.trained(), whole[0].trained())
    for ours, expected in zip(together, whole, strict=True):
        assert len(ours.history) == 5
        assert_equal_up_to_rounding(ours.trained(), expected.trained())


def test_an_interrupt_leaves_a_checkpoint_of_every_run(tmp_path: Path) -> None:
    class Interrupting(Silent):
        def update(self, record: Record) -> None:
            if record.step == 2:
                raise KeyboardInterrupt

    runs: Runs = [
        (PromptTuning(length=2), Recipe(steps=4, batch_size=6, checkpoint_every=4, seed=n)) for n in (0, 1)
    ]
    with pytest.raises(KeyboardInterrupt) as caught:
        fit_many(tiny_backbone(), TASK, runs, ROWS, folder=tmp_path, progress=[Interrupting(), Silent()])
    notes = " ".join(caught.value.__notes__)
    assert all(f"start it again with the folder {tmp_path / f'run-{number}'}" in notes for number in (0, 1))
    assert sorted(path.parent.name for path in tmp_path.rglob("checkpoint.safetensors")) == ["run-0", "run-1"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InterruptedError])
def test_the_progress_of_every_run_is_ended_once_whatever_breaks_one_off(error: type[BaseException]) -> None:
    class Counting(Silent):
        def __init__(self, breaks_at: int | None) -> None:
            self.breaks_at, self.ended = breaks_at, 0

        def update(self, record: Record) -> None:
            if record.step == self.breaks_at:
                raise error

        def end(self) -> None:
            self.ended += 1

    runs: Runs = [(PromptTuning(length=2), Recipe(steps=4, batch_size=6, seed=n)) for n in (0, 1, 2)]
    watchers = [Counting(None), Counting(2), Counting(None)]
    with pytest.raises(error):
        fit_many(tiny_backbone(), TASK, runs, ROWS, progress=watchers)
    assert [watcher.ended for watcher in watchers] == [1, 1, 1]


def test_what_cannot_share_a_pass_is_said() -> None:
    backbone, usual = tiny_backbone(), Recipe(steps=2, batch_size=4)

    def refused(message: str, *runs: tuple[Method, Recipe], **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            fit_many(backbone, TASK, list(runs), ROWS, progress=False, **options)

    run = (PromptTuning(length=2), usual)
    refused("there are no runs")
    refused("run 1: lora changes weights of the backbone", run, (LoRA(), usual))
    refused("run 0: zero-shot trains no tensors", (ZeroShot(), usual))
    refused("batch_size must be the same in all recipes: it is 4 in run 0 and 8 in run 1", run,
            (run[0], Recipe(steps=2, batch_size=8)))  # fmt: skip
    refused(r"run 0 has trackers \['tensorboard'\]", (run[0], Recipe(trackers=("tensorboard",))))
    refused("give one for each", run, run, folder=["a", "a"])
    vpt = (VPT(length=2, dropout=0.1), usual)
    with pytest.raises(ValueError, match=r"by a mask for each row.*dropout_mask=.batch"):
        fit_many(vision_backbone(), IMAGE_TASK, [vpt, vpt], list(IMAGES[:8]), progress=False)
