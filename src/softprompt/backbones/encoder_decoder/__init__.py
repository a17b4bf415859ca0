"""Encoder-decoders, of text and of sound."""

from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone

__all__ = ["EncoderDecoderBackbone"]
