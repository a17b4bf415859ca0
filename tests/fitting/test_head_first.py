"""A head that is fitted first: training begins at a probe of the frozen states, and never ends below it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import softprompt as sp
from softprompt.fitting.head_first import RATE, fit_head
from softprompt.fitting.preparation import Data, PreparedRun, prepare
from softprompt.training.progress import Silent
from softprompt.training.recipe import Recipe
from tests.tiny.encoders import encoder_backbone
from tests.tiny.task import ROWS

WHOLE = sp.SequenceClassification("{text}", labels=["neg", "pos"])
PROMPT = sp.PromptTuning(length=2)
TAGGED = [
    {
        "words": row["text"].split(),
        "tags": ["B-X" if w in ("film", "dog") else "O" for w in row["text"].split()],
    }
    for row in ROWS
]
RATED = [{"text": row["text"], "score": float(row["label"] == "pos")} for row in ROWS]
pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")


def prepared(
    method: sp.Method = PROMPT, task: Any = WHOLE, rows: Any = ROWS, validation: Any = ROWS, **settings: Any
) -> PreparedRun:
    return prepare(encoder_backbone(), task, method, Recipe(**settings), Data.read(rows, validation))


def loss_of(run: PreparedRun) -> float:
    rows = run.encoded("train")
    with torch.no_grad():
        return float(run.encoder.loss(run.model.outputs(rows), rows).mean())


@pytest.mark.slow
@pytest.mark.parametrize("method", [PROMPT, sp.PTuningV2(length=2), sp.LoRA(rank=2)], ids=lambda m: m.name)
def test_the_head_alone_moves_before_the_first_step(method: sp.Method) -> None:
    run = prepared(method, head_first=True)
    before = {name: tensor.detach().clone() for name, tensor in run.parameters.items()}
    untaught = loss_of(run)
    run.run(Silent())
    moved = {name for name, tensor in run.parameters.items() if not torch.equal(tensor, before[name])}
    assert moved == {"head.weight", "head.bias"}
    assert loss_of(run) < 0.8 * untaught


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "rows"),
    [
        (sp.TokenClassification(tags=["O", "B-X"]), TAGGED),
        (sp.Regression("{text}", low=0, high=1, value_column="score"), RATED),
        (sp.SequenceClassification("{text}", labels=["neg", "pos"], pooling="mean"), ROWS),
    ],
    ids=["tags", "values", "mean"],
)
@pytest.mark.parametrize("judged", [True, False])
def test_every_task_with_a_head_takes_it(task: Any, rows: Any, judged: bool) -> None:
    run = prepared(PROMPT, task, rows, rows if judged else None, head_first=True)
    untaught = loss_of(run)
    run.run(Silent())
    assert loss_of(run) < untaught


def test_it_is_the_minimum_of_the_penalised_loss() -> None:
    run = prepared()
    assert run.head is not None
    rows = run.encoded("train")
    fit_head(
        run.head, run.model, run.encoder, rows, rows, seed=0, batch_size=5
    )  # judges that choose the weakest
    states = run.model.states(rows).detach().double()
    head = run.head.double()
    loss = run.encoder.loss(head(states), rows).mean()
    loss = loss + 1e-4 * states.square().mean() / 2 * next(head.parameters()).square().sum()
    gradients = torch.autograd.grad(loss, [*head.parameters()])
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-4


def test_a_ruinous_rate_ends_at_the_start_and_not_below_it() -> None:
    run = prepared(head_first=True)
    run.run(Silent())
    start = run.validate()
    tuned = sp.fit(
        encoder_backbone(),
        WHOLE,
        PROMPT,
        ROWS,
        ROWS,
        head_first=True,
        learning_rate=50.0,
        head_learning_rate=50.0,
        steps=3,
        warmup=0,
        progress=False,
    )
    assert tuned.recipe["best_step"] == 0
    assert tuned.metrics["validation"]["accuracy"] == start["accuracy"] == tuned.evaluate(ROWS)["accuracy"]


def test_the_head_is_trained_on_at_a_tenth_of_its_rate_unless_one_is_given() -> None:
    def rate(**settings: Any) -> float:
        return float(prepared(**settings).groups()[-1]["lr"])

    assert rate(head_first=True) == pytest.approx(RATE * rate())
    assert rate(head_first=True, head_learning_rate=0.5) == 0.5


@pytest.mark.slow
def test_it_is_resumed_bit_identically_and_with_fit_many(tmp_path: Path) -> None:
    def train(folder: Path | None, stop: int | None = None) -> sp.TunedPrompt:
        class Stop(sp.Callback):
            def on_step(self, record: Any) -> None:
                if record.step == stop:
                    raise KeyboardInterrupt

        return sp.fit(
            encoder_backbone(),
            WHOLE,
            PROMPT,
            ROWS,
            ROWS,
            head_first=True,
            steps=4,
            folder=folder,
            callbacks=[Stop()],
            progress=False,
        )

    whole = train(None).state()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, stop=2)
    resumed = train(tmp_path).state()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    recipe = Recipe(head_first=True, steps=4)
    [together] = sp.fit_many(encoder_backbone(), WHOLE, [(PROMPT, recipe)], ROWS, ROWS, progress=False)
    for name, tensor in together.state().items():
        torch.testing.assert_close(tensor, whole[name], rtol=1e-4, atol=1e-5)
