"""The loop: what it optimises, when it stops, what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from softprompt.concerns import nothing_learned
from softprompt.errors import SoftpromptWarning, TrainingDiverged
from softprompt.training.loop import train
from softprompt.training.ongoing import count_tokens
from softprompt.training.progress import Record, Silent
from softprompt.training.recipe import Recipe, lr_factor
from softprompt.training.run import Run
from tests.tiny.training import ToyModel, ToyTask, evaluation, groups, tensors, toy_rows, toy_run
from tests.tolerances import assert_equal_up_to_rounding


class Told(Silent):
    def __init__(self) -> None:
        self.updates: list[Record] = []
        self.reports: list[tuple[Record, bool]] = []
        self.ended = False

    def update(self, record: Record) -> None:
        self.updates.append(record)

    def report(self, record: Record, *, is_best: bool) -> None:
        self.reports.append((record, is_best))

    def end(self) -> None:
        self.ended = True


def test_training_moves_every_trained_tensor_and_lowers_the_loss() -> None:
    model = ToyModel()
    before = tensors(model)
    result = toy_run(model, Recipe(steps=40))
    assert all(not torch.equal(before[name], tensor) for name, tensor in tensors(model).items())
    assert result.history[-1].loss < 0.7 * result.history[0].loss
    assert result.steps == len(result.history) == 40
    assert not result.stopped_early


def test_the_step_is_the_one_that_a_plain_loop_takes() -> None:
    """The naive loop: every row alone, its loss divided by the batch; AdamW; the schedule by hand."""
    recipe = Recipe(steps=6, batch_size=24, warmup=2, clip_norm=0.3, weight_decay=0.1)
    model, naive = ToyModel(dtype=torch.float64), ToyModel(dtype=torch.float64)
    toy_run(model, recipe, evaluate=None, main_metric=None)

    optimizer = torch.optim.AdamW(groups(naive), weight_decay=0.1)
    for factor in (1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25):
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.05 * factor, 0.025 * factor
        optimizer.zero_grad()
        for row in toy_rows():
            (ToyTask().loss(naive.score([row]), [row]).sum() / 24).backward()
        torch.nn.utils.clip_grad_norm_([naive.prompt, naive.offset], 0.3)
        optimizer.step()
    assert_equal_up_to_rounding(tensors(model), tensors(naive))


@pytest.mark.parametrize("accumulation", [2, 3, 5])
def test_micro_batches_give_the_gradient_of_the_whole_batch(accumulation: int) -> None:
    whole, split = ToyModel(dtype=torch.float64), ToyModel(dtype=torch.float64)
    # 13 rows in batches of 5: the last batch has 3 rows, fewer than some have micro-batches.
    a = toy_run(whole, Recipe(steps=12, batch_size=5), toy_rows(13))
    b = toy_run(split, Recipe(steps=12, batch_size=5, accumulation=accumulation), toy_rows(13))
    assert_equal_up_to_rounding(tensors(split), tensors(whole))
    assert_equal_up_to_rounding([r.loss for r in b.history], [r.loss for r in a.history], torch.float64)
    assert split.calls > whole.calls


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_the_same_seed_is_bit_identical_and_another_seed_does_not(optimizer: Any) -> None:
    ends = []
    for seed in (3, 3, 4):
        model = ToyModel(dropout=0.3)
        toy_run(model, Recipe(steps=25, seed=seed, optimizer=optimizer))
        ends.append(tensors(model))
    assert_close(ends[0], ends[1], rtol=0, atol=0)
    assert not torch.equal(ends[0]["prompt"], ends[2]["prompt"])


def test_the_callers_random_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    toy_run(ToyModel(dropout=0.3), Recipe(steps=3))
    assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_every_row_is_seen_once_in_an_epoch() -> None:
    model, rows, seen = ToyModel(), toy_rows(10), []
    score = model.score

    def noting(batch: Any) -> Any:
        seen.extend(batch)
        return score(batch)

    model.score = noting  # type: ignore[method-assign]
    toy_run(model, Recipe(steps=6, batch_size=4), rows, evaluate=None, main_metric=None)
    assert sorted(map(id, seen[:10])) == sorted(map(id, seen[10:])) == sorted(map(id, rows))
    assert list(map(id, seen[:10])) != list(map(id, seen[10:]))


def test_the_best_tensors_are_the_ones_that_are_left() -> None:
    model = ToyModel()
    values, kept = iter([0.2, 0.9, 0.9, 0.4]), []

    def evaluate() -> dict[str, float]:
        assert not torch.is_grad_enabled()
        kept.append(tensors(model))
        return {"accuracy": next(values)}

    recipe = Recipe(steps=12, evaluate_every=3)
    result = toy_run(model, recipe, evaluate=evaluate, main_metric="accuracy")
    assert (result.best_step, result.metrics) == (6, {"accuracy": 0.9})  # the earlier of two equal ones
    assert_close(tensors(model), kept[1], rtol=0, atol=0)
    assert [record.step for record in result.history if record.metrics] == [3, 6, 9, 12]


def test_gradient_still_reaches_the_prompt_after_an_evaluation() -> None:
    model = ToyModel()
    result = toy_run(model, Recipe(steps=4, evaluate_every=1))
    assert all(record.gradient_norm > 0 for record in result.history)


def test_the_last_step_is_evaluated_also_out_of_turn() -> None:
    model = ToyModel()
    result = toy_run(model, Recipe(steps=7, evaluate_every=3))
    assert [record.step for record in result.history if record.metrics] == [3, 6, 7]


def test_patience_ends_a_run_that_no_longer_improves() -> None:
    values = iter([0.5, 0.6, 0.6, 0.1])
    result = toy_run(
        ToyModel(),
        Recipe(steps=50, evaluate_every=2, patience=2),
        evaluate=lambda: {"accuracy": next(values)},
        main_metric="accuracy",
    )
    assert (result.steps, result.stopped_early, result.best_step) == (8, True, 4)


def test_a_metric_that_is_nan_is_never_best() -> None:
    values = iter([float("nan"), 0.5, float("nan")])
    recipe = Recipe(steps=3, evaluate_every=1)
    result = toy_run(ToyModel(), recipe, evaluate=lambda: {"f1": next(values)}, main_metric="f1")
    assert result.best_step == 2


def test_without_evaluation_the_last_tensors_stand() -> None:
    model = ToyModel()
    result = toy_run(model, Recipe(steps=5), evaluate=None, main_metric=None)
    assert (result.best_step, dict(result.metrics)) == (None, {})


@pytest.mark.parametrize(("at", "kept"), [(3, None), (8, 6)])
def test_a_diverging_run_stops_and_gives_the_last_good_tensors_back(at: int, kept: int | None) -> None:
    model, told = ToyModel(), Told()
    score, good = model.score, {}

    def breaking(rows: Any) -> Any:
        if torch.is_grad_enabled():
            step = len(told.updates)
            good[step] = tensors(model)
            if step == at - 1:
                return score(rows).__class__(
                    **{**vars(score(rows)), "logits": score(rows).logits * torch.nan}
                )
        return score(rows)

    model.score = breaking  # type: ignore[method-assign]
    recipe = Recipe(steps=20, evaluate_every=6)
    with pytest.raises(
        TrainingDiverged, match=rf"step {at}: loss nan.*learning rate.*learning_rate of"
    ) as raised:
        toy_run(model, recipe, progress=told)
    assert_close(tensors(model), good[kept if kept is not None else at - 1], rtol=0, atol=0)
    assert raised.value.step == at
    assert raised.value.lr == pytest.approx(0.05 * lr_factor(recipe, at - 1))
    assert told.ended


def test_a_gradient_that_is_not_finite_stops_the_run_too() -> None:
    model = ToyModel()
    model.prompt.register_hook(lambda gradient: gradient * torch.inf)
    before = tensors(model)
    with pytest.raises(TrainingDiverged, match=r"gradient norm (inf|nan)"):
        toy_run(model, Recipe(steps=3))
    assert_close(tensors(model), before, rtol=0, atol=0)


def test_a_loss_that_does_not_fall_is_a_concern() -> None:
    told = nothing_learned([1.0] * 2 + [0.2] * 16 + [1.5] * 2, [1.0] * 20)
    assert told is not None
    assert "did not fall: its median was 1 over the first 2 steps and 1.5" in told
    assert nothing_learned([1.0] * 2 + [1.2] * 16 + [0.9] * 2, [1.0] * 20) is None
    assert nothing_learned([1.0] * 19, [1.0] * 19) is None  # too short to judge


def test_gradients_that_are_all_zero_are_a_warning() -> None:
    model = ToyModel()
    model.head.zero_()
    with pytest.warns(SoftpromptWarning, match="every gradient was zero"):
        toy_run(model, Recipe(steps=3))


def test_progress_is_told_of_steps_evaluations_and_tokens() -> None:
    told, rows = Told(), toy_rows(8)
    result = toy_run(ToyModel(), Recipe(steps=20, batch_size=8, schedule="constant"), rows, progress=told)
    assert [record.step for record in told.updates] == list(range(1, 21))
    assert [record.step for record, _ in told.reports] == list(range(2, 21, 2))
    assert all(set(record.metrics) == {"likelihood", "worst"} for record, _ in told.reports)
    assert told.reports[0][1]
    assert result.history[0].tokens == sum(len(row.context) + 2 for row in rows)
    assert result.tokens == 20 * result.history[0].tokens
    assert result.history[-1].lr == 0.05
    assert count_tokens(rows[0]) == 3 + 1 + 2


def test_trackers_log_through_accelerate(tmp_path: Path) -> None:
    toy_run(ToyModel(), Recipe(steps=4, trackers=("tensorboard",)), folder=tmp_path)
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_arguments_that_do_not_fit_together_are_named() -> None:
    model, recipe, rows = ToyModel(), Recipe(steps=2), toy_rows()
    whole = [{"params": [model.prompt, model.offset]}]
    with pytest.raises(ValueError, match="nothing to train"):
        train(model, ToyTask(), Run({}, [], rows, recipe))
    with pytest.raises(ValueError, match="no training rows"):
        train(model, ToyTask(), Run(model.parameters, groups(model), [], recipe))
    with pytest.raises(ValueError, match=r"without a group: \['offset'\]"):
        train(model, ToyTask(), Run(model.parameters, groups(model)[:1], rows, recipe))
    with pytest.raises(ValueError, match="needs its own 'lr'"):
        train(model, ToyTask(), Run(model.parameters, whole, rows, recipe))
    with pytest.raises(ValueError, match="evaluate was given without main_metric"):
        toy_run(model, recipe, main_metric=None)
    with pytest.raises(ValueError, match=r"no metric 'accuracy'; it has \['likelihood', 'worst'\]"):
        toy_run(model, recipe, main_metric="accuracy")
    with pytest.raises(ValueError, match=r"trackers has 'tensorboard'.*folder is None"):
        toy_run(model, Recipe(trackers=("tensorboard",)))
    with pytest.raises(ValueError, match=r"not installed: \['wandb'\]"):
        toy_run(model, Recipe(trackers=("wandb",)))
    model.offset.requires_grad_(False)
    with pytest.raises(ValueError, match=r"requires_grad=False: \['offset'\]"):
        toy_run(model, recipe)


def test_a_loss_that_is_no_loss_per_row_or_has_no_gradient_is_an_error() -> None:
    class Mean(ToyTask):
        def loss(self, logits: Any, rows: Any) -> torch.Tensor:
            return super().loss(logits, rows).mean()

    class Cut(ToyTask):
        def loss(self, logits: Any, rows: Any) -> torch.Tensor:
            return super().loss(logits, rows).detach()

    model = ToyModel()
    for task, message in ((Mean(), r"shape \(\) for 16 rows"), (Cut(), "depends on none of the trained")):
        with pytest.raises(ValueError, match=message):
            train(model, task, Run(model.parameters, groups(model), toy_rows(), Recipe(steps=2)))
    assert evaluation(model)
