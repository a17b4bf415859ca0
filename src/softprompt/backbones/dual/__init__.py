"""Dual encoders: images compared with texts.

A dual encoder is put together from backbones of other families, which it takes through their doors: a VisionBackbone for
its images, and for texts that BERT reads a MaskedBackbone. No other family knows a second one.

backbone     the family's Backbone
text_tower   whole texts to embeddings: CLIP's, SigLIP's, BERT's
kept_texts   embeddings of texts that nothing changes, computed once
"""

from softprompt.backbones.dual.backbone import DualBackbone

__all__ = ["DualBackbone"]
