"""Protocols: ways of measuring prompts, as values, and functions that use several prompts (transfer, ensembles)."""

from softprompt.protocols.accuracy_matrix import (
    backward_transfer,
    final_average,
    forgetting,
    incremental_average,
    learning_accuracy,
    stage_accuracies,
)
from softprompt.protocols.base import Experiment, Protocol, ProtocolResult
from softprompt.protocols.base_to_new import (
    BaseToNew,
    BaseToNewProtocol,
    base_and_new,
    base_to_new_runs,
    harmonic_mean,
    harmonic_means,
)
from softprompt.protocols.catalogue import PROTOCOLS
from softprompt.protocols.class_incremental import (
    ClassIncremental,
    ClassIncrementalProtocol,
    class_incremental_run,
)
from softprompt.protocols.domain_adaptation import (
    DomainAdaptation,
    DomainAdaptationProtocol,
    PseudoLabels,
    adapt,
    mean_class_accuracy,
    mixed_rows,
    pseudo_labels,
)
from softprompt.protocols.domain_shift import (
    Domain,
    DomainScores,
    DomainShift,
    DomainShiftProtocol,
    evaluate_domains,
)
from softprompt.protocols.ensembling import EnsembleMetrics, PromptEnsemble, combine
from softprompt.protocols.few_shot import FewShotProtocol, few_shot_runs, started_from
from softprompt.protocols.joint import joint_training
from softprompt.protocols.plain import PlainProtocol
from softprompt.protocols.probe_grid import GridScore, ProbeGrid, probe_grid
from softprompt.protocols.probe_search import ProbeSearch, StrengthScore, probe_search
from softprompt.protocols.recycling import port_prompt, shared_words
from softprompt.protocols.rehearsal import Rehearsal
from softprompt.protocols.selection import Candidate, Selection, candidates, select_and_test
from softprompt.protocols.splits import FewShotSplit, few_shot_splits
from softprompt.protocols.task_division import class_tasks
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
    "PROTOCOLS",
    "BaseToNew",
    "BaseToNewProtocol",
    "Candidate",
    "ClassIncremental",
    "ClassIncrementalProtocol",
    "Domain",
    "DomainAdaptation",
    "DomainAdaptationProtocol",
    "DomainScores",
    "DomainShift",
    "DomainShiftProtocol",
    "EnsembleMetrics",
    "Experiment",
    "FewShotProtocol",
    "FewShotSplit",
    "GridScore",
    "PlainProtocol",
    "ProbeGrid",
    "ProbeSearch",
    "PromptEnsemble",
    "Protocol",
    "ProtocolResult",
    "PseudoLabels",
    "RankedSource",
    "Rehearsal",
    "Selection",
    "StrengthScore",
    "adapt",
    "backward_transfer",
    "base_and_new",
    "base_to_new_runs",
    "candidates",
    "class_incremental_run",
    "class_tasks",
    "combine",
    "combine_prompts",
    "cosine",
    "evaluate_domains",
    "few_shot_runs",
    "few_shot_splits",
    "final_average",
    "forgetting",
    "harmonic_mean",
    "harmonic_means",
    "incremental_average",
    "joint_training",
    "learning_accuracy",
    "mean_class_accuracy",
    "mixed_rows",
    "port_prompt",
    "probe_grid",
    "probe_search",
    "prompt_similarity",
    "proportional_weights",
    "pseudo_labels",
    "rank_sources",
    "select_and_test",
    "shared_words",
    "similarity_matrix",
    "softmax_weights",
    "stage_accuracies",
    "started_from",
]
