"""PEFT's folder, see `TunedPrompt.export_peft`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softprompt.exports.source import Source
from softprompt.outputs import PromptOutput


def write(prompts: Mapping[str, Source], folder: Path) -> dict[str, Any]:
    """One folder for each prompt, or the folder itself for one."""
    for name, prompt in prompts.items():
        own: Any = prompt
        own.export_peft(folder if len(prompts) == 1 else folder / name, overwrite=True)
    return {}


def check(prompts: Mapping[str, Source], folder: Path) -> list[str]:
    """Read it back and compare the answers; PEFT itself is asked by the tests."""
    from softprompt.exchange.prompts import read_peft_folder

    found = []
    for name, prompt in prompts.items():
        if prompt.head is not None:
            continue
        place = folder if len(prompts) == 1 else folder / name
        _, module, _ = read_peft_folder(place, prompt.backbone, prompt.task)
        ours, theirs = _tensors(prompt.module.bake()()), _tensors(module())
        same = len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))
        found += [] if same else [f"{name}: it is read back as another prompt"]
    return found


def _tensors(output: PromptOutput) -> list[Tensor]:
    prefix = [one for pair in output.prefix or () for one in pair]
    return [one.detach() for one in (output.tokens, *prefix) if one is not None]
