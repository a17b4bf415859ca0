"""What the golden files were written from: tasks, methods, recipes and rows. Nothing here ever changes.

Learning rates are given, as a default that is a fraction of the embeddings' standard deviation may differ in its last bit
on another processor, and a checkpoint knows its rate exactly.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import softprompt as sp
from tests.golden.models import picture

HERE = Path(__file__).parent

WORDS = (("good", "pos"), ("bad", "neg"), ("great", "pos"), ("awful", "neg"))
TEXTS = [
    {"text": f"the {thing} is {word}", "label": label} for thing in ("film", "book") for word, label in WORDS
]
OTHERS = [{"text": f"a {word} story", "label": label} for word, label in WORDS]
COLOURS = {"red": (200, 60, 60), "blue": (60, 60, 200), "green": (60, 200, 60), "grey": (128, 128, 128)}
PICTURES = [
    {"image": picture(*rgb, number=number), "label": label}
    for number in range(2)
    for label, rgb in COLOURS.items()
]
OTHER_PICTURES = [{"image": picture(*rgb, number=7), "label": label} for label, rgb in COLOURS.items()]

ANSWERED_BY_WORDS = sp.TextClassification("{text}\nmood:", labels={"neg": " bad", "pos": " fun"})
ANSWERED_BY_A_HEAD = sp.SequenceClassification("{text}", labels=["neg", "pos"])
OF_IMAGES = sp.ImageClassification(labels=list(COLOURS))
OF_IMAGES_AND_TEXTS = sp.ImageTextClassification(
    labels=list(COLOURS), names={"grey": "dark grey"}, template="a picture of a {}."
)


@dataclass(frozen=True)
class Case:
    """A prompt that is trained.

    data: training rows, and rows to validate on and to predict
    """

    backbone: str
    task: Any
    method: Any
    data: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]] = (TEXTS, OTHERS)

    def recipe(self, **changes: Any) -> sp.Recipe:
        settings = {"steps": 8, "batch_size": 4, "learning_rate": 0.0625, "evaluate_every": 2}
        return sp.Recipe(**{**settings, **changes})


IMAGES = (PICTURES, OTHER_PICTURES)
WITH_HEAD = {"backbone": "golden/encoder", "task": ANSWERED_BY_A_HEAD}
CASES: dict[str, Case] = {
    "decoder-prompt-tuning": Case("golden/decoder", ANSWERED_BY_WORDS, sp.PromptTuning(length=4)),
    "decoder-prefix-tuning": Case("golden/decoder", ANSWERED_BY_WORDS, sp.PrefixTuning(length=3, hidden=8)),
    "decoder-residual": Case("golden/decoder", ANSWERED_BY_WORDS, sp.ResidualPromptTuning(length=3)),
    "decoder-dept": Case("golden/decoder", ANSWERED_BY_WORDS, sp.DePT(length=3, rank=2)),
    "decoder-lora": Case("golden/decoder", ANSWERED_BY_WORDS, sp.LoRA(rank=2)),
    "encoder-prompt-tuning": Case(**WITH_HEAD, method=sp.PromptTuning(length=4)),
    "encoder-p-tuning-v2": Case(**WITH_HEAD, method=sp.PTuningV2(length=3)),
    "encoder-linear-probe": Case(**WITH_HEAD, method=sp.LinearProbe()),
    "encoder-decoder-prompt-tuning": Case(
        "golden/encoder-decoder", ANSWERED_BY_WORDS, sp.PromptTuning(length=4)
    ),
    "vision-vpt": Case("golden/vision", OF_IMAGES, sp.VPT(length=2), IMAGES),
    "vision-l2p": Case("golden/vision", OF_IMAGES, sp.L2P(), IMAGES),
    "dual-coop": Case("golden/dual", OF_IMAGES_AND_TEXTS, sp.CoOp(length=4), IMAGES),
    "dual-cocoop": Case("golden/dual", OF_IMAGES_AND_TEXTS, sp.CoCoOp(length=4, reduction=4), IMAGES),
}
"""Each was saved; the state of training was kept of those below."""

INTERRUPTED = {
    "decoder-prompt-tuning": 5,
    "decoder-prefix-tuning": 5,
    "decoder-lora": 5,
    "encoder-prompt-tuning": 5,
    "vision-vpt": 5,
    "vision-l2p": 5,
    "dual-coop": 5,
}
"""Case -> the step after which its training was interrupted."""

TOGETHER = [
    (sp.PromptTuning(length=4), CASES["decoder-prompt-tuning"].recipe(seed=1)),
    (
        sp.PrefixTuning(length=3, hidden=8),
        CASES["decoder-prefix-tuning"].recipe(seed=2, learning_rate=0.03125),
    ),
]
"""Runs of `fit_many`, of the task and the rows of decoder-prompt-tuning, interrupted after step 5."""


_PLAIN_DATA = {"train": "texts.jsonl", "validation": "others.jsonl", "test": "others.jsonl"}
_WORDS = {
    "name": "text-classification",
    "template": "{text}\nmood:",
    "labels": {"neg": " bad", "pos": " fun"},
}
STUDY: dict[str, Any] = {
    "title": "What a study can hold",
    "recipe": {"steps": 6, "batch_size": 4, "learning_rate": 0.0625, "evaluate_every": 2},
    "search": {"seeds": [1000]},
    "seeds": [0, 1],
    "runs": {
        "plain": {
            "backbone": "golden/decoder",
            "task": _WORDS,
            "data": _PLAIN_DATA,
            "method": {"name": "prompt-tuning", "length": 3},
            "select": {"recipe.learning_rate": [0.03125, 0.125]},
        },
        "few": {
            "backbone": "golden/decoder",
            "task": _WORDS,
            "data": _PLAIN_DATA,
            "method": {"name": "prefix-tuning", "length": 2},
            "shots": 2,
            "domains": {"other": "texts.jsonl"},
        },
        "tasks": {
            "backbone": "golden/encoder",
            "task": {
                "name": "sequence-classification",
                "template": "{text}",
                "labels": ["good", "bad", "great", "awful"],
                "label_column": "word",
            },
            "data": {"train": "texts.jsonl", "test": "texts.jsonl"},
            "method": {"name": "prompt-tuning", "length": 2},
            "class_tasks": 2,
            "class_logits": "seen",
            "class_order": "natural",
            "class_answers": "seen",
            "rehearsal": {"size": 1},
        },
        "halves": {
            "backbone": "golden/dual",
            "task": {
                "name": "image-text-classification",
                "labels": list(COLOURS),
                "template": "a picture of a {}.",
            },
            "data": {"train": "pictures.jsonl", "test": "pictures.jsonl"},
            "method": {"name": "coop", "length": 2},
            "shots": 1,
            "base_to_new": True,
        },
    },
}
"""Its paths begin at the folder that `write_study_rows` wrote to."""


def write_study_rows(folder: Path) -> None:
    """The rows of STUDY."""
    words = [word for word, _ in WORDS]
    texts = [{**row, "word": words[i % len(words)]} for i, row in enumerate(TEXTS)]
    pictures = []
    for i, row in enumerate(PICTURES):
        name = f"{row['label']}-{i}.png"
        row["image"].save(folder / name)
        pictures.append({"image": name, "label": row["label"]})
    for name, rows in {"texts": texts, "others": OTHERS, "pictures": pictures}.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")


_TRAIN = {"backbone": "some-model", "data": {"train": "rows.csv"}, "method": "prompt-tuning"}
_TEXT_TASK = {"name": "text-classification", "template": "{text}", "labels": {"a": " x", "b": " y"}}
_HEAD_TASK = {"name": "sequence-classification", "template": "{text}", "labels": ["a", "b"]}
_IMAGE_TASK = {"name": "image-text-classification", "labels": ["a", "b", "c", "d"]}
RUNS: dict[str, dict[str, Any]] = {
    "text": {**_TRAIN, "task": _TEXT_TASK},
    "all of a text run": {
        "backbone": {"name": "m", "dtype": "float32", "device": "cpu", "revision": "r", "prefix_lm": True}
        | {"packed": False},
        "task": {**_TEXT_TASK, "loss": "lm", "calibrated": True, "label_values": {"0": "a"}},
        "method": {"name": "prompt-tuning", "length": 7, "init": "text", "init_text": "words"},
        "data": {
            "train": {"source": "rows", "split": "s", "limit": 9, "draw": 1, "stratify": "label"}
            | {"part": "train", "words": 5, "only": {"label": ["a"]}},
            "validation": {"source": "rows.csv", "encoding": "latin-1"},
            "test": "rows.csv",
        },
        "recipe": {"steps": 7, "warmup": 2, "schedule": "cosine", "weight_decay": 0.5, "patience": 2}
        | {"accumulation": 2, "head_learning_rate": 0.25, "max_tokens": 50, "compile": True},
        "seed": 5,
        "cache_features": "caches",
        "shots": 4,
        "domains": {"one": "rows.csv", "two": {"source": "rows", "limit": 3}},
    },
    "generation": {
        **_TRAIN,
        "task": {"name": "text-generation", "template": "{text}", "target": " {answer}"},
    },
    "head": {**_TRAIN, "task": _HEAD_TASK, "method": {"name": "lora", "rank": 4}},
    "regression": {**_TRAIN, "task": {"name": "regression", "template": "{text}"}, "method": "p-tuning-v2"},
    "words": {**_TRAIN, "task": {"name": "token-classification", "tags": ["a", "b"]}, "method": "adapter"},
    "span": {**_TRAIN, "task": {"name": "span-extraction"}, "method": "prefix-tuning"},
    "image": {**_TRAIN, "task": {"name": "image-classification", "labels": ["a", "b"]}, "method": "vpt"},
    "image and text": {**_TRAIN, "task": _IMAGE_TASK, "method": "coop"},
    "classes in tasks": {**_TRAIN, "task": _HEAD_TASK, "method": "l2p", "class_tasks": 2},
    "classes in tasks, all of it": {
        **_TRAIN,
        "task": _HEAD_TASK,
        "method": "l2p",
        "class_tasks": 2,
        "class_logits": "all",
        "class_order": "natural",
        "class_answers": "seen",
        "rehearsal": {"size": 5, "kind": "reservoir", "seed": 3},
    },
    "halves": {
        **_TRAIN,
        "task": _IMAGE_TASK,
        "method": "coop",
        "data": {"train": "rows.csv", "test": "rows.csv"},
        "base_to_new": True,
        "shots": 16,
    },
}
"""Runs as a config of `softprompt train` has them, and the keys of studies."""
