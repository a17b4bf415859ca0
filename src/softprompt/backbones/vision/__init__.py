"""Vision transformers.

backbone         the family's Backbone
groups           rows that run together, and the prompts that they carry
tower            an image's patches through the layers, with prompts beside or among them
beside           attention to keys and values that stand beside the rows
class_attention  what the class token attends to
processors       transformers' image processors as rules
"""

from softprompt.backbones.vision.backbone import VisionBackbone
from softprompt.backbones.vision.class_attention import ClassAttention

__all__ = ["ClassAttention", "VisionBackbone"]
