"""The tokenizer of a from-scratch student: nothing is lost, nothing is unknown, a word is the same tokens everywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.packing.chat import COMPACT, ChatFormat
from distill.packing.tokenizer import END, SPECIAL_TOKENS, THINK_TAGS, train_tokenizer

TEXTS = [
    "add 7523",
    "7:7,5:12,2:14,3:17",
    "rec nova corp plan pro late 21 says please no cancel crash our",
    "naïve_x",
] * 3


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < len(tokenizer) for i in ids)


def test_a_word_is_the_same_tokens_wherever_it_stands(tokenizer):
    ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    for word in ("nova", "corp", "cancel", "unseen", "naïve", "7"):
        for before, after in (
            (" ", " "),
            ("", ","),
            (":", ""),
            ("\n", "."),
            ("9", "9"),
            ("_", "_"),
            ("<think>", "<|end|>"),
        ):
            assert ids(before + word + after) == ids(before) + ids(word) + ids(after), (before, word, after)


def test_digits_stay_single_and_special_tokens_are_one_each(tokenizer):
    assert len(tokenizer("123456", add_special_tokens=False)["input_ids"]) == 6
    for token in (*SPECIAL_TOKENS, *THINK_TAGS):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1, token
    assert len(tokenizer) <= 400


def test_training_it_is_deterministic_and_its_template_is_usable(tokenizer):
    assert train_tokenizer(iter(TEXTS), 400).backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    chat = ChatFormat(tokenizer, COMPACT, source="tiny")
    assert not chat.prompt_opens_thinking
    found = tokenizer.convert_ids_to_tokens([chat.end_of_turn, chat.think_open_id, chat.think_close_id])
    assert found == [END, *THINK_TAGS]


def test_a_server_that_hides_special_tokens_still_shows_where_reasoning_ends(tokenizer):
    ids = tokenizer("<think>7:7</think>17<|end|>", add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>7:7</think>17"


def test_a_vocabulary_of_262_still_holds_every_byte():
    small = train_tokenizer(TEXTS, 262)
    assert len(small) == 262
    text = "".join(map(chr, range(1, 0x2000)))
    assert small.decode(small(text, add_special_tokens=False)["input_ids"], skip_special_tokens=False) == text
