"""A search problem on a tiny random model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from softprompt import Recipe, TextClassification
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.binding import bind
from softprompt.search import SearchProblem
from softprompt.search.words import Survives
from softprompt.search.written import survival_check
from softprompt.tasks.room import Room
from tests.tiny.language import Architecture
from tests.tiny.task import ROWS, TASK, tiny_backbone

FRONT = replace(TASK, template="{soft} {text} sentiment")
BEHIND = replace(TASK, template="{text}{soft} sentiment")
PARTED = replace(TASK, template="the {soft:1} {text}{soft} sentiment")


def tiny_problem(
    task: TextClassification = FRONT,
    length: int = 3,
    architecture: Architecture = "llama",
    *,
    bos: bool = False,
    **recipe: Any,
) -> SearchProblem:
    backbone = tiny_backbone(architecture, bos=bos)
    return SearchProblem(
        backbone=backbone,
        task=task,
        bind=lambda task, virtual_tokens: bind(backbone, task, Room(length=virtual_tokens)),
        encoder=bind(backbone, task, Room(length=length)),
        data=ROWS[:6],
        recipe=Recipe(**{"steps": 1, "batch_size": 4, **recipe}),
    )


def check_of(problem: SearchProblem) -> Survives:
    return survival_check(
        problem.task, problem.backbone.tokenizer, problem.bind, problem.encoder, problem.data
    )


def ids_of(backbone: CausalBackbone, text: str) -> list[int]:
    return backbone.spec.tokenize(text)
