"""Model cards: the README.md of a saved prompt, which a model hub shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from softprompt.store.places import is_hub_id, shown_name
from softprompt.store.saved import SavedPrompt


def model_card(saved: SavedPrompt, folder: str) -> str:
    """The card of a saved prompt, as Markdown with a YAML head. folder: the name of its folder."""
    method, task, backbone = saved.method["name"], saved.task["name"], saved.backbone
    size = sum(tensor.numel() * tensor.element_size() for tensor in saved.tensors.values())
    return f"""\
{_head("softprompt", backbone.name, ["softprompt", method, task])}
# {_line(folder)}

A prompt for the backbone `{_shown(backbone.name)}` ({_line(backbone.family)}), tuned by {_line(method)} for
{_line(task)}. This folder holds what was trained; it is used together with the backbone's own weights.

| | |
|---|---|
| Parameters in this folder | {saved.parameter_count:,} ({size:,} bytes) |
| Backbone | `{_shown(backbone.name)}`, width {backbone.width}, {backbone.vocabulary:,} embedding rows |
| Made with | {_line(", ".join(f"{name} {number}" for name, number in saved.versions.items()))} |

## How to load it

```python
from softprompt.store import load

saved = load({json.dumps(folder)})
print(saved.method, saved.task, saved.backbone.name)
for name, tensor in saved.tensors.items():
    print(name, tuple(tensor.shape), tensor.dtype)
```

Loading checks both files by digest. There is no pickle in them, and loading runs no code from this folder.

## Metrics

{_metrics(saved.metrics)}

## How it was made

Method:

{_block(saved.method)}

Task:

{_block(saved.task)}

Recipe:

{_block(saved.recipe)}

## What to know before using it

- It works with the backbone named above and no other. A fine-tuned or resized copy is another backbone, which a
  fingerprint of the config and the embedding table finds out (`softprompt.store.check_backbone`).
- Every weakness and bias of the backbone is still there, and the training data may have added its own.
- The metrics hold for the data they were measured on. Nothing here was tested on other domains or languages.
- If training used a reparametrization, it has been folded into the prompt: more parameters may have been trained
  than were saved.
- Virtual tokens are vectors, not words. The words nearest to them need not explain what they do.
"""


def peft_card(base_model_name: str | None, virtual_tokens: int, width: int) -> str:
    """The card of virtual tokens in PEFT's format.

    base_model_name  None: not recorded
    virtual_tokens   P
    width            d
    """
    base = f"`{_shown(base_model_name)}`" if base_model_name else "the model it was trained on (not recorded)"
    return f"""\
{_head("peft", base_model_name, ["softprompt", "prompt-tuning"])}
# A soft prompt of {virtual_tokens} virtual tokens

{virtual_tokens} vectors of width {width} that are put in front of the input embeddings of {base}, whose
weights are unchanged. Written by softprompt in PEFT's format; load it with `peft.PeftModel.from_pretrained`.

The template and the label words that it was trained with are not part of this format, and the prompt is of little use
without them.
"""


def peft_prefix_card(base_model_name: str | None, positions: int, layers: int) -> str:
    """The card of a key-value prefix in PEFT's format.

    base_model_name  None: not recorded
    positions        P
    layers           L
    """
    base = f"`{_shown(base_model_name)}`" if base_model_name else "the model it was trained on (not recorded)"
    return f"""\
{_head("peft", base_model_name, ["softprompt", "prefix-tuning"])}
# A key-value prefix of {positions} positions

Keys and values of {positions} positions that are put in front of those of the text in each of the {layers} layers of {base},
whose weights are unchanged. Written by softprompt in PEFT's format; load it with `peft.PeftModel.from_pretrained`.

The template and the label words that it was trained with are not part of this format, and the prefix is of little use
without them.
"""


def _head(library: str, base_model: str | None, tags: list[str]) -> str:
    base = f"base_model: {json.dumps(base_model)}\n" if base_model and is_hub_id(base_model) else ""
    # A JSON string is a YAML string.
    return f"---\nlibrary_name: {library}\n{base}tags: {json.dumps(tags)}\n---\n"


def _metrics(metrics: Mapping[str, Any]) -> str:
    rows = list(_scalars(metrics))
    if not rows:
        return "None were recorded."
    table = "\n".join(f"| {_cell(name)} | {_number(value)} |" for name, value in rows)
    return f"| metric | value |\n|---|---|\n{table}\n\n`prompt.json` holds all that was measured."


def _scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}.")
        elif not isinstance(value, list):
            yield f"{prefix}{name}", value


def _number(value: Any) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4g}" if isinstance(value, float) else _cell(str(value))


def _block(value: Mapping[str, Any]) -> str:
    return f"```json\n{json.dumps(value, indent=2, ensure_ascii=False)}\n```" if value else "Not recorded."


def _shown(name: str) -> str:
    """The backbone's name, without the folders of a local path: a card is for others."""
    return _line(shown_name(name))


def _cell(text: str) -> str:
    """Text that is shown in a table as it is: no HTML, no link and no picture, which a page would fetch."""
    return _line(text).replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def _line(text: str) -> str:
    """Text that stays within its line, its table cell and its code span."""
    line = re.sub(r"\s+", " ", text).replace("`", "'")
    return re.sub(r"(\\*)\|", lambda found: 2 * found[1] + "\\|", line)
