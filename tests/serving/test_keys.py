"""Keys: who may ask what, and how much."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from softprompt.serving import BadRequestError, PromptNotFoundError, QueueFullError
from softprompt.serving.errors import NotAuthorisedError
from softprompt.serving.keys import Caller, Key, Keyring, read_keys

SECRET = "web-key-0123456789"


def test_a_file_holds_keys_or_their_digests(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    digest = hashlib.sha256(b"boss-key-0123456789").hexdigest()
    file.write_text(
        f"keys:\n- {{name: web, key: {SECRET}, prompts: [mo*]}}\n- {{name: boss, sha256: {digest}, manage: true}}\n"
    )
    keyring = read_keys(file)
    web, boss = keyring.caller(f"Bearer {SECRET}"), keyring.caller("bearer boss-key-0123456789")
    assert (web.name, boss.name, web.may_manage, boss.may_manage) == ("web", "boss", False, True)
    web.check("mood")
    boss.check("story")
    with pytest.raises(PromptNotFoundError, match="for this key"):
        web.check("story")
    for wrong in (None, "", SECRET, f"Basic {SECRET}", "Bearer ", f"Bearer {SECRET}x", "Bearer \udcff"):
        with pytest.raises(NotAuthorisedError):
            keyring.caller(wrong)
    assert Keyring().caller(None).may_manage


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("keys: []", "at least 1"),
        ("{", "no YAML"),
        (f"keys: [{{name: a, key: {SECRET}, sha256: {'a' * 64}}}]", "either key or sha256"),
        ("keys: [{name: a}]", "either key or sha256"),
        (f"keys: [{{name: a, key: {SECRET}}}, {{name: b, key: {SECRET}}}]", "the same key"),
        (f"keys: [{{name: a, key: {SECRET}, prompt: mood}}]", "prompt"),
    ],
)
def test_a_wrong_file_is_refused_without_showing_a_key(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        read_keys(file)
    assert SECRET not in str(error.value)


def test_a_key_has_its_limits() -> None:
    caller = Caller(Key(name="a", key=SECRET, requests_per_minute=2, rows_at_once=3))
    caller.take_request()
    caller.take_request()
    with pytest.raises(QueueFullError, match="2 requests a minute") as full:
        caller.take_request()
    assert full.value.retry_after is not None
    assert 1 <= full.value.retry_after <= 30
    with caller.rows(2):
        with pytest.raises(QueueFullError, match="3 rows"), caller.rows(2):
            pass
        with caller.rows(1):
            pass
    with caller.rows(3):
        pass
    assert not isinstance(full.value, BadRequestError)  # clients try again
