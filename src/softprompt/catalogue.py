"""Methods by name: one line each in METHODS. A module is imported when its methods are first asked for."""

from __future__ import annotations

from functools import cache
from pkgutil import resolve_name

from softprompt.prompts.base import Method

METHODS = {
    "adept": "softprompt.prompts.adept:ADePT",
    "cocoop": "softprompt.prompts.cocoop:CoCoOp",
    "coop": "softprompt.prompts.coop:CoOp",
    "dapl": "softprompt.prompts.dapl:DAPL",
    "dept": "softprompt.prompts.dept:DePT",
    "dual-prompt": "softprompt.prompts.dual_prompt:DualPrompt",
    "l2p": "softprompt.prompts.l2p:L2P",
    "low-rank-prompt-tuning": "softprompt.prompts.low_rank:LowRankPromptTuning",
    "p-tuning": "softprompt.prompts.p_tuning:PTuning",
    "p-tuning-v2": "softprompt.prompts.p_tuning_v2:PTuningV2",
    "pez": "softprompt.prompts.pez:PEZ",
    "prefix-tuning": "softprompt.prompts.prefix_tuning:PrefixTuning",
    "prompt-tuning": "softprompt.prompts.prompt_tuning:PromptTuning",
    "residual-prompt-tuning": "softprompt.prompts.residual:ResidualPromptTuning",
    "trigger-search": "softprompt.prompts.trigger_search:TriggerSearch",
    "ulpt": "softprompt.prompts.ulpt:ULPT",
    "vpt": "softprompt.prompts.vpt:VPT",
    "adapter": "softprompt.baselines.adapter:Adapter",
    "bitfit": "softprompt.baselines.bit_fit:BitFit",
    "few-shot": "softprompt.baselines.untrained:FewShot",
    "full-tuning": "softprompt.baselines.full_tuning:FullTuning",
    "linear-probe": "softprompt.baselines.linear_probe:LinearProbe",
    "lora": "softprompt.baselines.lora:LoRA",
    "manual-prompt": "softprompt.baselines.untrained:ManualPrompt",
    "mlp-probe": "softprompt.baselines.mlp_probe:MLPProbe",
    "partial-tuning": "softprompt.baselines.partial:PartialTuning",
    "side-tuning": "softprompt.baselines.side_tuning:SideTuning",
    "zero-shot": "softprompt.baselines.untrained:ZeroShot",
}
"""Name of a method -> module:class. `python -m docs.tools.method_stubs` writes the stubs from it."""


@cache
def methods() -> dict[str, type[Method]]:
    """Every method of the library by its name, those of softprompt.prompts and of softprompt.baselines."""
    return {name: resolve_name(place) for name, place in METHODS.items()}
