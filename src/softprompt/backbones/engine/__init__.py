"""What the families share. Nothing here knows a family, a task or a method.

attention      attention over a tree of segments, and the way it gets into a model of transformers
checkpointing  layers that are computed again in backward
generating     what stands around transformers' `generate`
last_layer     the end of the last layer, at the places that are asked for only
linear         products with frozen weights on a CPU
norms          RMS norms with frozen weights, on a CPU
offsets        what prompts add to the embeddings of text
packed         rows and their prompts as one packed pass
rotary         rotary positions that change with length, run without a memory of earlier passes
tree           the batch as a forest of segments
trial          what a model can do, tried out
view           a backbone's own view of a model, so that nothing of ours stands on the user's
"""

from softprompt.backbones.engine.attention import (
    TreeCall,
    attend,
    attend_over_trees,
    from_grid,
    group_queries,
    of_parents,
    prefix_grid,
    to_grid,
    ungroup_queries,
    use_attention,
)
from softprompt.backbones.engine.checkpointing import checkpointed_layers, make_recomputable
from softprompt.backbones.engine.generating import check_options, copies_of, counts, drawing, new_tokens
from softprompt.backbones.engine.last_layer import LayersRunAgainError, last_layer_only_at, make_shortened
from softprompt.backbones.engine.linear import frozen_linears
from softprompt.backbones.engine.norms import frozen_norms, make_fast
from softprompt.backbones.engine.offsets import decoding, make_shifting, shifted
from softprompt.backbones.engine.packed import (
    CompiledPrompt,
    PackedModel,
    causal_views,
    compile_prompt,
    embed_tree,
    pack,
    prefix_lengths,
    prefix_sizes,
    split_prompt,
    trunk_of,
)
from softprompt.backbones.engine.rotary import ChangingRotary, changing_rotaries, make_forgetful
from softprompt.backbones.engine.tree import Atoms, PrefixTree, build_tree, continuations, shared_heads
from softprompt.backbones.engine.trial import TRIAL_ERRORS, disagreement, words_disagree
from softprompt.backbones.engine.view import View, Views

__all__ = [
    "TRIAL_ERRORS",
    "Atoms",
    "ChangingRotary",
    "CompiledPrompt",
    "LayersRunAgainError",
    "PackedModel",
    "PrefixTree",
    "TreeCall",
    "View",
    "Views",
    "attend",
    "attend_over_trees",
    "build_tree",
    "causal_views",
    "changing_rotaries",
    "check_options",
    "checkpointed_layers",
    "compile_prompt",
    "continuations",
    "copies_of",
    "counts",
    "decoding",
    "disagreement",
    "drawing",
    "embed_tree",
    "from_grid",
    "frozen_linears",
    "frozen_norms",
    "group_queries",
    "last_layer_only_at",
    "make_fast",
    "make_forgetful",
    "make_recomputable",
    "make_shifting",
    "make_shortened",
    "new_tokens",
    "of_parents",
    "pack",
    "prefix_grid",
    "prefix_lengths",
    "prefix_sizes",
    "shared_heads",
    "shifted",
    "split_prompt",
    "to_grid",
    "trunk_of",
    "ungroup_queries",
    "use_attention",
    "words_disagree",
]
