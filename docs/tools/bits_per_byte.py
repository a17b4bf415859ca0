"""How well decoders know a text, whatever their tokenizers: bits for each byte, over the validation rows of studies/scale.yaml.

    python -m docs.tools.bits_per_byte

A row's first token is given; the bytes are those of the tokens behind it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

import softprompt as sp
from softprompt.backbones.base import Backbone
from softprompt.fitting.run_config import SourceConfig
from softprompt.fitting.settings import parsed
from softprompt.fitting.sources import source_rows
from softprompt.studies import read_study

STUDY = Path(__file__).parents[2] / "studies" / "scale.yaml"


@torch.no_grad()
def bits_per_byte(backbone: Backbone, texts: list[str]) -> float:
    """Raises ZeroDivisionError for texts of one token each."""
    nats, length = 0.0, 0
    for text in texts:
        ids = torch.tensor(backbone.tokenizer(text, add_special_tokens=False)["input_ids"])
        logits = backbone.model(ids[None, :-1]).logits[0].float()  # (T - 1, V)
        nats += torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum").item()
        length += len(str(backbone.tokenizer.decode(ids[1:])).encode())
    return nats / length / math.log(2)


def main() -> None:
    study = read_study(STUDY)
    names = [option.changes["backbone"] for option in study.axes["backbone"].values()]
    config = study.shared["data"]["validation"]
    rows = source_rows(parsed(SourceConfig, config, "data.validation"), "validation")
    for name in names:
        backbone = sp.load_backbone(name, dtype="float32", device="cpu")
        weights = sum(p.numel() for p in backbone.model.parameters())
        print(
            f"{name}: {weights:,} weights, {bits_per_byte(backbone, [row['text'] for row in rows]):.2f} bits a byte"
        )


if __name__ == "__main__":
    main()
