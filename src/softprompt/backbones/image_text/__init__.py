"""Models that read images among their text and write text: LLaVA, SmolVLM, InternVL, Qwen-VL, Gemma 3, PaliGemma and others.

backbone  the family
decoder   the text decoder as a causal language model, for which an image is a row of virtual tokens
features  the vectors of images, computed once
pictures  images and the tokens that stand for them
trial     what a model can do, tried out on an image
whole     the plain path: the whole model on padded rows
"""

from softprompt.backbones.image_text.backbone import ImageTextBackbone
from softprompt.backbones.image_text.decoder import text_decoder
from softprompt.backbones.image_text.pictures import processor_files, processor_for

__all__ = ["ImageTextBackbone", "processor_files", "processor_for", "text_decoder"]
