"""Encoder-decoders, of text and of sound.

backbone      the family's Backbone
scoring       rows through encoder and decoder (sequences: as padded batches)
generation    words behind a prompt
prefixes      key-value prefixes in front of the three kinds of attention
sound_states  states of a frozen encoder of sounds, cached (spectrogram: from a waveform to its input)
"""

from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone

__all__ = ["EncoderDecoderBackbone"]
