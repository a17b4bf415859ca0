"""Other people's formats: PEFT's prompts, heads and LoRA, both ways.

prompts        a tuned prompt in PEFT's format, and back
peft           PEFT's folders as tensors (peft_layouts: what each of its types holds)
heads          trained heads in PEFT's folders
lora           LoRA
"""

from softprompt.store.peft import PeftPrompt, TaskType, read_peft, write_peft, write_peft_prefix

__all__ = ["PeftPrompt", "TaskType", "read_peft", "write_peft", "write_peft_prefix"]
