"""Heads in PEFT's folders: modules of transformers' models that PEFT trains and saves with a key-value prefix.

Only encoders have them here. With virtual tokens in front, PEFT's heads read the first of these instead of the text.

    task                      transformers' head on last hidden states     name
    token classification      linear                                       classifier
    span extraction           linear                                       qa_outputs
    sequence classification,  RoBERTa: dense, tanh, linear                 classifier (dense, out_proj)
    regression                BERT: the pooler (dense, tanh), linear       classifier; the pooler belongs to the model
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from softprompt.backbones.base import Backbone
from softprompt.store import PromptFileError
from softprompt.store.peft import TaskType
from softprompt.tasks.base import Task

_TASKS: dict[str, tuple[TaskType, str]] = {
    "token-classification": ("TOKEN_CLS", "classifier"),
    "span-extraction": ("QUESTION_ANS", "qa_outputs"),
    "sequence-classification": ("SEQ_CLS", "classifier"),
    "regression": ("SEQ_CLS", "classifier"),
}
_FAMILIES = ("masked-lm", "text-encoder")


class TanhHead(nn.Module):
    """Dense layer, tanh, linear layer: transformers' head for whole sequences. (n, d) -> (n, outputs)."""

    def __init__(self, dense: nn.Linear, out_proj: nn.Linear) -> None:
        super().__init__()
        self.dense = dense
        self.out_proj = out_proj

    def forward(self, states: Tensor) -> Tensor:
        outputs: Tensor = self.out_proj(self.dense(states).tanh())
        return outputs

    @staticmethod
    def restore(tensors: Mapping[str, Tensor]) -> TanhHead | None:
        """The head with these tensors, in float32; None if they belong to another kind of head."""
        if tensors.keys() != {f"{part}.{of}" for part in ("dense", "out_proj") for of in ("weight", "bias")}:
            return None
        return TanhHead(
            _linear(tensors["dense.weight"], tensors["dense.bias"]),
            _linear(tensors["out_proj.weight"], tensors["out_proj.bias"]),
        )


def read_head(tensors: Mapping[str, Tensor], task: Task, backbone: Backbone, folder: str) -> nn.Module | None:
    """The head among the tensors of a PEFT folder; None for a task that words answer.

    tensors   of the folder, by name
    task      that the head answers
    backbone  whose states it reads
    folder    its path, for errors

    Raises PromptFileError if the folder lacks the head that the task needs, or holds another one, and ValueError for a task
    or family whose heads PEFT does not save.
    """
    if task.outputs is None:
        return None
    known = _TASKS.get(task.name)
    if known is None or backbone.spec.family not in _FAMILIES:
        raise ValueError(
            f"{task.name} on {backbone.name} ({backbone.spec.family}) is answered by a head, which no PEFT folder has: "
            "take a task that is answered by words"
        )
    name = f"base_model.{known[1]}."
    own = {key.removeprefix(name): tensor.float() for key, tensor in tensors.items() if key.startswith(name)}
    head: nn.Module | None = TanhHead.restore(own)
    if own.keys() == {"weight", "bias"}:
        head = _linear(own["weight"], own["bias"])
        if known[0] == "SEQ_CLS":
            head = TanhHead(_pooler(backbone, folder), head)
    if head is None:
        raise PromptFileError(
            f"{folder} holds no head that {task.name} could be answered with: expected {name}weight and {name}bias,"
            f" found {sorted(tensors) or 'no tensor beside the prompt'}"
        )
    width, outputs = backbone.spec.state_size, task.outputs
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    if layers[0].in_features != width or layers[-1].out_features != outputs:
        raise PromptFileError(
            f"{folder}: its head reads {layers[0].in_features} numbers and gives {layers[-1].out_features};"
            f" {task.name} on {backbone.name} needs {width} and {outputs}"
        )
    return head


def write_head(head: nn.Module, task: Task, backbone: Backbone) -> tuple[TaskType, dict[str, Tensor]]:
    """PEFT's task type, and the head's tensors under PEFT's names.

    head      to write
    task      that it answers
    backbone  whose states it reads

    Raises ValueError for a head that transformers' model for this task does not have.
    """
    known = _TASKS.get(task.name)
    if known is None or backbone.spec.family not in _FAMILIES:
        raise ValueError(
            f"PEFT's format of a prompt holds no head for {task.name} on {backbone.name} ({backbone.spec.family})"
        )
    kind, name = known
    pooled = backbone.model.config.model_type == "bert"
    if kind == "SEQ_CLS" and not isinstance(head, TanhHead):
        raise ValueError(
            f"the head of {task.name} is {type(head).__name__} on a hidden state, that of transformers' model has a dense"
            " layer and a tanh in front: PEFT could not give the same answers; save it in softprompt's own format"
        )
    if kind != "SEQ_CLS" and not isinstance(head, nn.Linear):
        raise ValueError(
            f"transformers' head for {task.name} is one linear layer, this one is {type(head).__name__}: save it in"
            " softprompt's own format"
        )
    if isinstance(head, TanhHead) and pooled:
        pooler = _pooler(backbone, backbone.name)
        if not all(
            torch.equal(own, of)
            for own, of in zip(head.dense.state_dict().values(), pooler.state_dict().values(), strict=True)
        ):
            raise ValueError(f"the head's dense layer is not the pooler of {backbone.name}, which PEFT keeps")
        head = head.out_proj
    return kind, {f"base_model.{name}.{key}": t.detach().float() for key, t in head.state_dict().items()}


def _pooler(backbone: Backbone, folder: str) -> nn.Linear:
    """A float32 copy of BERT's pooler, which its sequence classification reads."""
    pooler = getattr(backbone.model.base_model, "pooler", None)
    if pooler is None:
        raise PromptFileError(
            f"{folder}: its head reads the model's pooler, which {backbone.name} ({backbone.spec.family}) has none of:"
            " load the model without its head over words (AutoModel)"
        )
    return _linear(pooler.dense.weight, pooler.dense.bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=torch.float32)
    layer.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return layer
