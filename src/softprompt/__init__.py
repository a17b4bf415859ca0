"""softprompt tunes small prompts for large frozen models.

Three nouns and a verb: a backbone, a task and a method go into `fit`, a TunedPrompt comes out.
"""

import importlib
from typing import TYPE_CHECKING, Any

from softprompt.version import __version__

if TYPE_CHECKING:
    from softprompt.attach import attach
    from softprompt.backbones.loading import load_backbone
    from softprompt.baselines import (
        Adapter,
        BitFit,
        FewShot,
        FullTuning,
        LinearProbe,
        LoRA,
        ManualPrompt,
        MLPProbe,
        PartialTuning,
        SideTuning,
        ZeroShot,
    )
    from softprompt.catalogue import methods
    from softprompt.errors import CheckpointError, SoftpromptWarning, TrainingDiverged
    from softprompt.features.cache import FeatureCache
    from softprompt.fitting.many import fit_many
    from softprompt.fitting.one import fit
    from softprompt.images import ImageRule
    from softprompt.inspection.projection import FoundPrompt, project_prompt
    from softprompt.mixed import MixedPrompts
    from softprompt.prompts import (
        DAPL,
        L2P,
        PEZ,
        ULPT,
        VPT,
        ADePT,
        CoCoOp,
        CoOp,
        DePT,
        DualPrompt,
        LowRankPromptTuning,
        PrefixTuning,
        PromptTuning,
        PTuning,
        PTuningV2,
        ResidualPromptTuning,
        TriggerSearch,
    )
    from softprompt.protocols.base_to_new import BaseToNew, base_to_new_runs
    from softprompt.protocols.class_incremental import ClassIncremental, class_incremental_run, joint_training
    from softprompt.protocols.domain_adaptation import DomainAdaptation, adapt
    from softprompt.protocols.domain_shift import Domain, DomainShift, evaluate_domains
    from softprompt.protocols.ensembling import EnsembleMetrics, PromptEnsemble
    from softprompt.protocols.few_shot import few_shot_runs
    from softprompt.protocols.probe_grid import ProbeGrid, probe_grid
    from softprompt.protocols.probe_search import ProbeSearch, probe_search
    from softprompt.protocols.recycling import port_prompt
    from softprompt.protocols.rehearsal import Rehearsal
    from softprompt.protocols.selection import Candidate, Selection, candidates, select_and_test
    from softprompt.protocols.splits import FewShotSplit, few_shot_splits
    from softprompt.protocols.transfer import (
        combine_prompts,
        prompt_similarity,
        rank_sources,
        similarity_matrix,
    )
    from softprompt.store import PromptFileError, WrongBackboneError
    from softprompt.tasks import (
        ClassPrediction,
        ImageClassification,
        ImageTextClassification,
        LanguageModeling,
        Regression,
        SequenceClassification,
        SpanExtraction,
        SpanPrediction,
        TextClassification,
        TextGeneration,
        TokenClassification,
    )
    from softprompt.training.recipe import Recipe
    from softprompt.tuned import TunedPrompt, from_peft, load

