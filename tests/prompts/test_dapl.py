"""DAPL: contexts of domains, pseudo-labels, and which texts compete."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from softprompt import DAPL, CoOp, ImageTextClassification, MixedPrompts, ZeroShot, fit, load
from softprompt.binding import bind
from softprompt.model import PromptedModel
from softprompt.prompts import BuildContext, PromptModule
from softprompt.protocols import mixed_rows, pseudo_labels
from softprompt.protocols.domain_adaptation import WEIGHT
from softprompt.store.identity import settings_of
from softprompt.tasks.image_text_classification import ImageTextClassificationEncoder
from softprompt.tasks.room import Room
from tests.naive import dapl as naive
from tests.naive import dual as naive_dual
from tests.tiny.dual import DUALS, TEXT_WIDTH, Dual, dual_backbone
from tests.tiny.vision import ROWS

TASK = ImageTextClassification(
    labels=["red", "blue"],
    template="a picture of a {}.",
    soft_template="{soft} {}, a {domain} film.",
    domains=["good", "old_house"],
    weight_column=WEIGHT,
)
METHOD = DAPL(length=2, domain_length=3)
SOURCE, TARGET = ROWS[:3], [{"image": row["image"]} for row in ROWS[3:8]]


def built(
    task: ImageTextClassification = TASK, method: DAPL = METHOD, dual: Dual = "clip"
) -> tuple[PromptedModel, Any, ImageTextClassificationEncoder]:
    """In float64."""
    backbone = dual_backbone(dual)
    context = BuildContext(
        backbone.spec, task.label_words, domains=task.domain_names, generator=torch.Generator().manual_seed(3)
    )
    module: PromptModule = method.build(context).double()
    encoder = bind(backbone, task, Room(length=module.length))
    assert isinstance(encoder, ImageTextClassificationEncoder)
    return PromptedModel(backbone, [module]), module, encoder


SEVERAL = {
    "template": ["a picture of a {}.", "the {}."],
    "soft_template": ["{soft} {} {domain}.", "{} {soft}."],
}


@pytest.mark.slow
@pytest.mark.parametrize(("specific", "templates"), [(False, 1), (True, 1), (False, 2)])
@pytest.mark.parametrize("over", ["domain", "all"])
@pytest.mark.parametrize("dual", DUALS)
def test_the_loss_is_that_of_source_labels_and_sure_pseudo_labels(
    dual: Dual, specific: bool, over: Literal["domain", "all"], templates: int
) -> None:
    written: dict[str, Any] = SEVERAL if templates == 2 else {}
    task = replace(TASK, normalize_over=over, **written)
    model, module, encoder = built(task, replace(METHOD, class_specific=specific), dual)
    backbone = model.backbone
    plain = fit(backbone, task, ZeroShot(), SOURCE, progress=False)
    sure = sorted(max(p.probabilities.values()) for p in plain.predict(TARGET))
    threshold = (sure[1] + sure[2]) / 2
    pseudo = pseudo_labels(plain, TARGET, threshold=threshold)
    assert len(pseudo.rows) == 3
    rows = [encoder.encode(row) for row in mixed_rows(task, SOURCE, pseudo.rows, 0.7)]
    ours = encoder.loss(model.score(rows), rows).mean()
    ours.backward()
    found = {name: p.grad for name, p in module.named_parameters()}
    module.zero_grad()

    def image(row: Any) -> torch.Tensor:
        media = encoder.encode(row, answer=False).media
        assert media is not None
        return naive_dual.image_embedding(backbone.model, media, backbone.spec.image.rule)  # type: ignore[union-attr]

    of_classes = [encoder.targets[i : i + templates] for i in range(0, 4 * templates, templates)]
    plain_texts = plain.encoder.targets  # type: ignore[attr-defined]
    theirs = naive.loss(
        backbone.model,
        backbone.tokenizer,
        lambda d, k: torch.cat([module.context[k if specific else 0], module.domains[d]]),
        [of_classes[:2], of_classes[2:]],
        [plain_texts[k * templates : (k + 1) * templates] for k in range(2)],
        [(image(row), task.labels.index(row["label"])) for row in SOURCE],
        [image(row) for row in TARGET],
        threshold,
        0.7,
        over == "all",
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    theirs.backward()
    for name, p in module.named_parameters():
        assert p.grad is not None
        assert p.grad.abs().max() > 0
        torch.testing.assert_close(found[name], p.grad, rtol=1e-8, atol=1e-10)


def test_texts_are_domain_by_domain_with_the_domains_own_words() -> None:
    _, _, encoder = built()
    tokenizer = dual_backbone().tokenizer
    words = [tokenizer.decode([atom for atom in text if atom >= 0]) for text in encoder.targets]
    assert words == [
        f"<s> {name}, a {domain} film.<end>" for domain in ("good", "old house") for name in ("red", "blue")
    ]
    encoded = [encoder.encode({**ROWS[0], "domain": domain}) for domain in TASK.domains]
    assert [row.gold for row in encoded] == [0, 2]
    assert encoder.encode(ROWS[0]).gold == 2  # a row that does not say is of the last


def test_a_domain_is_written_as_its_words_say() -> None:
    """DAPL's released code leaves the underscore in."""
    _, _, encoder = built(replace(TASK, domain_words={"old_house": "old _ house"}))
    tokenizer = dual_backbone().tokenizer
    words = [tokenizer.decode([atom for atom in text if atom >= 0]) for text in encoder.targets]
    assert words[2:] == [f"<s> {name}, a old _ house film.<end>" for name in ("red", "blue")]
    assert "domain_words" not in settings_of(TASK)
    with pytest.raises(ValueError, match=r"domain_words has \['sketch'\]"):
        replace(TASK, domain_words={"sketch": "drawing"})


