"""Tasks: what is asked, and how the answer is read and judged."""

from softprompt.tasks.base import Row, Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.classification import ClassPrediction, TextClassification, TextClassificationEncoder
from softprompt.tasks.generation import TextGeneration, TextGenerationEncoder

TASKS: dict[str, type[Task]] = {task.name: task for task in (TextClassification, TextGeneration)}
"""Task name, as configs and files write it -> its class."""

__all__ = [
    "TASKS",
    "ClassPrediction",
    "Row",
    "Scorer",
    "Task",
    "TaskEncoder",
    "TextClassification",
    "TextClassificationEncoder",
    "TextGeneration",
    "TextGenerationEncoder",
    "TextSetting",
]
