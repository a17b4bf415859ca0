"""load_backbone: from a folder or a model object, frozen and whole, or an error that says why not."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import (
    ASTConfig,
    ASTModel,
    BertForPreTraining,
    BertForTokenClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    FNetConfig,
    FNetForMaskedLM,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
    ProphetNetConfig,
    ProphetNetForConditionalGeneration,
    SwinConfig,
    SwinModel,
    T5Config,
    T5ForConditionalGeneration,
)

from softprompt import load_backbone
from softprompt.backbones import loading
from softprompt.backbones.encoder_decoder.backbone import EncoderDecoderBackbone
from tests.tiny.encoders import Encoder, encoder_tokenizer, tiny_encoder
from tests.tiny.language import (
    ARCHITECTURES,
    SEQ2SEQ,
    Architecture,
    Seq2Seq,
    tiny_causal_lm,
    tiny_seq2seq,
    tiny_tokenizer,
)
from tests.tiny.vision import RULE


def folder_of(path: Path, model: PreTrainedModel) -> Path:
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_local_folder_is_loaded_frozen_and_bit_identical(
    tmp_path: Path, architecture: Architecture
) -> None:
    model = tiny_causal_lm(architecture, dtype=torch.float32)
    folder = folder_of(tmp_path, model)
    for source in (folder, str(folder)):
        backbone = load_backbone(source, dtype="float32", device="cpu")
        assert backbone.name == str(folder)
        assert backbone.dtype == torch.float32
        found = backbone.model.state_dict()
        assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
        assert not any(p.requires_grad for p in backbone.model.parameters())
        assert not any(module.training for module in backbone.model.modules())
        assert backbone.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
    assert load_backbone(folder, dtype=torch.bfloat16, device="cpu").dtype == torch.bfloat16


def test_a_model_object_is_frozen_and_kept_as_it_is() -> None:
    model = tiny_causal_lm("llama", dtype=torch.float64).train()
    backbone = load_backbone(model, tokenizer=tiny_tokenizer())
    assert backbone.model is model
    assert backbone.dtype == torch.float64
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_model_object_needs_its_tokenizer() -> None:
    with pytest.raises(ValueError, match="comes without its tokenizer: pass tokenizer="):
        load_backbone(tiny_causal_lm("llama"))


def test_the_facts_of_a_backbone_are_those_of_its_model() -> None:
    spec = load_backbone(tiny_causal_lm("qwen3"), tokenizer=tiny_tokenizer()).spec
    assert (spec.width, spec.vocabulary, spec.positions) == (48, len(tiny_tokenizer()), 128)
    assert spec.key_values == ((2, 16), (2, 16))
    assert load_backbone(tiny_causal_lm("gpt2"), tokenizer=tiny_tokenizer()).spec.key_values == ((4, 12),) * 2


def test_a_source_that_does_not_exist_is_an_error_that_lists_the_built_in_names(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"is no built-in name \(.*smollm2.*\), and loading it as a local folder or hub id",
    ):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'minilm-l6'\?"):
        load_backbone("minilm-l7")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "empty"))):
        load_backbone(tmp_path / "empty")


def saved_encoder(path: Path, architecture: Encoder, *, head: bool) -> Path:
    tiny_encoder(architecture, head=head, dtype=torch.float32).save_pretrained(path)
    encoder_tokenizer().save_pretrained(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["bert", "roberta", "modernbert", "distilbert", "albert"])
@pytest.mark.parametrize(("head", "family"), [(True, "masked-lm"), (False, "text-encoder")])
def test_an_encoder_is_what_its_checkpoint_says(
    tmp_path: Path, architecture: Encoder, head: bool, family: str
) -> None:
    backbone = load_backbone(saved_encoder(tmp_path, architecture, head=head), dtype="float32", device="cpu")
    assert backbone.spec.family == family
    assert backbone.spec.closed
    model = tiny_encoder(architecture, head=head, dtype=torch.float32)
    found = backbone.model.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())
    assert load_backbone(model, tokenizer=encoder_tokenizer()).spec.family == family
    assert not any(p.requires_grad for p in model.parameters())


def test_a_checkpoint_without_bert_s_pooler_is_whole(tmp_path: Path) -> None:
    config = tiny_encoder("bert").config
    BertForTokenClassification(config).save_pretrained(tmp_path)
    encoder_tokenizer().save_pretrained(tmp_path)
    assert load_backbone(tmp_path).spec.family == "text-encoder"


def test_a_pretraining_checkpoint_gives_its_words_and_its_model_object_says_how(tmp_path: Path) -> None:
    model = BertForPreTraining(tiny_encoder("bert").config)
    with pytest.raises(ValueError, match=r"BertForPreTraining has a second head .* pass BertForMaskedLM"):
        load_backbone(model, tokenizer=encoder_tokenizer())
    model.save_pretrained(tmp_path)
    encoder_tokenizer().save_pretrained(tmp_path)
    assert load_backbone(tmp_path).spec.family == "masked-lm"


@pytest.mark.parametrize(
    ("config", "model", "family"),
    [
        (FNetConfig, FNetForMaskedLM, "masked-lm"),  # mixes tokens without attention
        (ElectraConfig, ElectraForMaskedLM, "masked-lm"),
        (ElectraConfig, ElectraForPreTraining, "text-encoder"),  # tells true words from false ones
    ],
)
def test_other_encoders_are_what_they_are(config: Any, model: Any, family: str) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    settings = config(vocab_size=len(encoder_tokenizer()), **sizes)
    if config is ElectraConfig:
        settings.embedding_size = 16
    spec = load_backbone(model(settings), tokenizer=encoder_tokenizer()).spec
    assert (spec.family, bool(spec.key_values)) == (family, config is ElectraConfig)


def test_a_masked_model_that_lacks_its_head_is_an_error(tmp_path: Path) -> None:
    saved_encoder(tmp_path, "bert", head=False)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"BertModel"', '"BertForMaskedLM"'))
    with pytest.raises(
        ValueError, match=r"weights are not in the file .* whole model of the family masked-lm"
    ):
        load_backbone(tmp_path)


@pytest.mark.parametrize("architecture", SEQ2SEQ)
def test_an_encoder_decoder_is_loaded_from_a_folder_and_taken_as_it_is(
    architecture: Seq2Seq, tmp_path: Path
) -> None:
    model = tiny_seq2seq(architecture, dtype=torch.float32)
    backbone = load_backbone(folder_of(tmp_path, model), dtype="float32")
    taken = load_backbone(model, tokenizer=tiny_tokenizer())
    for found in (backbone, taken):
        assert isinstance(found, EncoderDecoderBackbone)
        assert found.spec.family == "encoder-decoder"
        assert found.speech == (architecture == "whisper")
        torch.testing.assert_close(
            found.table, model.get_output_embeddings().weight if architecture != "t5" else model.shared.weight
        )
    assert not any(p.requires_grad for p in taken.model.parameters())


def test_an_encoder_decoder_that_does_not_say_what_its_decoder_starts_with_is_refused() -> None:
    config = T5Config(
        vocab_size=len(tiny_tokenizer()), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2
    )
    with pytest.raises(ValueError, match="decoder_start_token_id"):
        load_backbone(T5ForConditionalGeneration(config), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize(
    "build",
    [
        lambda: MarianMTModel(
            MarianConfig(
                vocab_size=300, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
                decoder_attention_heads=4, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=64,
                scale_embedding=True, pad_token_id=0, decoder_start_token_id=0,
            )
        ),
        lambda: Gemma3nForCausalLM(
            Gemma3nTextConfig(
                vocab_size=300, vocab_size_per_layer_input=300, hidden_size=32, num_hidden_layers=2,
                num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=32,
                hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=0, pad_token_id=0,
                layer_types=["sliding_attention", "full_attention"], activation_sparsity_pattern=[0.0, 0.0],
            )
        ),
    ],
    ids=["scales its tokens itself", "has a table for each layer"],
)  # fmt: skip
def test_a_model_that_makes_more_of_its_tokens_than_their_rows_is_refused(build: Any) -> None:
    model = build()
    for i, parameter in enumerate(
        model.parameters()
    ):  # an untrained Gemma 3n does not use its further tables yet
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(i))
    with pytest.raises(ValueError, match=r"answers otherwise when its tokens come as rows of its embedding"):
        load_backbone(model, tokenizer=tiny_tokenizer())


def test_an_encoder_decoder_that_is_laid_out_otherwise_is_refused() -> None:
    config = ProphetNetConfig(
        vocab_size=300, hidden_size=32, encoder_ffn_dim=32, decoder_ffn_dim=32, num_encoder_layers=1, num_decoder_layers=1,
        num_encoder_attention_heads=4, num_decoder_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    with pytest.raises(ValueError, match="has neither encoder_layers nor num_layers"):
        load_backbone(ProphetNetForConditionalGeneration(config), tokenizer=tiny_tokenizer())


def test_a_model_of_no_family_is_refused() -> None:
    config = ASTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32)
    with pytest.raises(
        ValueError, match=r"is a model of type 'audio-spectrogram-transformer', which belongs to no fam"
    ):
        load_backbone(ASTModel(config), tokenizer=tiny_tokenizer())


def test_a_vision_model_of_other_layers_is_refused_by_the_trial() -> None:
    model = SwinModel(SwinConfig(embed_dim=8, depths=[1], num_heads=[1], image_size=28, window_size=7))
    with pytest.raises(ValueError, match="SwinModel takes no prompts: it cannot be run layer by layer"):
        load_backbone(model, processor=RULE)


def test_a_type_that_transformers_does_not_know_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "oracle"}', encoding="utf-8")
    with pytest.raises(ValueError, match="oracle"):
        load_backbone(tmp_path)


def test_missing_weights_are_an_error_and_not_random_numbers(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tiny_causal_lm("llama", dtype=torch.float32))
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load(path.read_bytes())
    gone = [name for name in tensors if "layers.1.mlp" in name]
    kept = {name: tensor for name, tensor in tensors.items() if name not in gone}
    safetensors.torch.save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=rf"{len(gone)} weights are not in the file .*such as model.layers.1.mlp"
    ):
        load_backbone(folder, device="cpu")


def test_a_folder_without_weights_is_an_error_with_its_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tiny_causal_lm("llama", dtype=torch.float32))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(folder))):
        load_backbone(folder, device="cpu")


def test_weights_that_are_cut_off_are_an_error_with_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tiny_causal_lm("llama", dtype=torch.float32))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises((ValueError, OSError), match=re.escape(str(folder))):
        load_backbone(folder, device="cpu")


def test_weights_of_another_shape_are_an_error_with_the_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tiny_causal_lm("llama", dtype=torch.float32))
    config = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(config.replace('"intermediate_size": 64', '"intermediate_size": 32'))
    with pytest.raises(ValueError, match=re.escape(str(folder))):
        load_backbone(folder, device="cpu")


def test_each_process_of_a_launcher_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert loading._own_device() == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert loading._own_device() == "cuda:3"
    monkeypatch.delenv("LOCAL_RANK")
    assert loading._own_device() == "cuda"


@pytest.mark.parametrize("known", [True, False])
def test_code_beside_the_weights_never_runs_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    folder = folder_of(tmp_path / "model", tiny_causal_lm("llama", dtype=torch.float32))
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Theirs: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "theirs.Theirs", "AutoModelForCausalLM": "theirs.Theirs"}
    config["model_type"] = "llama" if known else "theirs"
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    if known:
        load_backbone(folder, dtype="float32", device="cpu")  # transformers' own code reads it
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            load_backbone(folder, dtype="float32", device="cpu")
    assert not (tmp_path / "ran").exists()


def test_code_beside_the_weights_is_allowed_by_the_caller_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, tiny_causal_lm("llama", dtype=torch.float32))
    told = []
    for kind in (loading.AutoConfig, loading.AutoTokenizer, loading.AutoModelForCausalLM):
        whole = kind.from_pretrained

        def from_pretrained(*args: Any, whole: Any = whole, **settings: Any) -> Any:
            told.append(settings.get("trust_remote_code"))
            return whole(*args, **settings)

        monkeypatch.setattr(kind, "from_pretrained", from_pretrained)
    load_backbone(folder, dtype="float32", device="cpu")
    assert not any(told)
    assert told.count(False) >= 3
    told.clear()
    load_backbone(folder, dtype="float32", device="cpu", trust_remote_code=True)
    assert told.count(True) >= 3
    with pytest.raises(TypeError, match="trust_remote_code is 'no', expected True or False"):
        load_backbone(folder, trust_remote_code="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("weight", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"])
def test_weights_that_are_not_numbers_are_said_by_name(weight: str) -> None:
    model = tiny_causal_lm("llama", dtype=torch.float32)
    with torch.no_grad():
        model.get_parameter(weight)[3, 3] = torch.nan
    with pytest.raises(ValueError, match=rf"{re.escape(weight)}.* hold numbers that are NaN or infinite"):
        load_backbone(model, tokenizer=tiny_tokenizer())
