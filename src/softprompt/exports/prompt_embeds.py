"""Vectors for vLLM's `prompt_embeds`: the virtual tokens of each prompt, and helpers that make requests of them.

    NAME.safetensors   `tokens`, (P, d) in the backbone's precision
    prompts.json       for each prompt the backbone, the template and where the virtual tokens stand in it

A request carries vectors, so the server must trust its clients: vLLM takes them with --enable-prompt-embeds only.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softprompt.exports.source import Source, embedded, row_of, tokens_of
from softprompt.files import write_text

FORM = "prompt-embeds"
_NEW_TOKENS = 32


def write(prompts: Mapping[str, Source], folder: Path) -> dict[str, Any]:
    """The vectors and their description."""
    described = {}
    for name, prompt in prompts.items():
        tokens = tokens_of(name, prompt, FORM)
        save_file({"tokens": tokens}, folder / f"{name}.safetensors", metadata={"format": "pt"})
        described[name] = {
            "base_model": Path(prompt.backbone.name).name,
            "virtual_tokens": len(tokens),
            "width": tokens.shape[1],
            "dtype": str(tokens.dtype).removeprefix("torch."),
            "task": prompt.task.name,
            "template": getattr(prompt.task, "template", None),
            "label_words": {key: list(words) for key, words in prompt.task.label_words.items()},
        }
    write_text(folder / "prompts.json", json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    return {"tokens": {name: one["virtual_tokens"] for name, one in described.items()}}


def content_part(vectors: Tensor) -> dict[str, str]:
    """A part of a chat message for vLLM: {"type": "prompt_embeds", "data": base64 of the saved tensor}. vectors: (n, d)"""
    return {"type": "prompt_embeds", "data": as_base64(vectors)}


def as_base64(vectors: Tensor) -> str:
    """The `prompt_embeds` of a completion request: `extra_body={"prompt_embeds": as_base64(vectors)}`. vectors: (n, d)"""
    content = io.BytesIO()
    torch.save(vectors.detach().cpu().contiguous(), content)
    return base64.b64encode(content.getvalue()).decode("ascii")


def request_vectors(prompt: Source, value: Mapping[str, Any] | str) -> Tensor:
    """The vectors of a whole request, text and virtual tokens in the order of the template, (T, d).

    prompt  a tuned prompt. value: a row, or the text of the only column
    """
    task = prompt.task
    column = task.columns.get(task.fields[0], task.fields[0])
    row = row_of(prompt, {column: value} if isinstance(value, str) else value)
    return embedded(prompt, row, tokens_of("the prompt", prompt, FORM))


@torch.no_grad()
def check(prompts: Mapping[str, Source], folder: Path) -> list[str]:
    """Generate from the written vectors with transformers and with the prompts themselves."""
    found = []
    for name, prompt in prompts.items():
        tokens = load_file(folder / f"{name}.safetensors")["tokens"]
        row = row_of(prompt)
        vectors = embedded(prompt, row, tokens)[None]
        options: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS, "do_sample": False}
        pad = prompt.backbone.tokenizer.pad_token_id or prompt.backbone.tokenizer.eos_token_id
        theirs = prompt.backbone.model.generate(
            inputs_embeds=vectors,
            attention_mask=torch.ones(vectors.shape[:2]).long(),
            pad_token_id=pad,
            **options,
        )[0].tolist()
        ours = prompt.model.generate([row], **options)[0]
        length = min(len(theirs), len(ours))
        if theirs[:length] != ours[:length] or not length:
            found.append(f"{name}: it continues with {theirs[:8]}, the prompt with {ours[:8]}")
    return found
