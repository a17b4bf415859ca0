"""Encoders of text, and masked language models."""

from softprompt.backbones.masked.backbone import MaskedBackbone

__all__ = ["MaskedBackbone"]
