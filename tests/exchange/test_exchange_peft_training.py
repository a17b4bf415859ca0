"""Training here and training in PEFT are the same computation, so that PEFT's settings can be judged on our engine."""

from __future__ import annotations

import pytest
import torch

from softprompt.backbones.causal.backbone import CausalBackbone
from softprompt.outputs import EncodedRow, PromptOutput
from tests.tiny.language import tiny_causal_lm, tiny_tokenizer

P, STEPS = 6, 5


@pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"
)  # peft 0.21.2 on transformers 5
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_five_optimizer_steps_give_the_prompt_that_peft_gives(architecture: str) -> None:
    from peft import PromptTuningConfig, get_peft_model

    torch.manual_seed(0)
    texts = [[20, 21, 22, 23, 24], [30, 31, 32], [40, 41, 42, 43]]
    answers = [[50], [51], [50]]

    model = tiny_causal_lm(architecture)  # type: ignore[arg-type]
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=P)
    theirs = get_peft_model(model, config).eval()
    (prompt,) = [p for p in theirs.parameters() if p.requires_grad]
    ours = torch.nn.Parameter(prompt.detach().clone())

    optimizer = torch.optim.AdamW([prompt], lr=0.01, weight_decay=0.0)
    width = max(len(t) + len(a) for t, a in zip(texts, answers, strict=True))
    ids = torch.tensor([t + a + [0] * (width - len(t) - len(a)) for t, a in zip(texts, answers, strict=True)])
    labels = torch.tensor(
        [
            [-100] * len(t) + a + [-100] * (width - len(t) - len(a))
            for t, a in zip(texts, answers, strict=True)
        ]
    )
    mask = torch.tensor(
        [
            [1] * (len(t) + len(a)) + [0] * (width - len(t) - len(a))
            for t, a in zip(texts, answers, strict=True)
        ]
    )
    for _ in range(STEPS):
        optimizer.zero_grad()
        theirs(input_ids=ids, attention_mask=mask, labels=labels).loss.backward()
        optimizer.step()

    backbone = CausalBackbone(tiny_causal_lm(architecture).requires_grad_(False), tiny_tokenizer())  # type: ignore[arg-type]
    rows = [
        EncodedRow(tuple(-1 - k for k in range(P)) + tuple(t), (tuple(a),), 0)
        for t, a in zip(texts, answers, strict=True)
    ]
    optimizer = torch.optim.AdamW([ours], lr=0.01, weight_decay=0.0)
    for _ in range(STEPS):
        optimizer.zero_grad()
        (-backbone.score(rows, PromptOutput(tokens=ours[None])).token_log_likelihoods().mean()).backward()
        optimizer.step()
    assert (ours - prompt).abs().max() < 1e-5  # float32 prompts, AdamW's first steps amplify rounding
    assert (ours.detach() - prompt.detach()).norm() < 1e-5 * 5 * 0.01 * ours.numel() ** 0.5 + 1e-5
