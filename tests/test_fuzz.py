"""What is pushed through a door comes out as a value or as an error of the library's own."""

from __future__ import annotations

import pytest

from tests.fuzz import DOORS, Door, push

_FEW = {"a command": 25, "the values of a study": 60, "the file of a study": 60}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::softprompt.SoftpromptWarning")
@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.name)
def test_a_door_answers_with_values_and_errors_of_its_own(door: Door) -> None:
    push(door, _FEW.get(door.name, 150))
