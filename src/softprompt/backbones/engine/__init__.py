"""What the families share. Nothing here knows a family, a task or a method.

attention      attention over a tree of segments, and the way it gets into a model of transformers
checkpointing  layers that are computed again in backward
generating     what stands around transformers' `generate`
last_layer     the end of the last layer, at the places that are asked for only
linear         products with frozen weights on a CPU
norms          RMS norms with frozen weights, on a CPU
offsets        what prompts add to the embeddings of text
packed         rows and their prompts as one packed pass
tree           the batch as a forest of segments
trial          what a model can do, tried out
"""

from softprompt.backbones.engine.attention import (
    TreeCall,
    attend,
    attention_implementation,
    from_grid,
    group_queries,
    of_parents,
    prefix_grid,
    to_grid,
    tree_implementation,
    ungroup_queries,
)
from softprompt.backbones.engine.checkpointing import checkpointed_layers
from softprompt.backbones.engine.generating import check_options, copies_of, counts, new_tokens
from softprompt.backbones.engine.last_layer import last_layer_only_at
from softprompt.backbones.engine.linear import frozen_linears
from softprompt.backbones.engine.offsets import decoding, shifted
from softprompt.backbones.engine.packed import (
    CompiledPrompt,
    PackedModel,
    compile_prompt,
    embed_tree,
    pack,
    prefix_lengths,
    split_prompt,
    trunk_of,
)
from softprompt.backbones.engine.tree import Atoms, PrefixTree, build_tree, continuations, shared_heads
from softprompt.backbones.engine.trial import TRIAL_ERRORS, disagreement

__all__ = [
    "TRIAL_ERRORS",
    "Atoms",
    "CompiledPrompt",
    "PackedModel",
    "PrefixTree",
    "TreeCall",
    "attend",
    "attention_implementation",
    "build_tree",
    "check_options",
    "checkpointed_layers",
    "compile_prompt",
    "continuations",
    "copies_of",
    "counts",
    "decoding",
    "disagreement",
    "embed_tree",
    "from_grid",
    "frozen_linears",
    "group_queries",
    "last_layer_only_at",
    "new_tokens",
    "of_parents",
    "pack",
    "prefix_grid",
    "prefix_lengths",
    "shared_heads",
    "shifted",
    "split_prompt",
    "to_grid",
    "tree_implementation",
    "trunk_of",
    "ungroup_queries",
]
