"""What prompts are compared with, as methods."""

from softprompt.baselines.full_tuning import FullTuning
from softprompt.baselines.untrained import FewShot, ManualPrompt, ZeroShot

__all__ = ["FewShot", "FullTuning", "ManualPrompt", "ZeroShot"]
