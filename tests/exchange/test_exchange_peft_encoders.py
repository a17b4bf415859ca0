"""Key-value prefixes of encoders in PEFT's format, both directions against the real PEFT, heads included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.testing import assert_close

from softprompt import (
    PrefixTuning,
    PromptFileError,
    PromptTuning,
    PTuningV2,
    SequenceClassification,
    SpanExtraction,
    TextClassification,
    TokenClassification,
    TunedPrompt,
    fit,
    from_peft,
    load,
)
from softprompt.backbones.masked.backbone import MaskedBackbone
from softprompt.exchange import read_peft, write_peft, write_peft_prefix
from softprompt.exchange.heads import TanhHead
from softprompt.tasks.base import Task
from tests.tiny.encoders import Encoder, encoder_backbone
from tests.tiny.task import ROWS, TASK

peft = pytest.importorskip("peft")

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:(every validation|no predicted answer|no training):softprompt.SoftpromptWarning"
    ),
]
ABSOLUTE: tuple[Encoder, ...] = ("bert", "roberta")
each_absolute = pytest.mark.parametrize("architecture", ABSOLUTE)

SENTENCES = [
    {
        **row,
        "words": row["text"].split(),
        "tags": ["B-X" if word in ("film", "dog") else "O" for word in row["text"].split()],
        "question": "what is it",
        "context": row["text"],
        "answers": {"text": [row["text"].split()[0]], "answer_start": [0]},
    }
    for row in ROWS
]
TASKS: dict[str, tuple[Task, str]] = {
    "sequence": (SequenceClassification("{text} sentiment", labels=["neg", "pos"]), "SequenceClassification"),
    "tokens": (TokenClassification(["O", "B-X"]), "TokenClassification"),
    "span": (SpanExtraction(), "QuestionAnswering"),
}
TASK_TYPES = {"sequence": "SEQ_CLS", "tokens": "TOKEN_CLS", "span": "QUESTION_ANS"}
CLOZE = TextClassification("{text} sentiment{mask}", labels=TASK.labels)


def whole_model(backbone: MaskedBackbone, kind: str) -> Any:
    """Transformers' model for a task around the weights of a text encoder, float64."""
    auto = getattr(transformers, f"AutoModelFor{TASKS[kind][1]}")
    model = auto.from_config(backbone.model.config).double().eval()
    missing = model.base_model.load_state_dict(backbone.model.state_dict(), strict=False).missing_keys
    assert not missing
    return model


def theirs_of(backbone: MaskedBackbone, kind: str) -> Any:
    config = peft.PrefixTuningConfig(task_type=TASK_TYPES[kind], num_virtual_tokens=4)
    model = peft.get_peft_model(whole_model(backbone, kind), config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape) / 2)  # float32 numbers: heads are stored so
    return model


def logits_of(theirs: nn.Module, rows: Any, kind: str) -> list[Tensor]:
    """What PEFT's model says where our rows are read, all rows in one padded batch."""
    width = max(len(row.context) for row in rows)
    ids = torch.tensor([list(row.context) + [0] * (width - len(row.context)) for row in rows])
    types = torch.zeros_like(ids)
    with torch.no_grad():
        output = theirs(input_ids=ids, attention_mask=(ids > 0).long(), token_type_ids=types)
    if kind == "sequence":
        return list(output.logits[:, None])
    logits = torch.stack([output.start_logits, output.end_logits], -1) if kind == "span" else output.logits
    return [logits[b, list(row.read)] for b, row in enumerate(rows)]


def assert_same(tuned: TunedPrompt, theirs: nn.Module, kind: str) -> None:
    assert tuned.head is not None
    tuned.head.double()
    rows = [tuned.encoder.encode(row) for row in SENTENCES[:5]]
    with torch.no_grad():
        ours = tuned.model.outputs(rows)
    tuned.head.float()
    assert_close(ours, torch.cat(logits_of(theirs, rows, kind)), rtol=0, atol=1e-10)


@pytest.mark.slow
@each_absolute
@pytest.mark.parametrize("kind", TASKS)
def test_a_prefix_and_head_that_peft_wrote_give_peft_s_logits(
    tmp_path: Path, architecture: Encoder, kind: str
) -> None:
    backbone = encoder_backbone(architecture, head=False)
    if kind != "sequence" or architecture == "roberta":
        backbone.model.pooler = None  # nobody reads it
    theirs = theirs_of(backbone, kind)
    theirs.save_pretrained(tmp_path / "theirs")
    task = TASKS[kind][0]
    tuned = from_peft(tmp_path / "theirs", backbone, task)
    assert_same(tuned, theirs, kind)
    assert tuned.head is not None
    assert not any(p.requires_grad for p in [*tuned.head.parameters(), *tuned.module.parameters()])
    # The same in our own format, and back in PEFT's.
    again = load(tuned.save(tmp_path / "ours"), backbone)
    assert_same(again, theirs, kind)
    other = peft.PeftModel.from_pretrained(
        whole_model(backbone, kind), again.export_peft(tmp_path / "back")
    ).eval()
    assert_same(again, other, kind)


