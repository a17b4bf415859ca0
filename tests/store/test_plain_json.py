"""JSON of ours and of others: one meaning, whoever reads it."""

from __future__ import annotations

import codecs

import pytest

from softprompt.store.errors import PromptFileError
from softprompt.store.plain_json import parse_object


@pytest.mark.parametrize("ours", [True, False])
def test_a_key_that_stands_twice_is_damage(ours: bool) -> None:
    with pytest.raises(PromptFileError, match="the key 'rank' stands twice"):
        parse_object(b'{"rank": 8, "rank": 16}', "adapter_config.json", ours=ours)


def test_files_of_others_may_begin_with_a_byte_order_mark() -> None:
    content = codecs.BOM_UTF8 + b'{"rank": 8}'
    assert parse_object(content, "adapter_config.json") == {"rank": 8}
    with pytest.raises(PromptFileError):
        parse_object(content, "prompt.json", ours=True)
