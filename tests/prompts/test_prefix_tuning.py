"""Prefix-Tuning and P-tuning v2: settings, starts, reparametrisation, training, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softprompt import (
    MixedPrompts,
    PrefixTuning,
    PromptFileError,
    PromptTuning,
    PTuningV2,
    SequenceClassification,
    TextClassification,
    TextGeneration,
    TokenClassification,
    fit,
    load,
)
from softprompt.outputs import EncodedRow, PromptOutput
from softprompt.prompts import BuildContext, Method, PromptModule, prefix
from tests.backbones.encoder_decoder.test_backbone import backbone_of
from tests.tiny.encoders import encoder_backbone
from tests.tiny.language import Architecture
from tests.tiny.task import ROWS, TASK, tiny_backbone
from tests.tolerances import assert_equal_up_to_rounding

METHODS: dict[str, Method] = {
    "mlp": PrefixTuning(length=3, hidden=8),
    "mlp from noise": PrefixTuning(length=3, hidden=8, init="random"),
    "direct": PrefixTuning(length=3, reparametrize=False),
    "frozen": PrefixTuning(length=3, frozen=1, reparametrize=False, init="text", init_text="<s> good film"),
    "frozen mlp": PrefixTuning(length=3, frozen=2, hidden=8),
    "v2": PTuningV2(length=3),
    "v2 projected": PTuningV2(length=3, projection=True, hidden=8),
    "v2 from noise": PTuningV2(length=1, init="random"),
}
EVERY = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


def context(architecture: Architecture = "llama", seed: int = 0) -> BuildContext:
    return BuildContext(spec=tiny_backbone(architecture).spec, generator=torch.Generator().manual_seed(seed))


def rows_of(module: PromptModule) -> Tensor:
    """The prefix as (P, W)."""
    with torch.no_grad():
        output = module()
    assert output.prefix is not None
    return prefix.join_rows(output.prefix)


@pytest.mark.slow
@EVERY
@pytest.mark.parametrize("architecture", ["llama", "qwen3", "opt", "gemma3_text"])
def test_a_prefix_has_the_shape_of_the_models_keys_and_values(
    method: Any, architecture: Architecture
) -> None:
    given = context(architecture)
    module = method.build(given)
    output = module()
    assert [tuple(key.shape) for key, _ in output.prefix] == [
        (1, heads, method.length, size) for heads, size in given.spec.key_values
    ]
    assert all(part.dtype == torch.float32 for pair in output.prefix for part in pair)
    assert output.tokens is output.offset is output.layers is None
    assert (module.length, module.prefix_length) == (0, method.length)
    assert torch.equal(rows_of(method.build(context(architecture))), rows_of(module))


@pytest.mark.parametrize("kind", ["mlp", "direct", "v2", "v2 projected"])
def test_a_text_starts_as_what_the_model_makes_of_it(kind: str) -> None:
    backbone = tiny_backbone()
    of: Any = type(METHODS[kind])
    method = of(length=5, init="text", init_text="<s> good film")
    module = method.build(context()).bake()
    text = (1, *backbone.spec.tokenize(" good film"))
    text = (*text, *text)[:5]
    row = EncodedRow((20, 21, 30), ((40, 41),))
    found = backbone.score([row], module()).token_log_likelihoods()
    with_text = EncodedRow((*text, *row.context), row.targets)
    expected = backbone.score([with_text], PromptOutput()).token_log_likelihoods()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the prefix is float32


def test_noise_has_the_scale_of_the_models_own_keys_and_values() -> None:
    given = context("gemma3_text")
    assert given.spec.key_values_of is not None
    rows = rows_of(PrefixTuning(length=100, init="random", reparametrize=False).build(given))
    words = given.spec.key_values_of(torch.arange(20, 100))
    noise = prefix.split_rows(rows, given.spec.key_values)
    for ours, own in zip(noise, words, strict=True):
        for a, b in zip(ours, own, strict=True):
            assert a.std().item() == pytest.approx(b[:, :, 1:].std().item(), rel=0.2)


@EVERY
def test_baked_and_unbaked_are_bit_identical(method: Any) -> None:
    module = method.build(context())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    baked = module.bake()
    assert torch.equal(rows_of(baked), rows_of(module))
    assert set(baked.state_dict()) <= {"rows.weight", "frozen"}
    again = method.restore(context().spec, baked.state_dict())
    assert torch.equal(rows_of(again), rows_of(module))
    assert again.prefix_length == method.length


def test_the_mlp_of_the_paper_and_nothing_else_gives_the_prefix() -> None:
    module = PrefixTuning(length=3, hidden=8, init="random").build(context())
    weights = {name: tensor.double() for name, tensor in module.state_dict().items()}
    hidden = torch.tanh(weights["rows.inputs"] @ weights["rows.first.weight"].T + weights["rows.first.bias"])
    expected = hidden @ weights["rows.second.weight"].T + weights["rows.second.bias"]
    torch.testing.assert_close(
        rows_of(module).double(), weights["rows.scale"] * expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@EVERY
def test_training_moves_the_prefix_and_nothing_else(method: Any) -> None:
    backbone = tiny_backbone()
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    start = method.build(context())
    tuned = fit(backbone, TASK, method, ROWS, steps=3, progress=False, warmup=0)
    moved = (rows_of(tuned.module) != rows_of(start)).any(dim=1).tolist()
    frozen = getattr(method, "frozen", 0)
    assert moved == [i >= frozen for i in range(method.length)]
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    assert not any(p.requires_grad for p in tuned.module.parameters())


@pytest.mark.parametrize(
    "method",
    [
        PrefixTuning(length=8),
        PrefixTuning(length=8, init="random"),
        PrefixTuning(length=8, reparametrize=False, frozen=1),
        PTuningV2(length=8),
        PTuningV2(length=8, projection=True),
    ],
    ids=["mlp", "mlp from noise", "direct", "v2", "v2 projected"],
)
@pytest.mark.slow
def test_every_kind_learns_at_its_default_learning_rate(method: Method) -> None:
    backbone = tiny_backbone(dtype=torch.float32)
    tuned = fit(backbone, TASK, method, ROWS, steps=100, batch_size=8, progress=False)
    assert tuned.evaluate(ROWS)["accuracy"] == 1.0, [r["loss"] for r in tuned.history][::10]


@pytest.mark.slow
@EVERY
def test_a_saved_prefix_is_loaded_bit_identical(method: Any, tmp_path: Path) -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, TASK, method, ROWS, steps=2, progress=False)
    again = load(tuned.save(tmp_path / "p"), backbone)
    assert again.method == method
    assert torch.equal(rows_of(again.module), rows_of(tuned.module))
    assert again.predict(["film", "dog"]) == tuned.predict(["film", "dog"])
    rows = [again.encoder.encode(row) for row in ROWS[:3]]
    assert torch.equal(again.model.score(rows).logits, tuned.model.score(rows).logits)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mlp", "direct", "v2", "frozen mlp"])
def test_a_stopped_run_resumes_with_its_mlp_and_optimizer(kind: str, tmp_path: Path) -> None:
    class StopAt:
        def begin(self, steps: int, done: int) -> None:
            self.done = done

        def update(self, record: Any) -> None:
            if self.done == 0 and record.step == 4:
                raise KeyboardInterrupt

        def report(self, record: Any, *, is_best: bool) -> None: ...
        def end(self) -> None: ...

    method = METHODS[kind]
    settings: dict[str, Any] = {"steps": 8, "batch_size": 4}
    whole = fit(tiny_backbone(), TASK, method, ROWS, progress=False, **settings)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_backbone(), TASK, method, ROWS, progress=StopAt(), folder=tmp_path, **settings)
    resumed = fit(tiny_backbone(), TASK, method, ROWS, progress=False, folder=tmp_path, **settings)
    assert torch.equal(rows_of(resumed.module), rows_of(whole.module))
    assert [r["loss"] for r in resumed.history] == [r["loss"] for r in whole.history]


def test_a_prefix_trains_alike_with_gradient_checkpointing() -> None:
    settings: dict[str, Any] = {"steps": 3, "progress": False}
    plain = fit(tiny_backbone(), TASK, METHODS["mlp"], ROWS, **settings)
    saving = fit(tiny_backbone(), TASK, METHODS["mlp"], ROWS, gradient_checkpointing=True, **settings)
    torch.testing.assert_close(rows_of(saving.module), rows_of(plain.module), rtol=1e-6, atol=1e-7)


def test_dropout_is_of_the_prefix_and_in_training_only() -> None:
    module = PTuningV2(length=8, dropout=0.5).build(context())
    kept = rows_of(module)
    output = module()
    assert output.prefix is not None
    dropped = prefix.join_rows(output.prefix)
    zero = dropped == 0
    assert 0.4 < zero.float().mean().item() < 0.6
    torch.testing.assert_close(dropped[~zero], 2 * kept[~zero])
    assert torch.equal(rows_of(module.bake()), kept)
    assert torch.equal(rows_of(module), kept)


def test_a_saved_prefix_is_a_start(tmp_path: Path) -> None:
    tuned = fit(tiny_backbone(), TASK, METHODS["frozen"], ROWS, steps=1, progress=False)
    folder, rows = tuned.save(tmp_path / "p"), rows_of(tuned.module)
    for method in (
        PrefixTuning(length=5, init="prompt", init_prompt=folder, hidden=8),
        PTuningV2(length=5, init="prompt", init_prompt=folder),
    ):
        torch.testing.assert_close(rows_of(method.build(context())), rows[[0, 1, 2, 0, 1]])
    with pytest.raises(
        ValueError, match=r"has shape \(3, 96\), tiny/gpt2 needs \(n, 192\): keys and values of 2"
    ):
        PrefixTuning(init="prompt", init_prompt=folder).build(context("gpt2"))
    virtual = fit(tiny_backbone(), TASK, PromptTuning(length=2), ROWS, steps=1, progress=False)
    with pytest.raises(PromptFileError, match="a prompt-tuning prompt has no keys and values to start from"):
        PTuningV2(init="prompt", init_prompt=virtual.save(tmp_path / "tokens")).build(context())


def test_a_damaged_prefix_is_not_restored() -> None:
    with pytest.raises(ValueError, match=r"has shape \(3, 95\), tiny/llama needs \(n, 96\)"):
        PrefixTuning().restore(context().spec, {"rows.weight": torch.zeros(3, 95)})


def test_mixed_prefixes_and_virtual_tokens_answer_as_each_alone() -> None:
    backbone = tiny_backbone()
    methods: list[Method] = [
        PrefixTuning(length=5, hidden=8), PromptTuning(length=3), PTuningV2(length=2), PrefixTuning(length=1),
    ]  # fmt: skip
    tuned = [fit(backbone, TASK, m, ROWS[i:], steps=4, progress=False) for i, m in enumerate(methods)]
    texts = [row["text"] for row in ROWS[:8]]
    numbers = [0, 1, 2, 3, 3, 1, 0, 2]
    found = MixedPrompts(tuned).predict(texts, numbers)
    alone = [tuned[n].predict([text])[0] for text, n in zip(texts, numbers, strict=True)]
    assert_equal_up_to_rounding(found, alone)


def test_a_prefix_takes_its_positions_from_the_text() -> None:
    backbone = tiny_backbone()
    tuned = fit(backbone, TASK, PTuningV2(length=100), ROWS, steps=1, progress=False)
    row = tuned.encoder.encode({"text": "film " * 200, "label": "pos"})
    assert len(row.context) + 1 == 28  # of 128 positions
    with pytest.raises(
        ValueError, match="a prefix of 128 positions leaves no room for text: tiny/llama has 128"
    ):
        fit(backbone, TASK, PTuningV2(length=128), ROWS, steps=1, progress=False)


WORDS = [
    {
        **row,
        "words": row["text"].split(),
        "tags": ["B-X" if w == "film" else "O" for w in row["text"].split()],
    }
    for row in ROWS
]


@pytest.mark.parametrize("method", [PTuningV2(length=6), PrefixTuning(length=6)], ids=["v2", "mlp"])
@pytest.mark.parametrize(
    ("task", "metric"),
    [
        (TextClassification("{text} sentiment{mask}", labels=TASK.labels), "accuracy"),
        (SequenceClassification("{text}", labels=["neg", "pos"]), "accuracy"),
        (TokenClassification(["O", "B-X"]), "f1"),
    ],
    ids=["cloze", "head", "tags"],
)
@pytest.mark.slow
def test_an_encoder_learns_by_a_prefix_with_a_verbalizer_or_a_head(
    method: Method, task: Any, metric: str, tmp_path: Path
) -> None:
    backbone = encoder_backbone(dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    tuned = fit(backbone, task, method, WORDS, steps=200, batch_size=8, progress=False)
    assert tuned.evaluate(WORDS)[metric] == 1.0, [r["loss"] for r in tuned.history][::10]
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.model.state_dict().items())
    again = load(tuned.save(tmp_path / "p"), backbone)
    assert torch.equal(rows_of(again.module), rows_of(tuned.module))
    assert again.evaluate(WORDS) == tuned.evaluate(WORDS)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["t5", "bart"])
@pytest.mark.parametrize("method", [PTuningV2(length=3), PrefixTuning(length=3, hidden=8)], ids=["v2", "mlp"])
def test_an_encoder_decoder_trains_three_prefixes(architecture: str, method: Any, tmp_path: Path) -> None:
    backbone = backbone_of(architecture, layers=(2, 3))
    task = TextGeneration("{text} is", target=" {label}", max_new_tokens=2)
    start = rows_of(
        method.build(BuildContext(spec=backbone.spec, generator=torch.Generator().manual_seed(0)))
    )
    tuned = fit(backbone, task, method, ROWS, steps=3, progress=False, warmup=0)
    prefix_of = prefix.split_rows(rows_of(tuned.module), backbone.spec.key_values)
    before = prefix.split_rows(start, backbone.spec.key_values)
    assert backbone.spec.places == ("encoder",) * 2 + ("decoder",) * 3 + ("cross",) * 3
    for ours, old in zip(prefix_of, before, strict=True):
        assert all((a != b).any() for a, b in zip(ours, old, strict=True))
    again = load(tuned.save(tmp_path / "p"), backbone)
    assert again.predict(["film", "dog"]) == tuned.predict(["film", "dog"])
    with pytest.raises(
        ValueError, match=r"decoder's self-attention only, this one of \['cross', 'decoder', 'encoder'\]"
    ):
        tuned.export_peft(tmp_path / "peft")


@pytest.mark.parametrize(("architecture", "taken"), [("bert", 100), ("modernbert", 0)])
def test_the_positions_of_a_prefix_are_taken_where_they_count(architecture: Any, taken: int) -> None:
    backbone = encoder_backbone(architecture)
    task = SequenceClassification("{text}", labels=["neg", "pos"])
    tuned = fit(backbone, task, PTuningV2(length=100), ROWS, steps=1, progress=False)
    row = tuned.encoder.encode({"text": "film " * 200, "label": "pos"})
    assert backbone.spec.positions is not None
    assert len(row.context) == backbone.spec.positions - taken
    assert len(tuned.model.outputs([row])) == 1


@pytest.mark.slow
def test_a_model_that_generates_learns_by_a_prefix() -> None:
    task = TextGeneration("{text} is", target=" {label}", max_new_tokens=2)
    rows = [{**row, "label": {"pos": "good", "neg": "bad"}[row["label"]]} for row in ROWS]
    backbone = tiny_backbone(dtype=torch.float32)
    tuned = fit(
        backbone, task, PTuningV2(length=6, dropout=0.0), rows, steps=200, batch_size=8, progress=False
    )
    assert tuned.predict([row["text"] for row in rows[:6]]) == ["good", "bad"] * 3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"length": 0}, "length"),
        ({"init": "uniform"}, "'vocab', 'text', 'prompt' or 'random'"),
        ({"init": "text"}, 'init_text and init="text" go together'),
        ({"init_prompt": "p"}, 'init_prompt and init="prompt" go together'),
        ({"dropout": 1.0}, "dropout"),
        ({"frozen": 10}, "frozen=10 leaves nothing to train of length=10"),
        ({"frozen": 1, "init": "random"}, 'frozen=1 would keep noise: choose another init than "random"'),
        ({"hiden": 3}, "hiden"),
    ],
)
def test_settings_that_do_not_fit_are_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is looked at below
        PrefixTuning(**settings)
    assert said in str(caught.value)
