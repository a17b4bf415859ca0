"""An ordinary checkpoint with more words: each prompt is a run of tokens, which any engine of transformers' models serves.

The rows of the prompts stand behind the larger of table and tokenizer. The head is untied where it was tied, its old rows are
as they were, and each new row is a copy of a row that is never meant to be said, so that no new token wins over it; besides,
`generation_config.json` suppresses the new tokens. Their names have a part that nobody can guess: a text of a user that
spells one is text, as long as the names stay on the server.
"""

from __future__ import annotations

import copy
import json
import re
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AddedToken, AutoModelForCausalLM, AutoTokenizer

from softprompt.exports.source import Source, embedded, row_of, tokens_of
from softprompt.files import write_text

FORM = "checkpoint"
FILE = "prompts.json"
_NEW_TOKENS = 32


def write(prompts: Mapping[str, Source], folder: Path) -> dict[str, Any]:
    """The checkpoint, its tokenizer, and a table of the prompts."""
    tokens = {name: tokens_of(name, prompt, FORM) for name, prompt in prompts.items()}
    backbone = next(iter(prompts.values())).backbone
    tokenizer = copy.deepcopy(backbone.tokenizer)
    rows = backbone.table.shape[0]
    first = max(rows, len(tokenizer))
    secret = secrets.token_hex(8)
    gap = [f"<|unused-{secret}-{i}|>" for i in range(first - len(tokenizer))]
    texts = {
        name: [f"<|{re.sub(r'[^A-Za-z0-9_-]', '_', name)[:40]}-{n}-{secret}-{i}|>" for i in range(len(own))]
        for n, (name, own) in enumerate(tokens.items())
    }
    added = [*gap, *(text for own in texts.values() for text in own)]
    tokenizer.add_tokens(
        [AddedToken(text, special=True, normalized=False) for text in added], special_tokens=True
    )
    ids = {name: tokenizer.convert_tokens_to_ids(own) for name, own in texts.items()}
    every = [i for own in ids.values() for i in own]
    if every != list(range(first, first + len(every))):
        raise ValueError(
            f"the tokenizer of {backbone.name} gives new tokens other ids than the rows of the table: export to prompt-embeds"
        )
    model = _extended(backbone, torch.cat([*tokens.values()]), first)
    forbidden = [*range(rows, first + len(every))]
    model.generation_config.suppress_tokens = forbidden
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    described = {
        name: {
            "ids": ids[name],
            "text": "".join(texts[name]),
            "task": prompt.task.name,
            "template": _written(prompt, texts[name]),
            "label_words": {key: list(words) for key, words in prompt.task.label_words.items()},
        }
        for name, prompt in prompts.items()
    }
    write_text(folder / FILE, json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    return {
        "tokens": {name: len(own) for name, own in tokens.items()},
        "suppressed": [forbidden[0], forbidden[-1]],
    }


def _written(prompt: Source, texts: Sequence[str]) -> str | None:
    """The template with the prompt's tokens in the place of its slots; None: the template says no place by itself."""
    template = getattr(prompt.task, "template", None)
    if not isinstance(template, str):
        return None
    return "".join(texts) + template if "{soft" not in template else template


@torch.no_grad()
def _extended(backbone: Any, tokens: Tensor, first: int) -> Any:
    """A copy of the model whose table has the tokens from row `first` on, and whose head never says them."""
    model = copy.deepcopy(backbone.model)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(head, nn.Linear):
        raise ValueError(
            f"{backbone.name} has a {type(table).__name__} in front and a {type(head).__name__} behind: its table cannot be"
            " extended as it is; export to prompt-embeds"
        )
    probe = table(torch.tensor([3], device=table.weight.device))[0]
    scale = _scale(probe, table.weight[3])
    old, width = table.weight.data, table.weight.shape[1]
    grown = old.new_zeros(first + len(tokens), width)
    grown[: len(old)] = old
    grown[first:] = (tokens.to(old.device) / scale).to(old.dtype)
    unsaid = _never_said(backbone)
    words = head.weight.data
    outputs = words.new_empty(len(grown), words.shape[1])
    outputs[: len(words)] = words
    outputs[len(words) :] = words[unsaid]
    fresh = nn.Linear(
        words.shape[1], len(grown), bias=head.bias is not None, dtype=words.dtype, device=words.device
    )
    fresh.weight.data = outputs
    if head.bias is not None:
        fresh.bias.data = torch.cat([head.bias.data, head.bias.data[unsaid].expand(len(grown) - len(words))])
    for config in {id(one): one for one in (model.config, model.config.get_text_config())}.values():
        config.tie_word_embeddings = False
        config.vocab_size = len(grown)
    table.weight = nn.Parameter(grown, requires_grad=False)
    table.num_embeddings = len(grown)
    model.set_output_embeddings(fresh.requires_grad_(False))
    written = table(torch.arange(first, len(grown), device=table.weight.device))
    precision = 0 if scale == 1 else 2 * torch.finfo(tokens.dtype).eps
    if not torch.allclose(written.cpu(), tokens, rtol=precision, atol=0):
        raise ValueError(f"{backbone.name} changes the rows that it looks up: export to prompt-embeds")
    return model


def _scale(found: Tensor, row: Tensor) -> float:
    """What a table multiplies its rows by (Gemma)."""
    place = row.abs().argmax()
    return float(found[place].double() / row[place].double()) if row[place] != 0 else 1.0


def _never_said(backbone: Any) -> int:
    """A token that no answer holds: padding, else the begin or end of a text."""
    tokenizer = backbone.tokenizer
    known = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    return int(next((one for one in known if one is not None), 0))


@torch.no_grad()
def check(prompts: Mapping[str, Source], folder: Path) -> list[str]:
    """Load what was written with transformers; compare logits of the old words, and 32 greedy tokens."""
    backbone = next(iter(prompts.values())).backbone
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=backbone.dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    described = json.loads((folder / FILE).read_text(encoding="utf-8"))
    rows = backbone.table.shape[0]
    found = []
    for name, prompt in prompts.items():
        own = described[name]["ids"]
        if tokenizer.encode(described[name]["text"], add_special_tokens=False) != own:
            found.append(f"{name}: its text is read as other tokens")
        row = row_of(prompt)
        ids = torch.tensor([[own[-1 - atom] if atom < 0 else atom for atom in row.context]])
        vectors = embedded(prompt, row, tokens_of(name, prompt, FORM))[None]
        theirs = model(input_ids=ids).logits[..., :rows]
        ours = backbone.model(inputs_embeds=vectors).logits.cpu()
        if not torch.allclose(theirs.float(), ours.float(), rtol=1e-4, atol=1e-3):
            found.append(f"{name}: its logits differ by {(theirs - ours).abs().max().item():.2g}")
        options: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS, "do_sample": False}
        pad = tokenizer.pad_token_id or tokenizer.eos_token_id
        written = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), pad_token_id=pad, **options
        )
        continued = written[0, ids.shape[1] :].tolist()
        expected = prompt.model.generate([row], **options)[0]
        length = min(len(continued), len(expected))
        if continued[:length] != expected[:length] or not length or max(continued) >= rows:
            found.append(f"{name}: it continues with {continued[:8]}, the prompt with {expected[:8]}")
    return found
