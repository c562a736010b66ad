"""Languages, lengths, refusals and loops."""

import json
from pathlib import Path

import numpy as np
import pytest

from distill.traces.hygiene.degenerate import looks_refused, loop
from distill.traces.hygiene.outliers import Languages, rare_languages, unusual_lengths

DATA = Path(__file__).parents[3] / "shared" / "data"
ENGLISH = (
    "The farmer wants to know how many baskets of apples were sold at the market before the end of the second week. "
)
GERMAN = (
    "Anna kauft im Laden drei Äpfel und fünf Birnen. Wie viele Früchte trägt sie danach in ihrer Tasche nach Hause? "
)
CHINESE = (
    "小明早上在市场买了三个苹果和五个梨，下午又买了两个橙子，然后把一半水果送给了他的邻居，请问他最后还剩下多少个水果？"
)


@pytest.fixture(scope="module")
def languages():
    return Languages()


def test_languages(languages):
    assert languages.of(ENGLISH * 3) == ["en"]
    assert languages.of(GERMAN * 3) == ["de"]
    assert languages.of(CHINESE * 8) == ["zh"]
    for nothing in ("", "2 + 3 = 5", "add 7523", "😀" * 50, "7:7,5:12", "\x00" * 500, "x^2 - 5x + 6 = 0"):
        assert languages.of(nothing) == []


def test_a_switch_in_the_middle_or_at_the_end_shows(languages):
    assert languages.of(ENGLISH * 20 + CHINESE * 40 + ENGLISH * 20) == ["en", "zh"]
    assert languages.of(ENGLISH * 30 + GERMAN * 20) == ["en", "de"]


@pytest.mark.skipif(not DATA.is_dir(), reason="no real data here")
def test_real_questions_and_solutions_are_english_or_not_sure(languages):
    rows = [json.loads(line) for line in (DATA / "gsm8k" / "test.jsonl").open(encoding="utf-8")][:400]
    assert {code for row in rows for text in row.values() for code in languages.of(text)} == {"en"}
    # Arithmetic with few words is what nobody can be sure of; a question is longer.
    assert sum(languages.of(row["question"]) == ["en"] for row in rows) > 0.8 * len(rows)


def test_rare_languages():
    assert rare_languages(["en"] * 40 + ["de"] * 2 + [None] * 500) == {"de"}
    assert rare_languages(["en"] * 40 + ["de"] * 20) == set()  # a set in two languages
    assert rare_languages(["en"] * 10 + ["de"]) == set()  # too few to say


def test_unusual_lengths(rng):
    lengths = np.exp(rng.normal(6, 0.3, 500)).astype(int)
    lengths[[7, 70]] = 100_000, 1
    unusual, median = unusual_lengths(lengths)
    assert unusual[[7, 70]].all() and median == np.median(lengths) and unusual.sum() < 10
    assert not unusual_lengths(np.array([5] * 100 + [9]))[0].any()  # equal lengths make no outlier of the next
    assert unusual_lengths(np.array([5] * 100 + [500]))[0].tolist() == [False] * 100 + [True]
    assert not unusual_lengths(np.array([5] * 5 + [500]))[0].any()
    assert not unusual_lengths(np.array([0] * 100))[0].any() and len(unusual_lengths(np.zeros(0))[0]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I cannot provide an answer to this.",
        "As an AI language model, I do not have feelings.",
        "I am unable to assist with this request.",
        "I must decline.",
    ],
)
def test_refusals(text):
    assert looks_refused(text) and not looks_refused("x " * 200 + text)


@pytest.mark.parametrize("text", ["42", "", "She is sorry that she can't come. 5", "I can help: the answer is 7.", "B"])
def test_answers_that_are_none(text):
    assert not looks_refused(text)


def test_loops(rng):
    text = " ".join(f"w{i}" for i in rng.integers(0, 10**6, 500))
    assert loop(text) is None and loop("") is None and loop("a b c") is None
    line = "so the answer must be twelve and not the other number wait "
    times, said = loop(text + " " + line * 15)
    assert 14 <= times <= 15 and all(word in line.split() for word in said.split())
    assert loop(text + line * 8) is None
    assert loop("the " * 30)[0] == 21
    assert loop("ha" * 5000) and loop("0" * 5000) and loop("哈" * 100)
