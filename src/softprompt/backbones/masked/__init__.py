"""Encoders of text, and masked language models.

backbone  the family's Backbone
rows      the batch: packed rows that attend to themselves, both ways
cloze     answers where masks stand
"""

from softprompt.backbones.masked.backbone import MaskedBackbone

__all__ = ["MaskedBackbone"]