# Name -> where it is defined. Imported at first use: torch and transformers take seconds, and the command line's
# --help needs neither.
_HOMES = {
    "attach": "softprompt.attach",
    "load_backbone": "softprompt.backbones.loading",
    "Adapter": "softprompt.baselines",
    "BitFit": "softprompt.baselines",
    "FewShot": "softprompt.baselines",
    "LinearProbe": "softprompt.baselines",
    "LoRA": "softprompt.baselines",
    "MLPProbe": "softprompt.baselines",
    "FullTuning": "softprompt.baselines",
    "ManualPrompt": "softprompt.baselines",
    "PartialTuning": "softprompt.baselines",
    "SideTuning": "softprompt.baselines",
    "ZeroShot": "softprompt.baselines",
    "CheckpointError": "softprompt.errors",
    "SoftpromptWarning": "softprompt.errors",
    "TrainingDiverged": "softprompt.errors",
    "FeatureCache": "softprompt.features.cache",
    "fit": "softprompt.fitting.one",
    "fit_many": "softprompt.fitting.many",
    "FoundPrompt": "softprompt.inspection.projection",
    "project_prompt": "softprompt.inspection.projection",
    "ImageRule": "softprompt.images",
    "MixedPrompts": "softprompt.mixed",
    "PTuningV2": "softprompt.prompts",
    "ADePT": "softprompt.prompts",
    "CoCoOp": "softprompt.prompts",
    "CoOp": "softprompt.prompts",
    "DAPL": "softprompt.prompts",
    "DePT": "softprompt.prompts",
    "DualPrompt": "softprompt.prompts",
    "L2P": "softprompt.prompts",
    "LowRankPromptTuning": "softprompt.prompts",
    "PEZ": "softprompt.prompts",
    "PTuning": "softprompt.prompts",
    "ResidualPromptTuning": "softprompt.prompts",
    "TriggerSearch": "softprompt.prompts",
    "ULPT": "softprompt.prompts",
    "VPT": "softprompt.prompts",
    "PrefixTuning": "softprompt.prompts",
    "PromptTuning": "softprompt.prompts",
    "methods": "softprompt.catalogue",
    "BaseToNew": "softprompt.protocols.base_to_new",
    "base_to_new_runs": "softprompt.protocols.base_to_new",
    "ClassIncremental": "softprompt.protocols.class_incremental",
    "class_incremental_run": "softprompt.protocols.class_incremental",
    "joint_training": "softprompt.protocols.class_incremental",
    "Rehearsal": "softprompt.protocols.rehearsal",
    "DomainAdaptation": "softprompt.protocols.domain_adaptation",
    "adapt": "softprompt.protocols.domain_adaptation",
    "Domain": "softprompt.protocols.domain_shift",
    "DomainShift": "softprompt.protocols.domain_shift",
    "evaluate_domains": "softprompt.protocols.domain_shift",
    "EnsembleMetrics": "softprompt.protocols.ensembling",
    "PromptEnsemble": "softprompt.protocols.ensembling",
    "FewShotSplit": "softprompt.protocols.splits",
    "few_shot_runs": "softprompt.protocols.few_shot",
    "few_shot_splits": "softprompt.protocols.splits",
    "ProbeGrid": "softprompt.protocols.probe_grid",
    "probe_grid": "softprompt.protocols.probe_grid",
    "ProbeSearch": "softprompt.protocols.probe_search",
    "probe_search": "softprompt.protocols.probe_search",
    "port_prompt": "softprompt.protocols.recycling",
    "Candidate": "softprompt.protocols.selection",
    "Selection": "softprompt.protocols.selection",
    "candidates": "softprompt.protocols.selection",
    "select_and_test": "softprompt.protocols.selection",
    "combine_prompts": "softprompt.protocols.transfer",
    "prompt_similarity": "softprompt.protocols.transfer",
    "rank_sources": "softprompt.protocols.transfer",
    "similarity_matrix": "softprompt.protocols.transfer",
    "Recipe": "softprompt.training.recipe",
    "PromptFileError": "softprompt.store",
    "WrongBackboneError": "softprompt.store",
    "ClassPrediction": "softprompt.tasks",
    "LanguageModeling": "softprompt.tasks",
    "ImageClassification": "softprompt.tasks",
    "ImageTextClassification": "softprompt.tasks",
    "Regression": "softprompt.tasks",
    "SequenceClassification": "softprompt.tasks",
    "SpanExtraction": "softprompt.tasks",
    "SpanPrediction": "softprompt.tasks",
    "TextClassification": "softprompt.tasks",
    "TextGeneration": "softprompt.tasks",
    "TokenClassification": "softprompt.tasks",
    "TunedPrompt": "softprompt.tuned",
    "from_peft": "softprompt.tuned",
    "load": "softprompt.tuned",
}

__all__ = [
    "DAPL",
    "L2P",
    "PEZ",
    "ULPT",
    "VPT",
    "ADePT",
    "Adapter",
    "BaseToNew",
    "BitFit",
    "Candidate",
    "CheckpointError",
    "ClassIncremental",
    "ClassPrediction",
    "CoCoOp",
    "CoOp",
    "DePT",
    "Domain",
    "DomainAdaptation",
    "DomainShift",
    "DualPrompt",
    "EnsembleMetrics",
    "FeatureCache",
    "FewShot",
    "FewShotSplit",
    "FoundPrompt",
    "FullTuning",
    "ImageClassification",
    "ImageRule",
    "ImageTextClassification",
    "LanguageModeling",
    "LinearProbe",
    "LoRA",
    "LowRankPromptTuning",
    "MLPProbe",
    "ManualPrompt",
    "MixedPrompts",
    "PTuning",
    "PTuningV2",
    "PartialTuning",
    "PrefixTuning",
    "ProbeGrid",
    "ProbeSearch",
    "PromptEnsemble",
    "PromptFileError",
    "PromptTuning",
    "Recipe",
    "Regression",
    "Rehearsal",
    "ResidualPromptTuning",
    "Selection",
    "SequenceClassification",
    "SideTuning",
    "SoftpromptWarning",
    "SpanExtraction",
    "SpanPrediction",
    "TextClassification",
    "TextGeneration",
    "TokenClassification",
    "TrainingDiverged",
    "TriggerSearch",
    "TunedPrompt",
    "WrongBackboneError",
    "ZeroShot",
    "__version__",
    "adapt",
    "attach",
    "base_to_new_runs",
    "candidates",
    "class_incremental_run",
    "combine_prompts",
    "evaluate_domains",
    "few_shot_runs",
    "few_shot_splits",
    "fit",
    "fit_many",
    "from_peft",
    "joint_training",
    "load",
    "load_backbone",
    "methods",
    "port_prompt",
    "probe_grid",
    "probe_search",
    "project_prompt",
    "prompt_similarity",
    "rank_sources",
    "select_and_test",
    "similarity_matrix",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name.startswith("_") or (value := _method(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def _method(name: str) -> Any:
    """A method by the name of its class: a new file in softprompt.prompts needs no line here."""
    from softprompt.catalogue import methods

    return next((method for method in methods().values() if method.__name__ == name), None)


def __dir__() -> list[str]:
    return sorted(__all__)
