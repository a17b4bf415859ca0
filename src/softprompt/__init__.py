"""softprompt tunes small prompts for large frozen models.

Three nouns and a verb: a backbone, a task and a method go into `fit`, a TunedPrompt comes out.
"""

from softprompt.backbones.loading import load_backbone
from softprompt.baselines import FewShot, FullTuning, ManualPrompt, ZeroShot
from softprompt.errors import CheckpointError, SoftpromptWarning, TrainingDiverged
from softprompt.fitting import fit
from softprompt.mixed import MixedPrompts
from softprompt.prompts import PromptTuning, methods
from softprompt.recipe import Recipe
from softprompt.store import PromptFileError, WrongBackboneError
from softprompt.tasks import ClassPrediction, TextClassification, TextGeneration
from softprompt.tuned import TunedPrompt, from_peft, load
from softprompt.version import __version__

__all__ = [
    "CheckpointError",
    "ClassPrediction",
    "FewShot",
    "FullTuning",
    "ManualPrompt",
    "MixedPrompts",
    "PromptFileError",
    "PromptTuning",
    "Recipe",
    "SoftpromptWarning",
    "TextClassification",
    "TextGeneration",
    "TrainingDiverged",
    "TunedPrompt",
    "WrongBackboneError",
    "ZeroShot",
    "__version__",
    "fit",
    "from_peft",
    "load",
    "load_backbone",
    "methods",
]
