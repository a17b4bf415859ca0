"""The vectors of images from the frozen vision tower, computed once for each image. n vectors of an image, d width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from softprompt.backbones.image_text.pictures import PictureReader
from softprompt.outputs import Picture


@dataclass(frozen=True)
class ImageVectors:
    """What the decoder gets of one image.

    vectors  (n, d), one for each placeholder
    shape    in which the model's own tower returns them; None: as a list of images
    deep     (n, d) each, what is added to the states of the first layers at the placeholders (DeepStack)
    """

    vectors: Tensor
    shape: tuple[int, ...] | None = None
    deep: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        return self.vectors.nbytes + sum(part.nbytes for part in self.deep)


class ImageFeatures:
    """The vectors of images, kept on the CPU for later calls unless the tower or the connector is trained.

    model   that makes them
    reader  of images
    room    bytes that may be kept
    """

    def __init__(self, model: PreTrainedModel, reader: PictureReader, room: int = 4 * 2**30) -> None:
        self.model = model
        self.reader = reader
        self.room = room
        self._kept: dict[bytes, ImageVectors] = {}
        decoder = {id(parameter) for parameter in text_parameters(model)}
        self.weights = [parameter for parameter in model.parameters() if id(parameter) not in decoder]

    @property
    def is_frozen(self) -> bool:
        return not any(weight.requires_grad for weight in self.weights)

    def __call__(self, picture: Picture) -> ImageVectors:
        """The vectors of an image, on the model's device. Differentiable in weights that are trained."""
        if not self.is_frozen:
            return self._computed(picture)
        found = self._kept.get(picture.digest)
        if found is None:
            with torch.no_grad():
                found = self._computed(picture)
            self.keep(picture.digest, found)
        device = self.model.device
        return ImageVectors(
            found.vectors.to(device), found.shape, tuple(part.to(device) for part in found.deep)
        )

    def keep(self, digest: bytes, vectors: ImageVectors) -> None:
        """Put vectors that were computed elsewhere among those that are kept, if there is room."""
        if sum(one.nbytes for one in self._kept.values()) + vectors.nbytes <= self.room:
            self._kept[digest] = ImageVectors(
                vectors.vectors.cpu(), vectors.shape, tuple(part.cpu() for part in vectors.deep)
            )

    def _computed(self, picture: Picture) -> ImageVectors:
        inputs = on_model(self.reader.inputs(picture), self.model)
        output = self.model.base_model.get_image_features(**inputs, return_dict=True)  # type: ignore[operator]
        pooled, deep = output.pooler_output, getattr(output, "deepstack_features", None) or ()
        found = ImageVectors(
            _flat(pooled),
            tuple(pooled.shape) if isinstance(pooled, Tensor) else None,
            tuple(map(_flat, deep)),
        )
        expected = picture.tokens.count(self.reader.image_id)
        if len(found.vectors) != expected:
            raise ValueError(
                f"the model makes {len(found.vectors)} vectors of an image of {picture.image.width} x"
                f" {picture.image.height} pixels, and its processor writes {expected} placeholders: they are of different"
                " models, or the processor's patch size or pooling is set otherwise"
            )
        return found


def text_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """The weights of the decoder and its head over words."""
    parts: list[Any] = [model.get_decoder(), model.get_output_embeddings()]
    return [parameter for part in parts if part is not None for parameter in part.parameters()]


def encoder_outputs(images: Sequence[ImageVectors]) -> dict[str, Any]:
    """`mm_encoder_outputs` of transformers for the images of a batch, in order."""
    if images[0].shape is None:
        pooled: Any = [image.vectors for image in images]
    else:
        pooled = torch.cat([image.vectors.view(image.shape or image.vectors.shape) for image in images])
    deep = [tuple(image.deep[layer] for image in images) for layer in range(len(images[0].deep))]
    return {"image": SimpleNamespace(pooler_output=pooled, deepstack_features=deep)}


def on_model(inputs: dict[str, Tensor], model: PreTrainedModel) -> dict[str, Tensor]:
    """Tensors of a processor on the model's device, pixels in its precision."""
    return {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }


def _flat(parts: Any) -> Tensor:
    """Vectors of one image, (n, d)."""
    whole = parts if isinstance(parts, Tensor) else torch.cat([part.flatten(0, -2) for part in parts])
    return whole.flatten(0, -2)
