"""Prompt tuning of a model that reads images among text, against recomputation as PEFT's prompt tuning does it.

A random model of SmolVLM-256M's shape. A batch has several questions about each image: `[prompt][image][question]`. Ours
computes an image once for all steps, and runs prompt and image once for all of its questions; the peer runs tower, prompt and
image for every row. Letters: B rows, P virtual tokens, d width.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, Idefics3Processor, SmolVLMConfig
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from benchmarks import harness, sides
from benchmarks.harness import Row
from softprompt.backbones.image_text import ImageTextBackbone
from softprompt.backbones.precision import resolve_dtype
from softprompt.outputs import EncodedRow, PromptOutput

NAME = "image_text"
TEXT: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "max_position_embeddings": 8192,
}  # fmt: skip
TINY_TEXT: dict[str, Any] = {
    **TEXT, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 512,
    "patch_size": 16,
}  # fmt: skip
TINY_VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip
QUESTIONS = (1, 4, 8)  # about each image
LENGTH = 20  # P
QUESTION, ANSWER = 12, 2  # tokens


@dataclass(frozen=True)
class Setting(harness.DeviceSetting):
    """With the images of a batch."""

    @property
    def images(self) -> int:
        return 2


@cache
def backbone_of(tiny: bool, dtype: torch.dtype, device: torch.device) -> ImageTextBackbone:
    """A frozen random model with its processor, which shows each image as one tile."""
    tokenizer = sides.word_tokenizer()
    names = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
    tokenizer.add_special_tokens({"extra_special_tokens": list(names)})
    vision = TINY_VISION if tiny else VISION
    config = SmolVLMConfig(
        vision_config=vision,
        text_config={**(TINY_TEXT if tiny else TEXT), "vocab_size": 512 if tiny else 49280},
        image_token_id=len(tokenizer) - len(names),
        scale_factor=4,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = AutoModelForImageTextToText.from_config(config)
    size = vision["image_size"]
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": size}, max_image_size={"longest_edge": size}, do_image_splitting=False
    )
    seen = (size // vision["patch_size"] // 4) ** 2
    processor = Idefics3Processor(images, tokenizer, image_seq_len=seen)
    return ImageTextBackbone(model.to(device, dtype).eval().requires_grad_(False), tokenizer, processor)


class Case:
    """One batch, and a step of both sides: the loss and its gradient in the prompt."""

    def __init__(self, setting: Setting, questions: int) -> None:
        self.backbone = backbone_of(setting.tiny, setting.dtype, setting.device)
        numbers = np.random.default_rng(0)
        size = self.backbone.model.config.vision_config.image_size
        pictures = [
            self.backbone.reader(numbers.integers(0, 256, (size, size, 3), dtype=np.uint8))
            for _ in range(setting.images)
        ]
        count = setting.images * questions
        ids = sides.random_rows(count, QUESTION + ANSWER, QUESTION + ANSWER, 500)
        words = [tuple(8 + word for word in row) for row in ids]  # the first ids are special tokens
        soft = tuple(-1 - k for k in range(LENGTH))
        self.rows = [
            EncodedRow(
                (*soft, *picture.tokens, *words[n * questions + q][:QUESTION]),
                (tuple(words[n * questions + q][QUESTION:]),),
                pictures=(picture,),
            )
            for n, picture in enumerate(pictures)
            for q in range(questions)
        ]
        generator = torch.Generator().manual_seed(1)
        start = torch.randn(LENGTH, self.backbone.spec.width, generator=generator) * 0.02
        self.tokens = start.to(setting.device).requires_grad_()
        text = [row.context[LENGTH:] + row.targets[0] for row in self.rows]
        self.ids = torch.tensor(text, device=setting.device)
        inputs = self.backbone.reader.together([row.pictures[0] for row in self.rows])
        self.pixels = inputs["pixel_values"].to(setting.device, setting.dtype)

    def ours(self) -> tuple[float, Tensor]:
        found = self.backbone.score(self.rows, PromptOutput(tokens=self.tokens[None]))
        return self._step(-found.token_log_likelihoods().mean())

    def peer(self) -> tuple[float, Tensor]:
        model: Any = self.backbone.model
        embeds = model.get_input_embeddings()(self.ids)  # (B, T, d)
        prompt = self.tokens.to(embeds.dtype).expand(len(embeds), -1, -1)
        embeds = torch.cat([prompt, embeds], dim=1)
        mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        logits = model(inputs_embeds=embeds, attention_mask=mask, pixel_values=self.pixels).logits
        scores = logits[:, -1 - ANSWER : -1].float().log_softmax(-1)
        return self._step(-scores.gather(2, self.ids[:, -ANSWER:, None]).mean())

    def _step(self, loss: Tensor) -> tuple[float, Tensor]:
        [gradient] = torch.autograd.grad(loss, self.tokens)
        return loss.item(), gradient


def time_of(setting: Setting, questions: int) -> Row:
    """Seconds of a step on both sides, and how far apart loss and gradient are."""
    case = Case(setting, questions)
    difference: dict[str, float] = {}
    name = f"step, {questions} questions an image"

    def compare(results: Any) -> None:
        if len(results) == 2:
            (ours, our), (theirs, their) = results["ours"], results["peer"]
            difference["loss"] = abs(ours - theirs) / abs(theirs)
            difference["gradient"] = sides.relative_difference(our, their)
            print(f"{name}: {difference}", flush=True)

    seconds = harness.interleaved({"ours": case.ours, "peer": case.peer}, setting.repetitions, compare)
    return harness.row_of_times(
        name,
        seconds["ours"],
        seconds["peer"],
        images=setting.images,
        questions=questions,
        relative_difference=difference,
        **setting.facts,
    )


def peak_of(setting: Setting, questions: int, side: str) -> int | None:
    """Bytes that memory rises by in a step of one side, images known already."""
    case = Case(setting, questions)
    for picture in {row.pictures[0] for row in case.rows}:
        case.backbone.features(picture)
    return harness.peak_extra_bytes(getattr(case, side), setting.device)


def memory_of(setting: Setting, questions: int) -> Row:
    """The rise of memory to the peak of a step, each side in a process of its own."""
    ours, peer = (harness.in_fresh_process(peak_of, setting, questions, side) for side in ("ours", "peer"))
    return harness.row_of_memory(f"memory, {questions} questions an image", ours, peer, **setting.facts)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = harness.parser(NAME, "Prompts among images and text, shared and cached, against recomputation.")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="float32, bfloat16 or auto")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    setting = Setting(options.quick, options.tiny, options.only, device, resolve_dtype(options.dtype, device))
    start = time.perf_counter()
    rows = [
        time_of(setting, questions)
        for questions in QUESTIONS
        if setting.wants(f"step, {questions} questions an image")
    ]
    if harness.measures_memory(device) and setting.wants("memory, 4 questions an image"):
        rows.append(memory_of(setting, 4))
    harness.report(NAME, rows, argv, options.json)
    print(f"{time.perf_counter() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
