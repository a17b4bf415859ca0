from __future__ import annotations

import re

import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from softprompt.tasks import TextClassification, TextSetting
from softprompt.tasks.bound_template import BoundTemplate, bind_template
from softprompt.tasks.columns import read_fields
from softprompt.tasks.template import Bos, Field, Literal, Soft, Template, parse_template
from tests.tiny.language import tiny_tokenizer

BOS = 1


def bound(source: str, *, P: int = 0, cut: str | None = None, bos: bool = False) -> BoundTemplate:
    return bind_template(Template.parse(source, cut), TextSetting(tiny_tokenizer(bos=bos), P))


def ids(text: str) -> list[int]:
    return tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("", ()),
        ("plain", (Literal("plain"),)),
        ("{text}", (Field("text"),)),
        ("{a long name?}", (Field("a long name?"),)),
        ("{text:cut}", (Field("text", cut=True),)),
        ("{soft}", (Soft(),)),
        ("{soft:3} {text}", (Soft(3), Literal(" "), Field("text"))),
        ("{bos}{soft}x", (Bos(), Soft(), Literal("x"))),
        ("{{soft}} }}{{", (Literal("{soft} }{"),)),
        ("{{{text}}}", (Literal("{"), Field("text"), Literal("}"))),
        ("line\n{text}\n", (Literal("line\n"), Field("text"), Literal("\n"))),
        ("{softly} {text.__class__}", (Field("softly"), Literal(" "), Field("text.__class__"))),
    ],
)
def test_a_template_is_read_into_literals_fields_and_slots(source, parts):
    assert parse_template(source) == parts


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a } b", r"lone '}' at position 2; write '}}'"),
        ("a { b", r"lone '{' at position 2; write '{{'"),
        ("{a{b}", r"lone '{' at position 0"),
        ("{}", "names no column"),
        ("{ :cut}", "names no column"),
        ("{soft:}", "a positive number"),
        ("{soft:0}", "a positive number"),
        ("{soft:-1}", "a positive number"),
        ("{soft:two}", "a positive number"),
        ("{text:4}", "unknown mark '4'"),
        ("{bos:cut}", "unknown mark 'cut'"),
        ("{bos}a{bos}", r"\{bos\} 2 times"),
        ("{soft}a{soft}", r"\{soft\} without a number 2 times"),
    ],
)
def test_a_template_that_does_not_parse_says_where_and_why(source, message):
    with pytest.raises(ValueError, match=message):
        parse_template(source)


def test_only_one_field_may_be_marked_for_cutting():
    with pytest.raises(ValueError, match=r"only one field may be cut"):
        Template.parse("{a:cut} {b:cut}")
    with pytest.raises(ValueError, match=r"only one field may be cut"):
        Template.parse("{a:cut} {b}", cut="b")
    assert Template.parse("{a:cut} {b}", cut="a").cut == "a"
    with pytest.raises(ValueError, match=r"cut='txt' is not a field .* did you mean 'text'"):
        Template.parse("{text}", cut="txt")


@pytest.mark.parametrize(
    ("source", "P", "bos", "expected"),
    [
        ("{text}", 0, False, [*ids("good film")]),
        ("{text}", 2, False, [-1, -2, *ids("good film")]),
        ("{text}", 2, True, [BOS, -1, -2, *ids("good film")]),
        ("{soft:2} {text}", 2, True, [BOS, -1, -2, *ids(" good film")]),
        ("{soft}{bos}{text}", 1, True, [-1, BOS, *ids("good film")]),
        ("{bos}{text}", 1, False, [BOS, -1, *ids("good film")]),
        ("a{bos}{text}", 1, False, [*ids("a"), BOS, -1, *ids("good film")]),
        ("{soft:1}{text}{soft:2}:", 3, False, [-1, *ids("good film"), -2, -3, *ids(":")]),
        ("{soft}{text}{soft:2}", 3, False, [-1, *ids("good film"), -2, -3]),
        ("{soft:2}{text}{soft}", 2, False, [-1, -2, *ids("good film")]),
        ("a {text}{text}.", 0, False, ids("a good filmgood film.")),
    ],
)
def test_virtual_tokens_bos_and_text_stand_where_the_template_says(source, P, bos, expected):
    assert list(bound(source, P=P, bos=bos).encode({"text": "good film"})) == expected


