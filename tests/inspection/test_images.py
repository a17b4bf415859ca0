"""What is said of prompts for images: labelled images, and the words near to contexts of dual encoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from softprompt import DAPL, VPT, CoCoOp, CoOp, ImageClassification, ImageTextClassification, fit
from softprompt.inspection.images import inspect_images
from softprompt.inspection.virtual_tokens import inspect_prompt
from softprompt.prompts import Method
from softprompt.tuned import TunedPrompt
from tests.tiny.dual import dual_backbone
from tests.tiny.vision import ROWS, vision_backbone
from tests.tolerances import assert_equal_up_to_rounding

pytestmark = pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")

TASK = ImageTextClassification(labels=["red", "blue"])
DOMAINS = replace(TASK, domains=["good", "old_house"], soft_template="{soft} {}, a {domain} film.")


def tuned(method: Method, task: ImageTextClassification = TASK) -> TunedPrompt:
    return fit(dual_backbone(dtype=torch.float32), task, method, ROWS[:6], steps=1, warmup=0, progress=False)


@pytest.mark.parametrize(
    ("method", "task", "prompts"),
    [
        (CoOp(length=2), TASK, [""]),
        (CoOp(length=2, class_specific=True), TASK, ["red", "blue"]),
        (DAPL(length=1, domain_length=1), DOMAINS, ["good", "old_house"]),
        (
            DAPL(length=1, domain_length=1, class_specific=True),
            DOMAINS,
            ["good red", "good blue", "old_house red", "old_house blue"],
        ),
    ],
)
def test_each_token_says_whose_it_is(
    method: Method, task: ImageTextClassification, prompts: list[str]
) -> None:
    prompt = tuned(method, task)
    found = inspect_prompt(prompt, k=2)
    assert [token.place for token in found.tokens] == [f"{p} {i}".strip() for p in prompts for i in range(2)]
    tokens = prompt.module().tokens
    norms = tokens.flatten(0, 1).norm(dim=1).tolist()
    assert [token.norm for token in found.tokens] == pytest.approx(norms)
    table = prompt.backbone.spec.embed(torch.arange(prompt.backbone.spec.vocabulary))
    nearest = torch.nn.functional.cosine_similarity(tokens.flatten(0, 1)[:, None], table, dim=-1).argmax(1)
    assert [token.nearest["cosine"][0].id for token in found.tokens] == nearest.tolist()


def test_of_contexts_that_depend_on_the_image_the_mean_over_images_is_shown() -> None:
    prompt = tuned(CoCoOp(length=2, reduction=4))
    without = inspect_images(prompt).words
    assert without is not None
    assert without.tokens == ()
    assert "give rows" in without.beside[0]
    found = inspect_images(prompt, ROWS[:3]).words
    assert found is not None
    assert "mean over 3 rows" in found.beside[0]
    rows = [prompt.encoder.encode(row, answer=False) for row in ROWS[:3]]
    mean = prompt.model.prompt(rows).tokens.mean(0)  # type: ignore[union-attr]
    assert [token.norm for token in found.tokens] == pytest.approx(mean.norm(dim=1).tolist())


def test_labelled_images_are_counted_and_others_are_not() -> None:
    backbone = vision_backbone(dtype=torch.float32)
    labels = ImageClassification(labels=["red", "blue"])
    for prompt in (
        tuned(CoOp(length=2)),
        fit(backbone, labels, VPT(length=1), ROWS, steps=1, progress=False),
    ):
        found = inspect_images(prompt, [ROWS[0]["image"], *ROWS[1:4]])
        assert [image.right for image in found.images] == [None, *(row["label"] for row in ROWS[1:4])]
        assert_equal_up_to_rounding(found.metrics, prompt.evaluate(ROWS[1:4]))
        assert (found.words is None) == (prompt.task is labels)
        assert not inspect_images(prompt, [ROWS[0]["image"]]).metrics
    with pytest.raises(ValueError, match="label 'green' is not among the labels"):
        inspect_images(prompt, [{**ROWS[0], "label": "green"}])
