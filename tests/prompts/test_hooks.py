"""What a method or module may do besides: whoever has the name takes part, others are left as they are."""

from __future__ import annotations

import torch
from torch import Tensor

import softprompt as sp
from softprompt.prompts import BuildContext, Method, PromptModule
from softprompt.prompts.hooks import continue_from_earlier, method_for_task, tallies_of
from softprompt.prompts.prompt_tuning import VirtualTokens
from softprompt.search import Searches


class Counting(PromptModule):
    length = 0

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.continued = torch.zeros(1), 0

    def tallies(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def goes_on(self) -> None:
        self.continued += 1


def test_a_module_with_the_names_is_asked_without_inheriting_anything() -> None:
    module = Counting()
    assert tallies_of(module) == {"seen": module.seen}
    continue_from_earlier(module)
    assert module.continued == 1


def test_a_module_without_them_counts_nothing_and_is_told_nothing() -> None:
    module = VirtualTokens(torch.zeros(1, 4))
    assert tallies_of(module) == {}
    continue_from_earlier(module)


def test_a_method_is_another_one_for_each_task_only_if_it_says_so() -> None:
    expert = sp.DualPrompt(general=1, general_layers=1, expert=1, expert_layers=1, pool=3)
    assert method_for_task(expert, 2) == sp.DualPrompt(
        general=1, general_layers=1, expert=1, expert_layers=1, pool=3, task=2
    )
    plain = sp.PromptTuning(length=2)
    assert method_for_task(plain, 2) is plain


def test_methods_that_search_are_told_by_having_a_search() -> None:
    class Mine(Method):
        name = "mine"

        def build(self, context: BuildContext) -> PromptModule:
            return Counting()

        def restore(self, spec: object, tensors: object) -> PromptModule:
            return Counting()

        def search(self, problem: object, module: PromptModule) -> None:
            return None

    assert isinstance(sp.PEZ(), Searches)
    assert isinstance(Mine(), Searches)
    assert not isinstance(sp.ZeroShot(), Searches)