def test_text_between_slots_is_tokenised_as_one_string_across_the_borders_of_fields():
    encoded = list(bound("the{text}").encode({"text": " film"}))
    assert encoded == ids("the film")
    merged = list(bound("fi{text}").encode({"text": "lm"}))
    assert merged == ids("film")
    assert len(merged) == 1


@pytest.mark.parametrize(("source", "P"), [("{soft:3}{text}", 4), ("{soft:3}{text}{soft:2}", 4)])
def test_slots_that_do_not_take_all_virtual_tokens_are_an_error_with_both_numbers(source, P):
    slots = 3 if source.count("soft") == 1 else 5
    with pytest.raises(ValueError, match=f"take {slots} virtual tokens, the method brings {P}"):
        bound(source, P=P)
    with pytest.raises(ValueError, match="take 3 virtual tokens, the method brings 2"):
        bound("{soft:3}{soft}{text}", P=2)


def test_a_written_bos_is_all_that_the_tokenizer_puts_in_front_of_a_text():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <unk> $A </s>", special_tokens=[("<s>", 1), ("<unk>", 3), ("</s>", 2)]
    )
    encoded = bind_template(Template.parse("{soft}{bos}a"), TextSetting(tokenizer, 1)).encode({})
    assert list(encoded) == [-1, 1, 3, *ids("a")]


def closing_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


@pytest.mark.parametrize("source", ["{text}", "{text}{soft}", "{soft}{bos}{text}"])
def test_a_closed_text_ends_with_the_tokens_that_the_tokenizer_puts_behind_it(source):
    setting = TextSetting(closing_tokenizer(), 2, closed=True)
    encoded = bind_template(Template.parse(source), setting).encode({"text": "the film"})
    assert encoded[-1] == 2
    assert encoded.count(2) == encoded.count(1) == 1
    opened = TextSetting(closing_tokenizer(), 2)
    assert bind_template(Template.parse(source), opened).encode({"text": "the film"}) == encoded[:-1]


def test_cutting_counts_the_closing_tokens_and_keeps_no_room_for_an_answer_elsewhere():
    setting = TextSetting(closing_tokenizer(), 2, closed=True)
    template = bind_template(Template.parse("{text}"), setting)
    encoded = template.encode({"text": "the film was good was bad"}, max_tokens=7, reserved=5)
    assert encoded == (1, -1, -2, *ids("the film was"), 2)


def test_bos_that_the_tokenizer_lacks_is_an_error():
    with pytest.raises(ValueError, match="neither a BOS nor a CLS"):
        bind_template(Template.parse("{bos}{text}"), TextSetting(ByT5Tokenizer()))


def test_a_row_without_any_token_is_an_error():
    with pytest.raises(ValueError, match="gives no tokens"):
        bound("{text}").encode({"text": ""})
    assert bound("{text}", P=1).encode({"text": ""}) == (-1,)


LONG = " ".join(["good film and a terrible unheardof plot é"] * 5)


@pytest.mark.parametrize("room", range(9, 40))
def test_a_cut_row_keeps_literals_other_fields_and_its_length(room):
    template = bound("{soft:2}{title}: {text:cut} answer:{soft}", P=3)
    cut = list(template.encode({"title": "bad", "text": LONG}, max_tokens=room + 4, reserved=4))
    assert len(cut) <= room
    assert len(cut) >= room - 3  # a character of several tokens goes as a whole
    head, tail = [-1, -2, *ids("bad:")], [*ids(" answer:"), -3]
    assert cut[: len(head)] == head
    assert cut[-len(tail) :] == tail
    kept = tiny_tokenizer().decode(cut[len(head) : -len(tail)])
    assert LONG.startswith(kept.removeprefix(" "))


