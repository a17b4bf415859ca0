"""Processes that start in milliseconds: forked from one that has imported what they need and has run nothing.

A fresh interpreter imports torch and transformers for five to ten seconds, and pytest's own process has threads,
which do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext

# One fork server serves a whole pytest process, so that everybody names the same modules. torch's optimizers
# import torch._dynamo at their first step, and a saved prompt its model card.
_PRELOADED = [
    "torch._dynamo",
    "softprompt.cli",
    "softprompt.cli._study_progress",
    "softprompt.backbones.loading",
    "softprompt.fitting.one",
    "softprompt.training.loop",
    "transformers.models.llama.modeling_llama",
    "tests.kills",
]


def fork_server() -> ForkServerContext:
    """The way of `multiprocessing` to start such processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context
