"""Search for prompts that are words: gradients rank the words, and the best candidates are tried in batches.

Letters: P words of a prompt, A words that may be used, C candidate prompts, R rows, V vocabulary, d width.
"""

from softprompt.search.loop import Step, search
from softprompt.search.problem import Searches, SearchProblem, SearchResult
from softprompt.search.scoring import candidate_losses, linearised_changes, prompt_gradient
from softprompt.search.words import Vocabulary, draw_words, nearest_surviving, searchable_words
from softprompt.search.written import survival_check, write_into, written_task

__all__ = [
    "SearchProblem",
    "SearchResult",
    "Searches",
    "Step",
    "Vocabulary",
    "candidate_losses",
    "draw_words",
    "linearised_changes",
    "nearest_surviving",
    "prompt_gradient",
    "search",
    "searchable_words",
    "survival_check",
    "write_into",
    "written_task",
]
