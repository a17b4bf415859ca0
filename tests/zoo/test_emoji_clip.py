"""The dual encoder that is trained here: its loss, its projections, and the model that they are put into."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, Dinov2Config, Dinov2Model

from softprompt import ImageTextClassification, ZeroShot, fit, load_backbone
from softprompt.images import ImageRule
from softprompt.zoo.emoji_clip import (
    ContrastiveTraining,
    Projections,
    assembled,
    at_size,
    contrastive_loss,
    image_features,
    text_features,
    train_projections,
)
from tests.tiny.dual import dual_tokenizer
from tests.tiny.vision import ROWS

QUICK = ContrastiveTraining(width=6, steps=60, batch=8, learning_rate=0.03, dropouts=(0.1, 0.1))


def pairs(seed: int = 0) -> tuple[list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor]]:
    """Two styles whose images are linear in their text's features, and two templates."""
    generator = torch.Generator().manual_seed(seed)
    texts = torch.randn(12, 5, generator=generator)
    maps = [torch.randn(5, 7, generator=generator) for _ in range(2)]
    about = [torch.arange(12), torch.randperm(12, generator=generator)[:9]]
    styles = [(texts[which] @ m, which) for which, m in zip(about, maps, strict=True)]
    return styles, [texts, texts + 0.01]


def test_the_loss_asks_images_for_texts_and_texts_for_images() -> None:
    images, texts = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = torch.tensor(0.7, dtype=torch.float64)
    expected = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        for one, others in ((images[i], texts), (texts[i], images)):
            scores = [scale.exp() * (one @ other) / (one.norm() * other.norm()) for other in others]
            expected = expected - torch.stack(scores).log_softmax(0)[i] / 6
    torch.testing.assert_close(contrastive_loss(images, texts, scale), expected)


def test_projections_learn_which_text_is_about_which_image_the_same_for_the_same_seed() -> None:
    styles, texts = pairs()
    first, again = (train_projections(styles, texts, QUICK) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.text, again.text)
    assert (first.image.shape, first.text.shape) == ((6, 7), (6, 5))
    images, about = styles[0]
    other = train_projections(styles, texts, ContrastiveTraining(width=6, steps=0))
    before, after = (
        contrastive_loss(images @ p.image.T, texts[0][about] @ p.text.T, torch.tensor(2.0))
        for p in (other, first)
    )
    assert after < 0.5 * before
    with pytest.raises(ValueError, match="a style has 1 images"):
        train_projections([(images[:1], about[:1])], texts, QUICK)


def towers(size: int = 20) -> tuple[Dinov2Model, BertModel]:
    sees = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=size, patch_size=4
    )
    reads = BertConfig(
        vocab_size=len(dual_tokenizer("vit-bert")),
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vision, text = Dinov2Model(sees), BertModel(reads)
        vision.embeddings.position_embeddings.data.normal_()
    return vision.eval(), text.eval()


@torch.no_grad()
def test_positions_interpolated_once_are_those_that_the_model_interpolates_each_time() -> None:
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = towers()[0](pixel_values=pixels).last_hidden_state
    model = at_size(towers()[0], 12)
    assert model.config.image_size == 12
    torch.testing.assert_close(model(pixel_values=pixels).last_hidden_state, expected)


def test_the_folder_is_a_dual_encoder_that_compares_what_was_projected(tmp_path: Path) -> None:
    vision, text = towers()
    vision = at_size(vision, 12)
    rule = ImageRule((12, 12), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    generator = torch.Generator().manual_seed(1)
    learned = Projections(
        torch.randn(6, 16, generator=generator), torch.randn(6, 12, generator=generator), torch.tensor(1.5)
    )
    tokenizer = dual_tokenizer("vit-bert")
    pictures = [row["image"] for row in ROWS[:3]]
    images = image_features(vision, pictures, rule) @ learned.image.T
    texts = text_features(text, tokenizer, ["red.", "blue."]) @ learned.text.T
    cosines = torch.nn.functional.cosine_similarity(images[:, None], texts[None], dim=-1)
    expected = (cosines * torch.tensor(1.5).exp()).softmax(dim=1)

    assembled(vision, text, learned).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path, processor=rule, dtype="float32", device="cpu")
    task = ImageTextClassification(labels=["red", "blue"], template="{}.")
    found = fit(backbone, task, ZeroShot(), ROWS, progress=False).predict(pictures)
    shares = torch.tensor([list(one.probabilities.values()) for one in found])
    torch.testing.assert_close(shares, expected, rtol=1e-4, atol=1e-5)
