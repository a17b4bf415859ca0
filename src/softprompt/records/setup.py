"""What runs are made with, as plain JSON: records of one setup are not taken for those of another."""

from __future__ import annotations

from typing import Any

from softprompt.backbones.base import Backbone
from softprompt.prompts import Method
from softprompt.store.identity import identity_of, named_settings, settings_of
from softprompt.tasks.base import Task
from softprompt.training.recipe import Recipe


def setup_of(backbone: Backbone, task: Task, method: Method, recipe: Recipe) -> dict[str, Any]:
    """Return the settings by which records know backbone, task, method and recipe."""
    return {
        "backbone": settings_of(identity_of(backbone)),
        "task": named_settings(task),
        "method": named_settings(method),
        "recipe": settings_of(recipe),
    }
