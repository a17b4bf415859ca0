"""Settings that do not fit, said in the words of Python, whose call gave them.

pydantic checks the settings of methods, tasks, protocols and recipes, and its errors speak of its own types and pages.
"""

from __future__ import annotations

import difflib
from abc import ABCMeta
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from softprompt.errors import explain


class PlainSettings(ABCMeta):
    """The class of classes whose constructors raise ValueErrors of ours in the place of pydantic's.

    Only calls are concerned: what pydantic itself puts together, from YAML or JSON, is explained by who asked it to.
    """

    if not TYPE_CHECKING:  # type checkers read the constructors of the classes themselves

        def __call__(cls, *args: Any, **settings: Any) -> Any:
            try:
                return super().__call__(*args, **settings)
            except ValidationError as error:
                raise ValueError(_said(cls, error)) from None


def _said(kind: type, error: ValidationError) -> str:
    names = [field.name for field in fields(kind)]
    unknown = [
        item["loc"][0] for item in error.errors(include_url=False) if item["type"] in _UNKNOWN and item["loc"]
    ]
    if not unknown:
        return f"{kind.__name__}: {explain(error)}"
    near = difflib.get_close_matches(str(unknown[0]), names, n=1)
    known = f"did you mean {near[0]!r}?" if near else f"it has {names}"
    return f"{kind.__name__} has no setting {unknown[0]!r}; {known}"


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
