"""A tuned prompt: it predicts, evaluates, and is saved and loaded.

prompt   TunedPrompt
loading  prompts that `save` or PEFT wrote
"""

from softprompt.tuned.loading import from_peft, load, restore_saved
from softprompt.tuned.prompt import TunedPrompt

__all__ = ["TunedPrompt", "from_peft", "load", "restore_saved"]
