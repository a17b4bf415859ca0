"""Baselines: methods that prompts are compared with."""

from softprompt.baselines.adapter import Adapter
from softprompt.baselines.bit_fit import BitFit
from softprompt.baselines.full_tuning import FullTuning
from softprompt.baselines.linear_probe import LinearProbe
from softprompt.baselines.lora import LoRA, merged
from softprompt.baselines.mlp_probe import MLPProbe
from softprompt.baselines.partial import PartialTuning
from softprompt.baselines.side_tuning import SideTuning
from softprompt.baselines.untrained import FewShot, ManualPrompt, ZeroShot

__all__ = [
    "Adapter",
    "BitFit",
    "FewShot",
    "FullTuning",
    "LinearProbe",
    "LoRA",
    "MLPProbe",
    "ManualPrompt",
    "PartialTuning",
    "SideTuning",
    "ZeroShot",
    "merged",
]