def test_a_cut_row_is_the_row_with_a_shorter_value():
    template = bound("{text} answer:")
    cut = template.encode({"text": LONG}, max_tokens=12)
    text = tiny_tokenizer().decode(cut).removesuffix(" answer:")
    assert cut == template.encode({"text": text})


@pytest.mark.parametrize("room", [14, 15, 16, 17])
def test_a_field_that_occurs_twice_is_cut_in_both_places(room):
    template = bound("{text} or {text}")
    ids = template.encode({"text": LONG}, max_tokens=room)
    assert room - 4 <= len(ids) <= room
    cut = tiny_tokenizer().decode(ids)
    first, second = cut.split(" or ")
    assert first == second
    assert LONG.startswith(first)


def test_a_tokenizer_without_offsets_is_cut_to_the_same_limit():
    template = bind_template(Template.parse("a {text}!"), TextSetting(ByT5Tokenizer(), 2))
    cut = template.encode({"text": "x" * 50}, max_tokens=20, reserved=3)
    assert len(cut) == 17
    assert cut == template.encode({"text": "x" * 12})


def test_a_row_that_fits_is_not_cut():
    template = bound("{a} {b}")
    values = {"a": "good", "b": "bad"}
    assert template.encode(values, max_tokens=2) == template.encode(values)


def test_a_row_that_cannot_be_cut_enough_names_the_numbers():
    with pytest.raises(
        ValueError, match=r"takes 7 tokens; max_tokens=4 less 1 .* is 3, but without 'text' .* 5"
    ):
        bound("{soft}one two three{text}", P=2).encode({"text": " four five"}, max_tokens=4, reserved=1)


def test_a_long_row_of_two_fields_asks_which_may_be_cut():
    with pytest.raises(ValueError, match=r"fields \['a', 'b'\]: say which one"):
        bound("{a} {b}").encode({"a": "good", "b": "bad"}, max_tokens=1)


def test_a_column_that_the_row_lacks_is_named_with_a_remedy():
    with pytest.raises(
        ValueError, match=r"columns are \['sentence', 'label'\], 'text' .*columns=\{'text': 'sentence'\}"
    ):
        read_fields({"sentence": "a", "label": 1}, ["text"], {}, ["label"])
    with pytest.raises(ValueError, match=r"columns=\{'text': '...'\} with the column that holds it"):
        read_fields({"sentence": "a", "sort": 1}, ["text"], {}, ["label"])  # either may be meant
    with pytest.raises(ValueError, match=r"columns=\{'text': 'texts'\}"):
        read_fields({"label": 1, "texts": "a"}, ["text"], {})
    assert read_fields({"sentence": "a"}, ["text"], {"text": "sentence"}) == {"text": "a"}


@pytest.mark.parametrize(
    ("row", "likely"),
    [({"text": "a"}, "..."), ({"text": "a", "sort": "x"}, "sort"), ({"text": "a", "Labels": "x"}, "Labels")],
)
def test_no_column_that_the_template_reads_is_suggested_for_a_missing_label(row, likely):
    with pytest.raises(
        ValueError, match=rf"'label' is needed: pass columns=\{{'label': '{re.escape(likely)}'\}}"
    ):
        TextClassification("{text}", {"x": " good", "y": " bad"}).read_label(row)


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_missing_value_is_an_error_and_other_values_become_text(value):
    with pytest.raises(ValueError, match="column 'text' is"):
        read_fields({"text": value}, ["text"], {})
    assert read_fields({"a": 3, "b": 1.5, "c": True, "d": ""}, ["a", "b", "c", "d"], {}) == {
        "a": "3",
        "b": "1.5",
        "c": "True",
        "d": "",
    }


def test_a_text_longer_than_the_tokenizers_model_gives_no_warning(caplog):
    tokenizer: PreTrainedTokenizerFast = tiny_tokenizer()
    tokenizer.model_max_length = 4
    bind_template(Template.parse("{text}"), TextSetting(tokenizer)).encode({"text": LONG})
    assert not caplog.records
