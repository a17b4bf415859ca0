"""Other people's formats: PEFT's prompts, heads and LoRA, both ways."""

from softprompt.store.peft import PeftPrompt, TaskType, read_peft, write_peft, write_peft_prefix

__all__ = ["PeftPrompt", "TaskType", "read_peft", "write_peft", "write_peft_prefix"]
