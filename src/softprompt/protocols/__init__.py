"""Ways of using and measuring prompts that need more than one run: transfer, ensembles, few-shot, domain shift."""

from softprompt.protocols.domain_shift import Domain, DomainScores, DomainShift, evaluate_domains
from softprompt.protocols.ensembling import EnsembleMetrics, PromptEnsemble, combine
from softprompt.protocols.few_shot import FewShotSplit, few_shot_runs, few_shot_splits, started_from
from softprompt.protocols.recycling import port_prompt, shared_words
from softprompt.protocols.transfer import (
    RankedSource,
    combine_prompts,
    cosine,
    prompt_similarity,
    proportional_weights,
    rank_sources,
    similarity_matrix,
    softmax_weights,
)

__all__ = [
    "Domain",
    "DomainScores",
    "DomainShift",
    "EnsembleMetrics",
    "FewShotSplit",
    "PromptEnsemble",
    "RankedSource",
    "combine",
    "combine_prompts",
    "cosine",
    "evaluate_domains",
    "few_shot_runs",
    "few_shot_splits",
    "port_prompt",
    "prompt_similarity",
    "proportional_weights",
    "rank_sources",
    "shared_words",
    "similarity_matrix",
    "softmax_weights",
    "started_from",
]
