"""Decoders, with or without a prefix that sees both ways.

backbone        the family's Backbone: packed rows, or padded ones where a trial says so (trial, padded)
generation      words behind a prompt
key_values      prefixes and a model's own cache
attached        a prompt in front of a plain model's forward (attached_calls: what it cannot stand in front of)
"""

from softprompt.backbones.causal.attached import Attached, Front
from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.backbones.causal.key_values import key_value_shapes

__all__ = ["Attached", "CausalBackbone", "Front", "key_value_shapes"]
