"""Methods, one file each. `softprompt.catalogue` finds a new file that defines a Method without any registration."""

from __future__ import annotations

from softprompt.prompts.adept import ADePT
from softprompt.prompts.base import BuildContext, Method, PromptModule
from softprompt.prompts.cocoop import CoCoOp
from softprompt.prompts.coop import CoOp
from softprompt.prompts.dapl import DAPL
from softprompt.prompts.dept import DePT
from softprompt.prompts.dual_prompt import DualPrompt
from softprompt.prompts.l2p import L2P
from softprompt.prompts.low_rank import LowRankPromptTuning
from softprompt.prompts.p_tuning import PTuning
from softprompt.prompts.p_tuning_v2 import PTuningV2
from softprompt.prompts.pez import PEZ
from softprompt.prompts.prefix_tuning import PrefixTuning
from softprompt.prompts.prompt_tuning import PromptTuning
from softprompt.prompts.residual import ResidualPromptTuning
from softprompt.prompts.trigger_search import TriggerSearch
from softprompt.prompts.ulpt import ULPT
from softprompt.prompts.vpt import VPT

__all__ = [
    "DAPL",
    "L2P",
    "PEZ",
    "ULPT",
    "VPT",
    "ADePT",
    "BuildContext",
    "CoCoOp",
    "CoOp",
    "DePT",
    "DualPrompt",
    "LowRankPromptTuning",
    "Method",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "PromptModule",
    "PromptTuning",
    "ResidualPromptTuning",
    "TriggerSearch",
]
