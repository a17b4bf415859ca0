"""Writes which method works on which kind of backbone, as the methods themselves say.

python -m docs.tools.capabilities > docs/reference/capabilities.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, replace
from typing import Any, cast

import torch
from pydantic.fields import FieldInfo

from softprompt.backbones.base import BackboneSpec
from softprompt.catalogue import methods
from softprompt.images import ImageRule, ImageSetting
from softprompt.outputs import Picture
from softprompt.prompts import Method

_DECODER = BackboneSpec(
    name="example",
    family="causal-lm",
    width=8,
    vocabulary=16,
    key_values=((2, 4),) * 2,
    positions=64,
    embedding_std=1.0,
    embed=lambda ids: torch.zeros(len(ids), 8),
    tokenize=lambda text: [1] * len(text),
    special_ids=frozenset({0}),
)
_TWO_SIDED = replace(
    _DECODER,
    family="encoder-decoder",
    key_values=((2, 4),) * 3,
    places=("encoder", "decoder", "cross"),
    closed=True,
)

_SEES = replace(
    _DECODER,
    family="vision-encoder",
    positions=None,
    layers=2,
    image=ImageSetting(ImageRule((4, 4), (0.5,) * 3, (0.5,) * 3), (2, 2), ("class", "mean"), "class"),
)

KINDS: Mapping[str, BackboneSpec] = {
    "causal LM": _DECODER,
    "prefix LM": replace(_DECODER, family="prefix-lm"),
    "images among text": replace(
        _DECODER,
        family="image-text-to-text",
        read_picture=lambda value: Picture((1,), b"", value),
        image_id=1,
    ),
    "state-space LM": replace(_DECODER, key_values=(), attention=False),
    "encoder-decoder": _TWO_SIDED,
    "speech": replace(_TWO_SIDED, closed=False, read_media=torch.as_tensor),
    "masked LM": replace(_DECODER, family="masked-lm", closed=True, mask=3),
    "text encoder": replace(_DECODER, family="text-encoder", closed=True),
    "vision transformer": _SEES,
    "dual encoder": replace(
        _DECODER,
        family="vision-language",
        key_values=(),
        closed=True,
        image=_SEES.image,
        embedding_width=8,
        vision=_SEES,
    ),
}
"""Kinds of backbones, each as the facts that a method sees of one."""

_PAGE = """\
# Which method runs on which kind of backbone

Written by `python -m docs.tools.capabilities`; a test compares it with the code.

{table}

{notes}

A text encoder has no words to answer with: its tasks are those with a head. Probes need a task with a head; the
methods that train nothing need one that is answered by words. Some things are seen only when a method is applied, and
are an error then: BitFit needs biases, which Llama and its kin do not have; adapters need layers of attention and a
feed-forward network, which mixtures of experts do not have, partial tuning layers of attention with weights of their own; LoRA
must be told its `targets` on a state-space model; DAPL needs a task with domains.
Images among text are those of SmolVLM, LLaVA and their kin. Where an image sees itself, a prefix is read both ways or positions
have three axes (Gemma 3, PaliGemma, Qwen-VL), prefixes of keys and values are not defined yet.
Prompts cannot start from words on images: set `init="uniform"` (virtual tokens) or `init="random"` (prefixes); nor can
prefixes on speech, where the keys and values of words depend on the sound.
"""


def capabilities() -> dict[str, dict[str, str | None]]:
    """Method name -> kind of backbone -> why it is not defined there; None where it is."""
    return {
        name: {kind: example(method).unsupported(spec) for kind, spec in KINDS.items()}
        for name, method in sorted(methods().items())
    }


def capability_page() -> str:
    """The table as Markdown, reasons as notes below it."""
    numbers: dict[str, int] = {}
    lines = [f"| method | {' | '.join(KINDS)} |", "|---|" + ":-:|" * len(KINDS)]
    for name, reasons in capabilities().items():
        cells = [
            "yes" if reason is None else f"no ({numbers.setdefault(reason, len(numbers) + 1)})"
            for reason in reasons.values()
        ]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    notes = "\n".join(f"{number}. {reason[:1].upper()}{reason[1:]}." for reason, number in numbers.items())
    return _PAGE.format(table="\n".join(lines), notes=notes)


def example(method: type[Method]) -> Method:
    """A method with its defaults; texts that it has no default for are made up."""
    required = [
        field.name
        for field in fields(cast(Any, method))
        if field.default_factory is MISSING
        # A pydantic Field without a default stands where the default would.
        and (
            field.default is MISSING or (isinstance(field.default, FieldInfo) and field.default.is_required())
        )
    ]
    return method(**dict.fromkeys(required, "a"))


if __name__ == "__main__":
    print(capability_page(), end="")
