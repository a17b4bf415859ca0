"""Frozen models, each seen through one small interface: `Backbone`, whose facts are its `BackboneSpec`.

causal           decoders
masked           encoders of text, and masked language models
encoder_decoder  of text and of sound
vision           vision transformers
dual             images compared with texts
engine           what the families share
loading          `load_backbone`, and which family a model belongs to; it imports every family, so it is not imported here
base             the interface
vocabulary       embedding tables, and which of their entries are no words (embeddings: whether a model takes vectors)
precision        the dtype that a backbone runs in
unchanged        whether tensors and weights are what they were, for caches
row_features     features of rows from the frozen backbone, cached
"""

from softprompt.backbones.base import Backbone, BackboneSpec

__all__ = ["Backbone", "BackboneSpec"]
