"""load_backbone: the backbone of a built-in name, a hub id, a local folder or a model object."""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_MAPPING,
)

from softprompt import zoo
from softprompt.backbones.base import Backbone
from softprompt.backbones.causal import CausalBackbone
from softprompt.backbones.dual import DualBackbone
from softprompt.backbones.embeddings import check_embeddings
from softprompt.backbones.encoder_decoder import EncoderDecoderBackbone
from softprompt.backbones.image_text import ImageTextBackbone, processor_files, text_decoder
from softprompt.backbones.masked import MaskedBackbone
from softprompt.backbones.precision import Precision, resolve_dtype
from softprompt.backbones.vision import VisionBackbone
from softprompt.images import ImageRule
from softprompt.surroundings import undisturbed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A kind of model: how transformers loads it, and which backbone it becomes.

    holds     whether a model with this config belongs to the family
    auto      the class of transformers that loads it from a folder or the hub
    backbone  (model, *readers, name=, packed=) -> Backbone; the readers are a tokenizer, an image processor, or both in
              this order
    images    whether the family reads images, and needs a processor
    words     whether it reads text, and needs a tokenizer
    reader    (folder, revision, trust_remote_code) -> what prepares its images
    check     raises ValueError for a backbone whose answers would be wrong
    """

    name: str
    holds: Callable[[PreTrainedConfig], bool]
    auto: Any
    backbone: Callable[..., Backbone]
    images: bool = False
    words: bool = True
    reader: Callable[[str, str | None, bool], Any] = lambda folder, revision, trust: (
        ImageProcessingMixin.get_image_processor_dict(folder, revision=revision)[0]
    )
    check: Callable[[Any], None] | None = None


def _reads_images_among_text(config: PreTrainedConfig) -> bool:
    # A text decoder may have been saved with the config of the whole.
    if any(name.endswith("ForCausalLM") for name in config.architectures or ()):
        return False
    return config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES and not _compares(config)


def _is_causal(config: PreTrainedConfig) -> bool:
    # BERT and its relatives have a causal head too, but attend both ways unless they were trained as decoders.
    if config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        return False
    return config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not getattr(
        config, "is_encoder_decoder", False
    )


def _is_encoder(config: PreTrainedConfig) -> bool:
    return (
        config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and not getattr(config, "is_decoder", False)
        and not getattr(config, "is_encoder_decoder", False)  # BART and its relatives are listed there too
    )


def _is_masked(config: PreTrainedConfig) -> bool:
    # Only `architectures` tells what a checkpoint holds: MiniLM and BERT have the same type. The pretraining head of
    # ELECTRA tells true words from false ones; that of its relatives predicts words, among other things.
    heads = ("ForMaskedLM",) if config.model_type == "electra" else ("ForMaskedLM", "ForPreTraining")
    return _is_encoder(config) and any(name.endswith(heads) for name in config.architectures or ())


def _reads_text_writes_text(config: PreTrainedConfig) -> bool:
    return config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and bool(
        getattr(config, "is_encoder_decoder", False)
    )


def _hears(config: PreTrainedConfig) -> bool:
    return config.model_type == "whisper"


def _sees(config: PreTrainedConfig) -> bool:
    return main_input(config) == "pixel_values" and not getattr(config, "is_encoder_decoder", False)


def _compares(config: PreTrainedConfig) -> bool:
    known = MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES.keys() | _ALSO_COMPARE
    writes = any(
        name.endswith("ForConditionalGeneration") for name in config.architectures or ()
    )  # BLIP does both
    return config.model_type in known and not writes and not _is_classifier(config)


def _is_classifier(config: PreTrainedConfig) -> bool:
    """Whether it is a vision tower of a dual encoder with a head, which has no text tower."""
    return any(name.endswith("ForImageClassification") for name in config.architectures or ())


def main_input(config: PreTrainedConfig) -> str | None:
    """What the plain model of a config reads, such as "pixel_values"; None: transformers has no such model."""
    try:
        kind: Any = MODEL_MAPPING[type(config)]
        return str((kind[0] if isinstance(kind, tuple) else kind).main_input_name)
    except (KeyError, ImportError):  # a type from elsewhere, or one whose packages are not installed
        return None


_ALSO_COMPARE = {"vision-text-dual-encoder"}

FAMILIES: tuple[Family, ...] = (
    Family(
        "image-text-to-text",
        _reads_images_among_text,
        AutoModelForImageTextToText,
        ImageTextBackbone,
        images=True,
        reader=processor_files,
        check=ImageTextBackbone.check,
    ),
    Family("causal-lm", _is_causal, AutoModelForCausalLM, CausalBackbone, check=CausalBackbone.check),
    Family("masked-lm", _is_masked, AutoModelForMaskedLM, MaskedBackbone, check=MaskedBackbone.check),
    Family("text-encoder", _is_encoder, AutoModel, MaskedBackbone, check=MaskedBackbone.check),
    Family("encoder-decoder", _hears, AutoModelForSpeechSeq2Seq, EncoderDecoderBackbone),
    Family(
        "encoder-decoder",
        _reads_text_writes_text,
        AutoModelForSeq2SeqLM,
        EncoderDecoderBackbone,
        check=EncoderDecoderBackbone.check,
    ),
    Family("vision-language", _compares, AutoModel, DualBackbone, images=True, check=DualBackbone.check),
    Family(
        "vision-encoder",
        _sees,
        AutoModel,
        VisionBackbone,
        images=True,
        words=False,
        check=VisionBackbone.check,
    ),
)
"""A model belongs to the first of these that holds its config."""


@undisturbed
def load_backbone(
    source: str | Path | PreTrainedModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    processor: ImageRule | Any | None = None,
    dtype: Precision | torch.dtype = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    packed: bool | None = None,
    prefix_lm: bool = False,
    text_only: bool = False,
    family: str | None = None,
    trust_remote_code: bool = False,
) -> Backbone:
    """Load a frozen model with its tokenizer, its image processor, or both.

    source     a built-in name (`softprompt fetch --list`), a local folder, a hub id, or a model of transformers. A model
               object is used as it is: its weights are frozen, its dtype and device stay
    tokenizer  required for a model object that reads text; otherwise the default is the one beside the weights
    processor  the same for images: an ImageRule, an image processor of transformers, or its configuration; for a model that
               reads images among text its whole processor, or the image processor of it
    dtype      precision of the weights; "auto" is bfloat16 if the hardware computes in it natively, else float32
    device     by default the first GPU (a process that a launcher started takes its own GPU), else the CPU
    revision   of a hub model
    packed     False runs the plain padded path instead of sharing prompts; by default a trial decides. True is an error
               for a language model that fails it
    prefix_lm  read a decoder so that prompt and input see each other both ways (UniLM); its attention must be reachable
    text_only  load the text decoder of a model that reads images among text, as a language model without them
    family     how to read a model that belongs to several families: "causal-lm" reads a whole Gemma 3 as a language model, as
               prompts do that were tuned on one before it was read with images. By default the first that holds it
    trust_remote_code
               let Python code that lies beside the weights run; without it such a model is refused. Nothing but this
               argument allows it: no saved prompt, no question in the terminal

    Raises TypeError for an object that is none of these, such as a compiled model or one of PEFT.
    Raises ValueError for a model of no known family, for missing or damaged weights, and for a model that does more with
    its tokens than to look them up in its table (a short trial finds out). Raises FileNotFoundError for a source that is
    neither a built-in name, nor a folder, nor available from the hub.
    """
    _check_source(source)
    if not isinstance(trust_remote_code, bool):  # "no" and "false" would count as true
        raise TypeError(f"trust_remote_code is {trust_remote_code!r}, expected True or False")
    if isinstance(source, PreTrainedModel):
        if text_only:
            source, processor = _text_alone(source), None
        return _from_object(source, tokenizer, processor, packed=packed, prefix_lm=prefix_lm)
    name = str(source)
    folder = str(zoo.fetch(name)) if name in zoo.names() else name
    _check_place(folder, name, revision)
    where = torch.device(device or _own_device())
    wanted = resolve_dtype(dtype, where)
    try:
        config = AutoConfig.from_pretrained(folder, revision=revision, trust_remote_code=trust_remote_code)
        kind = _family_of(config, name, prefix_lm and not text_only, family)
        readers: list[Any] = []
        if kind.words:
            readers.append(
                tokenizer
                or AutoTokenizer.from_pretrained(
                    folder, revision=revision, trust_remote_code=trust_remote_code
                )
            )
        if kind.images and not text_only:
            readers.append(processor or kind.reader(folder, revision, trust_remote_code))
        loaded: Any = kind.auto.from_pretrained(
            folder,
            revision=revision,
            dtype=wanted,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
        )
        model, report = loaded  # the declared type ignores output_loading_info
    except SafetensorError as error:
        raise ValueError(
            f"{name}: the weights cannot be read ({error}): the file is damaged or cut off, copy it again"
        ) from error
    except OSError as error:
        raise _not_found(name, str(error)) from error
    _check_weights(report, name, kind)
    log.info("%s: %s on %s", name, str(wanted).removeprefix("torch."), where)
    if text_only:
        alone = _text_alone(model)
        kind = _family_of(_described(alone), name, prefix_lm)
        alone.to(where)  # type: ignore[arg-type]  # its declared type is a decorator's
        return _built(kind, alone, readers, name=name, packed=packed)
    return _built(kind, model.to(where), readers, name=name, packed=packed)


def family_of(name: str) -> str:
    """The family of a local folder or a hub id, by its configuration alone. Raises as `load_backbone` does."""
    folder = str(zoo.fetch(name)) if name in zoo.names() else name
    _check_place(folder, name, None)
    try:
        config = AutoConfig.from_pretrained(folder)
    except OSError as error:
        raise _not_found(name, str(error)) from error
    return _family_of(config, name, prefix_lm=False).name


def has_chat_template(name: str) -> bool:
    """Whether the tokenizer of a local folder or a hub id has a chat template. Raises as `load_backbone` does."""
    _check_place(name, name, None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError):
        return False  # images, or a model without a tokenizer
    return bool(getattr(tokenizer, "chat_template", None))


_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")  # "name" or "owner/name"


def _not_found(name: str, why: str) -> FileNotFoundError:
    near = difflib.get_close_matches(name, zoo.names(), n=1)
    known = ", ".join(zoo.names()) + (f"; did you mean {near[0]!r}?" if near else "")
    return FileNotFoundError(
        f"{name!r} is no built-in name ({known}), and loading it as a local folder or hub id failed: {why}"
    )


def _check_place(folder: str, name: str, revision: str | None) -> None:
    """Raise FileNotFoundError at once for what is no folder and cannot be a hub id, and after two tries for a hub out of reach.

    transformers would ask for each of its files several times, which takes half a minute.
    """
    if folder and Path(folder).is_dir():
        return
    if Path(folder).is_file():
        raise _not_found(name, "it is a file: give the folder that holds config.json and the weights")
    if not _HUB_ID.fullmatch(folder):
        raise _not_found(name, "there is no such folder, and it cannot be a hub id, which is owner/name")
    cached = try_to_load_from_cache(folder, "config.json", revision=revision)
    if isinstance(cached, str) or is_offline_mode():
        return
    for left in (1, 0):
        try:
            get_hf_file_metadata(hf_hub_url(folder, "config.json", revision=revision), timeout=10)
            return
        except HfHubHTTPError:
            return  # the hub answered: transformers says what it has to say about gated and missing models
        except Exception as error:  # the HTTP client has a kind of error for each way of not reaching a host
            if not left:
                raise _not_found(name, f"the hub was not reached for it ({error})") from error


def _check_source(source: Any) -> None:
    """Raise TypeError for an object that is neither a name nor a model of transformers, and say what to pass instead."""
    kind = type(source).__name__
    if hasattr(source, "_orig_mod"):
        raise TypeError(
            "the model was wrapped by torch.compile: pass the model itself, model._orig_mod; a recipe with compile=True"
            " compiles what training runs"
        )
    if hasattr(source, "peft_config") and hasattr(source, "merge_and_unload"):
        raise TypeError(
            f"the model is a {kind} of PEFT: merge its weights with model.merge_and_unload() and pass the result, or pass"
            " model.unload() for the model without them"
        )
    if hasattr(source, "spec") and hasattr(source, "tokenizer"):
        raise TypeError(f"a {kind} is a backbone already: use it as it is")
    if not isinstance(source, str | Path | PreTrainedModel):
        raise TypeError(
            f"source is a {kind}, expected a built-in name, a folder, a hub id, or a model of transformers with its tokenizer"
        )


def _from_object(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    processor: ImageRule | Any | None,
    *,
    packed: bool | None,
    prefix_lm: bool,
) -> Backbone:
    """The backbone around a model object. Raises ValueError if its tokenizer or its image processor is missing."""
    family = _family_of(_described(model), type(model).__name__, prefix_lm)
    if family.words and tokenizer is None:
        raise ValueError("a model object comes without its tokenizer: pass tokenizer=")
    if family.images and processor is None:
        raise ValueError("a model object comes without its image processor: pass processor=")
    readers: list[Any] = [tokenizer] * family.words + [processor] * family.images
    return _built(family, model, readers, packed=packed)


def _described(model: PreTrainedModel) -> PreTrainedConfig:
    """The config of a model with its class, which a config says only once it is saved."""
    described: PreTrainedConfig = copy(model.config)
    described.architectures = [type(model).__name__]
    return described


def _text_alone(model: PreTrainedModel) -> PreTrainedModel:
    """The text decoder of a model. Raises ValueError for a model without other parts, and where it is no language model."""
    if not _reads_images_among_text(_described(model)):
        raise ValueError(
            f"text_only is for models that read images among text, and {type(model).__name__} is none: leave it out"
        )
    return text_decoder(model)


def _check_weights(report: Mapping[str, Any], name: str, family: Family) -> None:
    """Raise ValueError where weights are missing from the file or have other shapes than the config says."""
    # The poolers of BERT and ViT serve pretraining. Nothing here reads them, and many checkpoints lack them.
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise ValueError(
            f"{name}: {len(missing)} weights are not in the file and would be random, such as {missing[0]}: "
            f"this is not a whole model of the family {family.name}"
        )
    if report["mismatched_keys"]:
        weight, found, expected = sorted(report["mismatched_keys"])[0]
        raise ValueError(
            f"{name}: {len(report['mismatched_keys'])} weights have another shape than config.json says, such as "
            f"{weight}: found {tuple(found)}, expected {tuple(expected)}; the files are of different models"
        )


def _built(family: Family, model: PreTrainedModel, readers: Sequence[Any], **settings: Any) -> Backbone:
    model.eval().requires_grad_(False)
    if model.main_input_name == "input_ids" and not family.images:
        check_embeddings(
            model, str(settings.get("name") or model.config.name_or_path or type(model).__name__)
        )
    try:
        backbone = family.backbone(model, *readers, **settings)
    except AttributeError as error:
        raise ValueError(
            f"{settings.get('name') or type(model).__name__} ({type(model).__name__}) is laid out otherwise than models of the"
            f" family {family.name} ({error}): take another model"
        ) from error
    if family.check is not None:
        family.check(backbone)
    return backbone


def _own_device() -> str:
    """The GPU of this process, or the CPU. torchrun and `accelerate launch` start a process for each GPU and number them."""
    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    return "cuda" if rank is None else f"cuda:{int(rank) % torch.cuda.device_count()}"


def _family_of(config: PreTrainedConfig, name: str, prefix_lm: bool, wanted: str | None = None) -> Family:
    """The first family that holds a config, or the wanted one if it does too."""
    for family in sorted(FAMILIES, key=lambda one: one.name != wanted):
        if family.holds(config):
            if not prefix_lm:
                return family
            if family.name == "causal-lm":
                return replace(family, backbone=partial(CausalBackbone, prefix_lm=True))
            raise ValueError(
                f"{name} is of the family {family.name}: only a decoder can be read as a prefix LM"
            )
    if _is_classifier(config) and config.model_type in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES:
        raise ValueError(
            f"{name} is the vision tower of a dual encoder with a head for its own classes: pass the tower alone,"
            " load_backbone(model.vision_model, processor=...)"
        )
    raise ValueError(
        f"{name} is a model of type {config.model_type!r}, which belongs to no family that softprompt knows: "
        f"{', '.join(dict.fromkeys(family.name for family in FAMILIES))} (Llama, GPT-2, BERT, ViT, CLIP ...)"
    )
