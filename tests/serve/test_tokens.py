"""Thinking and answer tokens, against a definition written the other way round: from blocks to tokens."""

import random

import pytest

from distill.serve import split_thinking

START, END = 4, 5


def random_text(rng, longest=6):
    return [rng.randrange(10, 300) for _ in range(rng.randrange(longest))]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([START, 11, 12, END, 13, 3], ([START, 11, 12, END], [13, 3], True)),
        ([START, 11, 12], ([START, 11, 12], [], False)),
        ([11, 12, END, 13], ([11, 12, END], [13], True)),
        ([START, 11, END, 12, START, 13, END, 14], ([START, 11, END, START, 13, END], [12, 14], True)),
        ([13, 3], ([], [13, 3], None)),
        ([START, END, 13], ([START, END], [13], True)),
        ([11, START, 12], ([START, 12], [11], False)),
        ([START, 11, START, 12, END, 13], ([START, 11, START, 12, END], [13], True)),
        ([START, 11, END, 12, END, 13], ([START, 11, END, END], [12, 13], True)),
        ([], ([], [], None)),
    ],
)
def test_examples(output, expected):
    assert split_thinking(output, START, END) == expected


def test_a_block_opened_in_the_prompt():
    assert split_thinking([11, 12], START, END, opened=True) == ([11, 12], [], False)
    assert split_thinking([11, END, 12], START, END, opened=True) == ([11, END], [12], True)
    assert split_thinking([], START, END, opened=True) == ([], [], False)


def test_a_model_without_tags_never_thinks():
    assert split_thinking([START, 11, END], None, None) == ([], [START, 11, END], None)


def test_random_outputs():
    rng = random.Random()
    for _ in range(300):
        output, thinking, answer, closed = [], [], random_text(rng), None
        output += answer
        for _ in range(rng.randrange(4)):
            block, text = [START, *random_text(rng), END], random_text(rng)
            output, thinking, answer, closed = output + block + text, thinking + block, answer + text, True
        if rng.random() < 0.5:
            cut = [START, *random_text(rng)]
            output, thinking, closed = output + cut, thinking + cut, False
        assert split_thinking(output, START, END) == (thinking, answer, closed)