@pytest.mark.slow
@each_absolute
@pytest.mark.parametrize("kind", ["tokens", "span"])
@pytest.mark.parametrize("method", [PTuningV2(length=3), PrefixTuning(length=3, hidden=8)], ids=["v2", "mlp"])
def test_a_prefix_and_head_written_here_give_the_same_logits_in_peft(
    tmp_path: Path, architecture: Encoder, kind: str, method: Any
) -> None:
    backbone = encoder_backbone(architecture, head=False)
    tuned = fit(backbone, TASKS[kind][0], method, SENTENCES, steps=2, progress=False)
    folder = tuned.export_peft(tmp_path / "p")
    assert read_peft(folder).config["task_type"] == TASK_TYPES[kind]
    theirs = peft.PeftModel.from_pretrained(whole_model(backbone, kind), folder).eval()
    assert_same(tuned, theirs, kind)


@each_absolute
def test_a_prefix_for_words_gives_the_same_hidden_states_in_peft_both_ways(
    tmp_path: Path, architecture: Encoder
) -> None:
    backbone = encoder_backbone(architecture)
    tuned = fit(backbone, CLOZE, PTuningV2(length=3), ROWS, steps=2, progress=False)
    folder = tuned.export_peft(tmp_path / "p")
    trunk = encoder_backbone(architecture, head=False).model
    trunk.load_state_dict(backbone.model.base_model.state_dict(), strict=False)
    theirs = peft.PeftModel.from_pretrained(trunk, folder).eval()
    again = from_peft(folder, backbone, CLOZE)
    for text in ("film and dog", "the house by the river is old"):
        row = tuned.encoder.encode({"text": text}, answer=False)
        with torch.no_grad():
            states = theirs(input_ids=torch.tensor([row.context])).last_hidden_state[0]
            mask = row.context.index(backbone.tokenizer.mask_token_id)
            expected = backbone._logits(states[mask : mask + 1])
            for prompt in (tuned, again):
                assert_close(prompt.model.score([row]).logits, expected, rtol=0, atol=1e-10)
    assert again.predict(["film and dog"]) == tuned.predict(["film and dog"])


def test_where_positions_are_not_embedded_a_prefix_is_refused_both_ways(tmp_path: Path) -> None:
    backbone = encoder_backbone("modernbert")
    tuned = fit(backbone, CLOZE, PTuningV2(length=2), ROWS, steps=1, progress=False)
    with pytest.raises(
        ValueError, match=r"PEFT counts the positions of a prefix.*tiny/modernbert \(masked-lm\)"
    ):
        tuned.export_peft(tmp_path / "p")
    write_peft_prefix(
        tmp_path / "p", torch.zeros(2, 288), base_model_name=None, num_layers=3, num_key_value_heads=4
    )
    with pytest.raises(ValueError, match=r"tiny/modernbert \(masked-lm\), which embeds no positions"):
        from_peft(tmp_path / "p", backbone, CLOZE)


def test_heads_that_transformers_does_not_have_are_refused(tmp_path: Path) -> None:
    backbone = encoder_backbone(head=False)
    task = TASKS["sequence"][0]
    tuned = fit(backbone, task, PTuningV2(length=2), SENTENCES, steps=1, progress=False)
    with pytest.raises(ValueError, match=r"is Linear on a hidden state.*dense layer and a tanh in front"):
        tuned.export_peft(tmp_path / "p")
    width = backbone.spec.width
    head = TanhHead(nn.Linear(width, width), nn.Linear(width, 2))
    with pytest.raises(ValueError, match="dense layer is not the pooler of tiny/bert"):
        TunedPrompt(backbone, task, tuned.method, tuned.module, head=head).export_peft(tmp_path / "p")
    tags = TASKS["tokens"][0]
    with pytest.raises(
        ValueError, match="head for token-classification is one linear layer, this one is TanhHead"
    ):
        TunedPrompt(backbone, tags, tuned.method, tuned.module, head=head).export_peft(tmp_path / "p")
    tokens = fit(backbone, tags, PromptTuning(length=2), SENTENCES, steps=1, progress=False)
    with pytest.raises(ValueError, match="holds no head that reads the text"):
        tokens.export_peft(tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_folder_without_the_head_that_a_task_needs_is_an_error(tmp_path: Path) -> None:
    backbone = encoder_backbone(head=False)
    tags = TASKS["tokens"][0]
    size: dict[str, Any] = {"base_model_name": None, "num_layers": 2, "num_key_value_heads": 4}
    write_peft_prefix(tmp_path / "none", torch.zeros(2, 192), **size)
    with pytest.raises(
        PromptFileError, match="holds no head that token-classification could be answered with"
    ):
        from_peft(tmp_path / "none", backbone, tags)
    head = {"base_model.classifier.weight": torch.zeros(3, 48), "base_model.classifier.bias": torch.zeros(3)}
    write_peft_prefix(tmp_path / "three", torch.zeros(2, 192), **size, task_type="TOKEN_CLS", head=head)
    with pytest.raises(
        PromptFileError, match="reads 48 numbers and gives 3; token-classification on tiny/bert"
    ):
        from_peft(tmp_path / "three", backbone, tags)
    with pytest.raises(
        PromptFileError, match=r"reads the model's pooler, which tiny/bert \(masked-lm\) has none of"
    ):
        from_peft(tmp_path / "three", encoder_backbone(), TASKS["sequence"][0])
    write_peft(
        tmp_path / "tokens", torch.zeros(2, 48), base_model_name=None, num_layers=2, num_attention_heads=4
    )
    with pytest.raises(ValueError, match="PEFT's virtual tokens move what a head reads"):
        from_peft(tmp_path / "tokens", backbone, tags)
