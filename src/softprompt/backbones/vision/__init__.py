"""Vision transformers."""

from softprompt.backbones.vision.backbone import VisionBackbone

__all__ = ["VisionBackbone"]
