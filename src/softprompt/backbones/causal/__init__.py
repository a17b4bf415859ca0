"""Decoders, with or without a prefix that sees both ways."""

from softprompt.backbones.causal.backbone import CausalBackbone

__all__ = ["CausalBackbone"]
