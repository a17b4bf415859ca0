"""Dual encoders: images compared with texts."""

from softprompt.backbones.dual.backbone import DualBackbone

__all__ = ["DualBackbone"]
