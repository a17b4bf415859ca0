"""From a waveform to the spectrogram that the encoder of a speech model reads."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, WhisperFeatureExtractor

RATE = 16_000  # samples a second that Whisper was trained on
_HOP = 160  # samples from one frame to the next


def spectrogram(value: Any, config: PreTrainedConfig) -> Tensor:
    """Log-mel features (mel bins, frames), float32, of a mono waveform at 16,000 samples a second.

    value   an array or a list of numbers, or {"array", "sampling_rate"}, as `datasets` gives an audio column
    config  of the model

    Shorter sounds are padded with silence to the model's length (30 s for Whisper).
    Raises ValueError for another sampling rate, and for a sound that is empty, not mono, not finite or longer.
    """
    if isinstance(value, dict) and "array" in value:
        if (rate := value.get("sampling_rate", RATE)) != RATE:
            raise ValueError(f"the sound has {rate} samples a second, {RATE} are needed: resample it")
        value = value["array"]
    wave = np.asarray(value, dtype=np.float32)
    longest = int(config.max_source_positions) * 2 * _HOP  # the encoder halves the frames
    if wave.ndim != 1 or not wave.size or not np.isfinite(wave).all():
        raise ValueError(
            f"sound of shape {wave.shape} was given: expected one row of finite numbers, {RATE} a second (mono)"
        )
    if wave.size > longest:
        raise ValueError(
            f"the sound takes {wave.size / RATE:.1f} s, this model hears {longest / RATE:.1f} s at once: cut it"
        )
    extractor = _extractor(int(config.num_mel_bins), longest)
    features = extractor(wave, sampling_rate=RATE, return_tensors="pt")["input_features"]
    found: Tensor = torch.as_tensor(features)[0]
    return found


@lru_cache(maxsize=4)
def _extractor(bins: int, samples: int) -> WhisperFeatureExtractor:
    extractor = WhisperFeatureExtractor(feature_size=bins)
    # The extractor counts whole seconds, but the window of a small model may be shorter.
    extractor.n_samples, extractor.nb_max_frames = samples, samples // _HOP
    return extractor
