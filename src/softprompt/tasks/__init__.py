"""Tasks: each says what is asked of a row, and how the answer is read and judged."""

from softprompt.data import Row
from softprompt.tasks.adaptation import LanguageModeling, LanguageModelingEncoder
from softprompt.tasks.base import Scorer, Task, TaskEncoder, TextSetting
from softprompt.tasks.chat import Chat, ChatEncoder
from softprompt.tasks.classes import ClassPrediction
from softprompt.tasks.classification import TextClassification, TextClassificationEncoder
from softprompt.tasks.generation import TextGeneration, TextGenerationEncoder
from softprompt.tasks.image_classification import ImageClassification, ImageClassificationEncoder
from softprompt.tasks.image_text_classification import (
    ImageTextClassification,
    ImageTextClassificationEncoder,
)
from softprompt.tasks.image_writing import Captioning, ImageQuestion
from softprompt.tasks.multi_label import LabelsPrediction, MultiLabelClassification, MultiLabelEncoder
from softprompt.tasks.regression import Regression, RegressionEncoder
from softprompt.tasks.sequence_classification import SequenceClassification, SequenceClassificationEncoder
from softprompt.tasks.span_extraction import SpanExtraction, SpanExtractionEncoder, SpanPrediction
from softprompt.tasks.token_classification import TokenClassification, TokenClassificationEncoder

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        TextClassification,
        TextGeneration,
        Chat,
        SequenceClassification,
        MultiLabelClassification,
        TokenClassification,
        SpanExtraction,
        Regression,
        LanguageModeling,
        ImageClassification,
        ImageTextClassification,
        ImageQuestion,
        Captioning,
    )
}
"""The name of each task, as configs and files write it -> its class."""

__all__ = [
    "TASKS",
    "Captioning",
    "Chat",
    "ChatEncoder",
    "ClassPrediction",
    "ImageClassification",
    "ImageClassificationEncoder",
    "ImageQuestion",
    "ImageTextClassification",
    "ImageTextClassificationEncoder",
    "LabelsPrediction",
    "LanguageModeling",
    "LanguageModelingEncoder",
    "MultiLabelClassification",
    "MultiLabelEncoder",
    "Regression",
    "RegressionEncoder",
    "Row",
    "Scorer",
    "SequenceClassification",
    "SequenceClassificationEncoder",
    "SpanExtraction",
    "SpanExtractionEncoder",
    "SpanPrediction",
    "Task",
    "TaskEncoder",
    "TextClassification",
    "TextClassificationEncoder",
    "TextGeneration",
    "TextGenerationEncoder",
    "TextSetting",
    "TokenClassification",
    "TokenClassificationEncoder",
]
