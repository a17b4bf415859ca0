"""Frozen models, each seen through one small interface: `Backbone`, whose facts are its `BackboneSpec`.

causal           decoders
masked           encoders of text, and masked language models
encoder_decoder  of text and of sound
vision           vision transformers
dual             images compared with texts
engine           what the families share
loading          `load_backbone`, and which family a model belongs to
base             the interface
vocabulary       embedding tables, and which of their entries are no words (embeddings: whether a model takes vectors)
precision        the dtype that a backbone runs in
row_features     what the frozen backbone makes of each row, computed once
"""

from softprompt.backbones.base import Backbone, BackboneSpec
from softprompt.backbones.loading import load_backbone

__all__ = ["Backbone", "BackboneSpec", "load_backbone"]
