"""Prompts for other servers answer there as they answer here."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import softprompt as sp
from softprompt.exports import FORMS, export
from softprompt.exports.prompt_embeds import content_part, request_vectors
from softprompt.exports.source import row_of
from tests.cli.runs import softprompt, write_backbone
from tests.serving.conftest import STORY, prompt
from tests.tiny.encoders import encoder_backbone
from tests.tiny.task import TASK, tiny_backbone

WITHIN = sp.TextGeneration("{soft:2} say {text} {soft} :", target=" {label}", max_new_tokens=8)


def tuned(**settings: Any) -> dict[str, sp.TunedPrompt]:
    backbone = tiny_backbone(**({"dtype": torch.float32} | settings))
    return {
        "mood": prompt(backbone, TASK, sp.PromptTuning(length=4), 1),
        "story": prompt(backbone, STORY, sp.PromptTuning(length=3), 2),
        "a story/of \x1b[1m<b>": prompt(backbone, WITHIN, sp.PromptTuning(length=5), 3),
    }


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@pytest.mark.parametrize("form", ["checkpoint", "prompt-embeds"])
def test_what_is_written_answers_as_the_prompts_do(form: str, architecture: Any, tmp_path: Path) -> None:
    prompts = {name.partition("/")[0]: one for name, one in tuned(architecture=architecture).items()}
    told = export(prompts, form, tmp_path / "out", check=True)
    assert told["tokens"] == {"mood": 4, "story": 3, "a story": 5}
    assert sorted(json.loads((tmp_path / "out" / "prompts.json").read_text())) == sorted(prompts)


@pytest.mark.slow
def test_old_words_are_as_they_were_and_new_ones_are_never_said(tmp_path: Path) -> None:
    prompts = tuned()
    backbone = prompts["mood"].backbone
    rows = backbone.table.shape[0]
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    export({"mood": prompts["mood"], "a b\n": prompts["story"]}, "checkpoint", tmp_path / "out", check=True)
    after = backbone.model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert not model.config.tie_word_embeddings
    assert torch.equal(model.get_input_embeddings().weight[:rows], backbone.table)
    assert torch.equal(
        model.get_output_embeddings().weight[:rows], backbone.model.get_output_embeddings().weight
    )
    table = json.loads((tmp_path / "out" / "prompts.json").read_text())
    ids = torch.tensor([table["mood"]["ids"] + tokenizer("the film", add_special_tokens=False)["input_ids"]])
    drawn = model.generate(
        input_ids=ids,
        do_sample=True,
        max_new_tokens=20,
        num_return_sequences=50,
        temperature=5.0,
        pad_token_id=0,
    )
    assert drawn[:, ids.shape[1] :].max() < rows
    assert "<|mood-0-" in table["mood"]["text"]
    guess = tokenizer("<|mood-0-0|>", add_special_tokens=False)["input_ids"]
    assert max(guess) < rows


def test_vectors_of_a_request_are_those_that_the_prompt_reads(tmp_path: Path) -> None:
    story = tuned()["story"]
    vectors = request_vectors(story, "the dog")
    assert len(vectors) == len(row_of(story, {"text": "the dog"}).context)
    part = content_part(vectors)
    read = torch.load(io.BytesIO(base64.b64decode(part["data"])), weights_only=True)
    assert (part["type"], torch.equal(read, vectors)) == ("prompt_embeds", True)


def test_what_cannot_be_exported_says_what_to_do(tmp_path: Path) -> None:
    backbone = tiny_backbone(dtype=torch.float32)
    prefix = prompt(backbone, TASK, sp.PrefixTuning(length=2))
    whole = sp.SequenceClassification("{text}", labels=["a", "b"])
    head = prompt(backbone, whole, sp.PromptTuning(length=2))
    other: Any = encoder_backbone()
    cloze = sp.TextClassification("{text} is {mask}", labels={"a": " bad", "b": " good"})
    encoder = prompt(other, cloze, sp.PromptTuning(length=2))
    for form in ("checkpoint", "prompt-embeds"):
        for one, said in (
            (prefix, "more than virtual tokens"),
            (head, "answers by a head"),
            (encoder, "is for decoders"),
        ):
            with pytest.raises(ValueError, match=f"{said}.*softprompt serve"):
                export({"one": one}, form, tmp_path / "out")
    with pytest.raises(ValueError, match="no form 'onnx'; there are checkpoint"):
        export({"one": prefix}, "onnx", tmp_path / "out")
    with pytest.raises(ValueError, match="on several backbones"):
        export({"one": prefix, "two": encoder}, "checkpoint", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_stands_there_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    prompts = {"story": tuned()["story"]}
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="is there already"):
        export(prompts, "prompt-embeds", out)
    bad = {"p": prompt(prompts["story"].backbone, TASK, sp.PrefixTuning(length=2))}
    with pytest.raises(ValueError, match="more than virtual tokens"):
        export(bad, "prompt-embeds", out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["mine"]
    export(prompts, "prompt-embeds", out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["prompts.json", "story.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_command_writes_and_checks_every_form(form: str, tmp_path: Path) -> None:
    backbone = sp.load_backbone(write_backbone(tmp_path / "backbone"), dtype="float32", device="cpu")
    for name in ("one", "two"):
        prompt(backbone, STORY, sp.PromptTuning(length=3), len(name)).save(tmp_path / name)
    options = ("--to", form, "--check", "--dtype", "float32", "--device", "cpu")
    result = softprompt("export", tmp_path / "one", tmp_path / "two", "-o", tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "answers as the prompts do" in result.stdout
    again = softprompt("export", tmp_path / "one", "-o", tmp_path / "out", *options)
    assert again.exit_code == 1
    assert "is there already" in again.stderr
    assert (
        softprompt("export", tmp_path / "one", tmp_path / "one", "-o", tmp_path / "x", *options).exit_code
        == 1
    )
