"""Attaching a prompt to a plain model of transformers, for training and inference loops of your own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from transformers import PreTrainedModel

from softprompt import store
from softprompt.backbones.base import Backbone
from softprompt.backbones.causal import Attached, Front, key_value_shapes
from softprompt.backbones.vocabulary import table_of
from softprompt.model import PromptedModel
from softprompt.prompts import PromptModule
from softprompt.store.identity import identity_of
from softprompt.tasks.bound_template import BoundTemplate, Run
from softprompt.tasks.template import Literal as Words
from softprompt.tasks.tokenizing import tokenize
from softprompt.tuned import TunedPrompt

_ATTACHED: WeakSet[PreTrainedModel] = WeakSet()


@contextmanager
def attach(model: PreTrainedModel, tuned: TunedPrompt | PromptedModel | PromptModule) -> Iterator[None]:
    """Within the `with` block a prompt stands in front of every row that a plain causal language model is given.

    `model(input_ids, attention_mask, labels=...)` and `model.generate(...)` then work on your own tokens: logits are
    (B, T, V) for the T tokens of `input_ids`, padding may stand on either side (on the left for `generate`, as usual), and
    a cache that the model returns holds the prompt. Afterwards the model is as it was, also after an exception.

    model  a model of `AutoModelForCausalLM`: the one that the prompt was trained on, or another loading of it
    tuned  a `TunedPrompt`; or a prompt in training: a `PromptModule`, or a `PromptedModel` with one. Parameters that
           require gradients get them from your loss, and the prompt is run in every call; a frozen prompt is run once

    What is attached is a key-value prefix, then the template up to its last virtual token, words and special tokens (BOS)
    included, then special tokens up to the next word. You write the rest: fill in what follows in the template, its fixed
    words included, and tokenize it as one string with `add_special_tokens=False`. A prompt without a task has no template:
    its virtual tokens stand before everything, and you add special tokens. The first token of a row is not scored in a loss.

    If a prompt is longer than a sliding window, the model sees it as far as its window reaches.

    Raises TypeError if `model` is not a model of transformers or `tuned` is not a prompt; WrongBackboneError if the prompt was
    trained on another model (its embedding table is read to find out, unless it is the prompt's own object). Raises
    ValueError for a model that has a prompt attached already, for layers without keys and values, for other families, for
    prompts behind a column of the template, with layers of several lengths or as functions of their rows, for tasks
    answered by a head, for changed weights, and for methods without a prompt. Within the block, ValueError is raised for
    inputs_embeds, 4-D masks, static caches, caches filled elsewhere, gradient checkpointing in training mode, and a row
    that begins with the BOS that is attached.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"attach() takes a model of transformers, not a {type(model).__name__}: give the PreTrainedModel inside"
        )
    if model in _ATTACHED:
        raise ValueError(
            f"{type(model).__name__} has a prompt attached already: leave that `with` first; one stands in front at a time"
        )
    front = _front(model, tuned)
    attached = Attached(model, front)
    handles = []
    _ATTACHED.add(model)
    try:
        handles.append(model.register_forward_pre_hook(attached.before, with_kwargs=True))
        handles.append(model.register_forward_hook(attached.after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        _ATTACHED.discard(model)


def _front(model: PreTrainedModel, tuned: TunedPrompt | PromptedModel | PromptModule) -> Front:
    """What stands in front of every row. Raises the errors that `attach` names."""
    if isinstance(tuned, TunedPrompt):
        module = tuned.module
        if tuned.identity is not None:
            raise ValueError(
                f"{tuned.method.name} changed weights of the backbone: tuned.backbone.model is the model with them, there is"
                " nothing to attach"
            )
        _check_backbone(model, tuned.backbone, tuned.head is not None)
        atoms, begin = _leading(tuned)
    elif isinstance(tuned, PromptedModel):
        if len(tuned.modules) != 1:
            raise ValueError(
                f"a model of {len(tuned.modules)} prompts: attach() puts one in front, give its module"
            )
        (module,) = tuned.modules
        _check_backbone(model, tuned.backbone, tuned.heads[0] is not None)
        atoms, begin = _virtual(module), None
    elif isinstance(tuned, PromptModule):
        module, atoms, begin = tuned, _virtual(tuned), None
    else:
        raise TypeError(
            f"attach() takes a TunedPrompt, a PromptModule or a PromptedModel, not a {type(tuned).__name__}"
        )
    _check_prompt(model, module)
    frozen = not any(parameter.requires_grad for parameter in module.parameters())
    return Front(prompt=module, atoms=atoms, frozen=frozen, begin=begin)


def _virtual(module: PromptModule) -> tuple[int, ...]:
    return tuple(-1 - k for k in range(module.length))


def _leading(tuned: TunedPrompt) -> tuple[tuple[int, ...], int | None]:
    """The atoms in front of the caller's own text, and the special token among them that a text begins with."""
    template = getattr(tuned.encoder, "template", None)
    if not isinstance(template, BoundTemplate):
        raise ValueError(
            f"the task {tuned.task.name} has no template that a prompt could be attached by: use tuned.predict"
        )
    pieces = template.pieces
    soft = [
        i for i, piece in enumerate(pieces) if not isinstance(piece, Run) and any(atom < 0 for atom in piece)
    ]
    end = soft[-1] + 1 if soft else 0
    while end < len(pieces) and not isinstance(pieces[end], Run):
        end += 1
    atoms: list[int] = []
    begin = None
    for piece in pieces[:end]:
        if not isinstance(piece, Run):
            atoms += piece
            begin = next((atom for atom in piece if atom >= 0), begin)
            continue
        if not all(isinstance(part, Words) for part in piece.parts):
            raise ValueError(
                f"template {template.template.source!r} has a column before its last virtual token: attach() puts prompts in"
                " front of a text; use tuned.predict, or backbone.generate with tuned.encoder.encode"
            )
        atoms += tokenize(
            template.tokenizer, "".join(part.text for part in piece.parts if isinstance(part, Words))
        )
    return tuple(atoms), begin


def _check_backbone(model: PreTrainedModel, backbone: Backbone, has_head: bool) -> None:
    family = backbone.spec.family
    if family != "causal-lm":
        raise ValueError(
            f"attach() works on causal language models, {backbone.name} is of family {family}: use predict, evaluate and"
            " backbone.score"
        )
    if has_head:
        raise ValueError("the prompt is answered by a head of its own, not by words: use tuned.predict")
    if model is not backbone.model:
        trained = identity_of(backbone)
        name = model.config.name_or_path or type(model).__name__
        found = store.fingerprint(
            model.config, table_of(model.get_input_embeddings()), name=name, family=family
        )
        saved = store.SavedPrompt(method={"name": ""}, task={"name": ""}, backbone=trained, tensors={})
        store.check_backbone(saved, found)


def _check_prompt(model: PreTrainedModel, module: PromptModule) -> None:
    if model.config.is_encoder_decoder or not model.can_generate():
        raise ValueError(
            f"attach() works on causal language models, and {type(model).__name__} is none: load it as a backbone and use"
            " PromptedModel"
        )
    shapes = key_value_shapes(model)
    if not shapes:
        raise ValueError(
            f"{type(model).__name__} has layers without keys and values of their own, which an attached prompt stands in: use"
            " tuned.predict, or backbone.generate"
        )
    if module.reads is not None:
        raise ValueError("the prompt is a function of its rows: use tuned.predict, or PromptedModel.score")
    output = module()
    if output.layers is not None or output.count != 1 or (output.tokens is None and output.prefix is None):
        raise ValueError(
            f"attach() takes one prompt of virtual tokens, or of keys and values; {type(module).__name__} gives"
            f" {output.count} of another kind (hidden states of layers, or none at all)"
        )
    width = table_of(model.get_input_embeddings()).shape[1]
    if output.tokens is not None and output.tokens.shape[-1] != width:
        raise ValueError(
            f"virtual tokens of width {output.tokens.shape[-1]}; the embeddings of the model have {width}"
        )
    if output.prefix is not None:
        found = tuple((key.shape[1], key.shape[3]) for key, _ in output.prefix)
        if found != shapes or len({key.shape[2] for key, _ in output.prefix}) > 1:
            raise ValueError(
                f"a prefix of (heads, size) {found} and lengths {[key.shape[2] for key, _ in output.prefix]} by layer; the"
                f" model takes {shapes} and one length"
            )
