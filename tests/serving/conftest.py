"""One tiny backbone with a prompt of each kind, for all tests of serving."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch

import softprompt as sp
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.binding import new_head
from softprompt.prompts.base import BuildContext
from softprompt.serving import Engine, Settings
from softprompt.serving.server import BackgroundServer
from softprompt.tasks.base import Task
from tests.tiny.task import TASK, tiny_backbone
from tests.tiny.vision import TASK as OF_IMAGES
from tests.tiny.vision import vision_backbone

STORY = sp.TextGeneration("{text}:", target=" {label}", max_new_tokens=8)
CALM = sp.TextClassification(
    "{soft:2} is {text} {soft} calm", labels={"good": " yes", "bad": " no not"}, calibrated=True
)
CHAT = sp.Chat(
    chat_template="{% for m in messages %}{{ m.role }}\n{{ m.content }}<unk>\n{% endfor %}answer\n",
    max_new_tokens=6,
)
ONE_OF = replace(STORY, choices=("a dog", "a dog and", "yes"))
PAIR = sp.SequenceClassification("{text} {other}", labels=["same", "other", "third"])
AMOUNT = sp.Regression("{text}")
TAGS = sp.TokenClassification(tags=["O", "NAME"])


def prompt(backbone: CausalBackbone, task: Task, method: Any, seed: int = 0) -> sp.TunedPrompt:
    """A prompt with random values: what a trained one is to a server."""
    generator = torch.Generator().manual_seed(seed)
    module = method.build(BuildContext(backbone.spec, generator=generator)).bake().requires_grad_(False)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (0.5 if tensor.dim() > 1 else 1))
    head = new_head(method, task, backbone.spec, generator)
    if head is not None:
        for tensor in head.parameters():
            torch.nn.init.normal_(tensor, generator=generator)
        head.requires_grad_(False)
    return sp.TunedPrompt(backbone=backbone, task=task, method=method, module=module, head=head)


@pytest.fixture(scope="session")
def backbone() -> CausalBackbone:
    return tiny_backbone(dtype=torch.float32)


@pytest.fixture(scope="session")
def prompts(backbone: CausalBackbone) -> Mapping[str, sp.TunedPrompt]:
    return {
        "mood": prompt(backbone, TASK, sp.PromptTuning(length=6), 1),
        "calm": prompt(backbone, CALM, sp.PromptTuning(length=3), 2),
        "prefix-mood": prompt(backbone, TASK, sp.PrefixTuning(length=5), 3),
        "pair": prompt(backbone, PAIR, sp.PromptTuning(length=4), 4),
        "amount": prompt(backbone, AMOUNT, sp.PromptTuning(length=2), 5),
        "tags": prompt(backbone, TAGS, sp.PromptTuning(length=2), 6),
        "story": prompt(backbone, STORY, sp.PromptTuning(length=4), 7),
        "tale": prompt(backbone, STORY, sp.PromptTuning(length=21), 8),
        "prefix-story": prompt(backbone, STORY, sp.PrefixTuning(length=4), 9),
        "chat": prompt(backbone, CHAT, sp.PromptTuning(length=3), 10),
        "one-of": prompt(backbone, ONE_OF, sp.PromptTuning(length=2), 11),
    }


INPUTS = {
    "pair": {"text": "the film", "other": "a great book"},
    "tags": {"words": ["the", "film", "is", "good"]},
}


@pytest.fixture(scope="session")
def folder(prompts: Mapping[str, sp.TunedPrompt], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All prompts, saved. Tests that change it take a copy."""
    root = tmp_path_factory.mktemp("prompts")
    for name, tuned in prompts.items():
        tuned.save(root / name)
    return root


@pytest.fixture(scope="session")
def server(backbone: CausalBackbone, folder: Path) -> Iterator[BackgroundServer]:
    """One server of all prompts for every test that changes nothing in it."""
    settings = Settings(
        max_wait_ms=10,
        reload_seconds=0,
        max_body_bytes=200_000,
        max_characters=2000,
        max_request_rows=32,
    )
    with BackgroundServer(Engine(backbone, folder, settings)) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: BackgroundServer) -> Iterator[openai.OpenAI]:
    """The official client."""
    with openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="session")
def http(server: BackgroundServer) -> Iterator[httpx2.Client]:
    """Requests as they are."""
    with httpx2.Client(base_url=server.address) as opened:
        yield opened


@pytest.fixture(scope="session")
def of_images() -> sp.TunedPrompt:
    """A prompt on a tower, which starts and ends without continuous batching: quickly."""
    tower: Any = vision_backbone(dtype=torch.float32)
    return prompt(tower, OF_IMAGES, sp.VPT(length=2), 1)