@pytest.mark.parametrize(("over", "both"), [("domain", False), ("all", True)])
def test_a_domains_rows_move_another_domains_context_only_where_all_texts_compete(
    over: Literal["domain", "all"], both: bool
) -> None:
    task = replace(TASK, normalize_over=over)
    for domain in (0, 1):
        model, module, encoder = built(task)
        rows = [encoder.encode({**row, "domain": task.domains[domain]}) for row in SOURCE]
        encoder.loss(model.score(rows), rows).sum().backward()
        moved = module.domains.grad.abs().amax(dim=(1, 2)) > 0
        assert moved[domain]
        assert bool(moved[1 - domain]) is both


def test_a_prediction_is_made_with_the_texts_of_the_rows_domain() -> None:
    model, _, encoder = built()
    encoded = [encoder.encode({**ROWS[0], "domain": d}, answer=False) for d in TASK.domains]
    scores = model.score(encoded[:1]).scores()[0].detach()  # (D K,)
    expected = [scores[:2].softmax(0), scores[2:].softmax(0)]
    for prediction, shares in zip(encoder.predict(model, encoded), expected, strict=True):
        assert list(prediction.probabilities.values()) == pytest.approx(shares.tolist())


def test_labels_that_do_not_compete_are_left_out_in_every_domain() -> None:
    labels = ["red", "blue", "film"]
    task = replace(TASK, labels=labels, loss_labels=["red", "blue"], normalize_over="all")
    model, _, encoder = built(task)
    rows = [encoder.encode({**ROWS[0], "domain": "good"})]
    scores = model.score(rows).scores()[0]
    expected = -scores[[0, 1, 3, 4]].log_softmax(0)[0]
    torch.testing.assert_close(encoder.loss(model.score(rows), rows)[0], expected)


def test_both_contexts_learn_nothing_else_moves_and_the_prompt_is_saved(tmp_path: Path) -> None:
    backbone = dual_backbone(dtype=torch.float32)
    before = copy.deepcopy(backbone.model.state_dict())
    rows = mixed_rows(TASK, ROWS[:8], ROWS[8:])
    start = METHOD.build(
        BuildContext(backbone.spec, domains=TASK.domains, generator=torch.Generator().manual_seed(0))
    )
    tuned = fit(backbone, TASK, METHOD, rows, steps=10, batch_size=8, progress=False)
    assert set(tuned.trained()) == {"prompt.context", "prompt.domains"}
    assert tuned.module.state_dict()["domains"].shape == (2, 3, TEXT_WIDTH)
    for name, tensor in tuned.module.state_dict().items():
        assert not torch.equal(tensor, start.state_dict()[name])
    after = backbone.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    tuned.save(tmp_path / "prompt")
    again = load(tmp_path / "prompt", backbone)
    pictures = [row["image"] for row in ROWS[:3]]
    assert again.predict(pictures) == tuned.predict(pictures)
    other = again.with_labels(["cat", "dog", "tree"])
    assert list(other.predict(pictures)[0].probabilities) == ["cat", "dog", "tree"]
    with pytest.raises(ValueError, match="split it by prompt"):
        MixedPrompts([again, other]).predict(pictures, [0, 1, 0])


def test_coop_on_a_task_with_domains_has_one_context_for_all_their_texts() -> None:
    tuned = fit(dual_backbone(), TASK, CoOp(length=2), ROWS, steps=2, warmup=0, progress=False)
    assert tuned.evaluate(ROWS)["rows"] == len(ROWS)


def test_at_clips_size_so_many_numbers_are_trained() -> None:
    spec = replace(dual_backbone().spec, width=512)
    module = DAPL().build(BuildContext(spec, domains=TASK.domains))
    assert sum(p.numel() for p in module.parameters()) == 24_576


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"domains": ["photo"]}, "two or more, or none"),
        ({"domains": ["photo", "photo"]}, "the same text"),
        ({"domains": []}, r"has \{domain\}, and the task has no domains"),
        ({"domain_column": "where", "columns": {"domain": "x"}}, "does not read"),
    ],
)
def test_domains_that_cannot_be_meant_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TASK, **settings)


def test_rows_and_methods_that_do_not_fit_the_domains_are_named() -> None:
    _, _, encoder = built()
    with pytest.raises(ValueError, match="domain 'sketch' is not among the domains"):
        encoder.encode({**ROWS[0], "domain": "sketch"})
    with pytest.raises(ValueError, match="weight -1 in column"):
        encoder.encode({**ROWS[0], WEIGHT: -1})
    plain = ImageTextClassification(labels=["red", "blue"])
    with pytest.raises(ValueError, match="the task has none: set domains"):
        fit(dual_backbone(), plain, METHOD, ROWS, progress=False)
    with pytest.raises(ValueError, match="leave one out"):
        DAPL(length=4, init_text="a photo of a")
    model, _, _ = built()
    odd = bind(model.backbone, replace(plain, labels=["red", "blue", "film"]), Room(length=5))
    with pytest.raises(ValueError, match="contexts for 2 domains, and a row is compared with 3 texts"):
        model.score([odd.encode(ROWS[0])])
