"""The reader of an ONNX file, on files written here byte by byte."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import Dinov2Config, Dinov2Model

from softprompt.zoo.onnx_dinov2 import backbone_state, message_fields, read_dinov2, read_graph


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def tensor(name: str, value: Tensor, *, packed: bool = False) -> bytes:
    dims = [*value.shape]
    shape = field(1, b"".join(map(varint, dims))) if packed else b"".join(field(1, dim) for dim in dims)
    raw = value.contiguous().numpy().astype("<f4").tobytes()
    return field(5, shape + field(2, 1) + field(8, name.encode()) + field(9, raw))


def node(name: str, operation: str, *inputs: str) -> bytes:
    parts = b"".join(field(1, i.encode()) for i in inputs)
    return field(1, parts + field(3, name.encode()) + field(4, operation.encode()))


def exported(model: Dinov2Model, *, positions: bool = True) -> bytes:
    """As the exporter writes it: linear weights transposed under numbers, the position table in two pieces."""
    theirs = {
        "attention.q_proj": "attention.attention.query",
        "attention.k_proj": "attention.attention.key",
        "attention.v_proj": "attention.attention.value",
        "attention.o_proj": "attention.output.dense",
    }
    graph = field(
        5, field(1, 2) + field(2, 7) + field(8, b"shape") + field(9, bytes(16))
    )  # int64: passed over
    for number, (name, value) in enumerate(model.state_dict().items()):
        if name == "embeddings.mask_token":
            continue
        if name == "embeddings.position_embeddings":
            if positions:
                graph += tensor("onnx::Concat_1", value[:, :1]) + tensor(
                    "onnx::Reshape_2", value[:, 1:], packed=True
                )
            continue
        for ours, other in theirs.items():
            name = name.replace(ours, other)
        if value.dim() == 2:
            path = "/backbone/" + name.removesuffix(".weight").replace(".", "/")
            graph += tensor(f"onnx::MatMul_{number}", value.T)
            graph += node(f"{path}/MatMul", "MatMul", "x", f"onnx::MatMul_{number}")
        else:
            graph += tensor(f"backbone.{name}", value)
    graph += tensor("decoder.weight", torch.ones(2)) + node(
        "/decoder/MatMul", "MatMul", "x", "decoder.weight"
    )
    return field(1, 8) + field(7, graph)


def tiny() -> Dinov2Model:
    config = Dinov2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    torch.manual_seed(0)
    return Dinov2Model(config).eval()


def test_a_file_gives_back_the_model_that_it_was_exported_from() -> None:
    model = tiny()
    content = exported(model)
    tensors, nodes = read_graph(content)
    assert tensors["onnx::Reshape_2"].shape == (1, 4, 8)
    assert nodes[0].operation == "MatMul"
    state = backbone_state(tensors, nodes)
    expected = {**model.state_dict(), "embeddings.mask_token": torch.zeros(1, 8)}
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(state[name], value, rtol=0, atol=0)
    again = read_dinov2(content, heads=2, image_size=8, patch_size=4)
    pixels = torch.randn(1, 3, 8, 8)
    assert_close(again(pixels).last_hidden_state, model(pixels).last_hidden_state)


def test_a_damaged_file_is_an_error() -> None:
    content = exported(tiny())
    with pytest.raises(ValueError, match="cut off"):
        read_graph(content[:-5])
    with pytest.raises(ValueError, match="unknown kind"):
        list(message_fields(memoryview(bytes([0x0B]))))
    with pytest.raises(ValueError, match="position embeddings"):
        read_dinov2(exported(tiny(), positions=False), heads=2, image_size=8, patch_size=4)
