"""Normal forms and n-grams of text, against plain definitions of them."""

import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest

from distill.process import child_environment
from distill.traces.hygiene.words import clipped, marked, ngrams, normal_form, word_hashes, words

SAME = [
    ("How many apples?", "  how MANY\napples"),
    ("It's $1,080.50 now.", "it s 1080.50 now"),
    ("ｆｕｌｌ width", "full width"),
    ("a well-known thing", "a well known thing"),
    ("zero\u200bwidth", "zerowidth"),
    ("caf\u00e9", "cafe\u0301"),
    ("Straße", "STRASSE"),
    ("小明有 3 个", "小明有3个"),
    ("1,000,000 of them", "1000000 of them"),
    ("❤\ufe0f hearts", "❤ hearts"),
]
OTHER = [
    ("What is 5 - 3?", "What is 5 + 3?"),
    ("What is 5*3?", "What is 5/3?"),
    ("3.5 apples", "35 apples"),
    ("5 % of it", "5 of it"),
    ("x < y", "x > y"),
    ("add 7523", "add 7524"),
    ("cafe", "caf\u00e9"),
    ("😀 what", "😃 what"),
    ("???", "!!!"),
    ("(2,3)", "23"),
]


def form(text: str) -> str:
    return normal_form(text, words(text))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_does_not_make_another_question(one, other):
    assert form(one) == form(other)


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_does(one, other):
    assert form(one) != form(other)


def random_text(rng, length: int) -> str:
    """Of characters from everywhere, surrogates and the marks of a span left out, with spaces, figures and commas."""
    codes = np.concatenate([rng.integers(32, 0xD800, length), rng.integers(0xE000, 0x20000, length)])
    common = np.frombuffer("  .,-019ab*é中".encode("utf-32-le"), np.uint32)
    codes = np.where(rng.random(len(codes)) < 0.6, rng.choice(common, len(codes)), codes)
    return "".join(map(chr, codes.tolist())).translate({ord(mark): "x" for mark in "⟦⟧"})


def test_a_normal_form_is_one_of_itself_and_a_text_is_the_words_of_its_parts(rng):
    for _ in range(50):
        text = random_text(rng, 40)
        found = words(text)
        assert all(found) and not any(c.isspace() for word in found for c in word)
        for separator in (" ", "\n", "\u00a0", "\t  "):
            assert words(f"{text}{separator}{text}") == found * 2
        plain = [word for word in found if word.isascii()]
        assert words(" ".join(plain)) == plain


def test_ngrams_are_equal_where_the_words_are(rng):
    text = [f"w{i}" for i in rng.integers(0, 3, 200)]
    for size in (1, 2, 3, 13):
        found = ngrams(word_hashes(text), size).tolist()
        reference = [tuple(text[i : i + size]) for i in range(len(text) - size + 1)]
        assert len(found) == len(reference)
        assert len(set(found)) == len(set(reference)) == len(set(zip(found, reference, strict=True)))
    assert len(ngrams(word_hashes(text[:12]), 13)) == 0 and len(ngrams(word_hashes([]), 1)) == 0


def test_hashes_are_the_same_in_every_process():
    code = "from distill.traces.hygiene.words import *; print(ngrams(word_hashes(words('Ein Text, 小明 with 5 words')), 2).tolist())"
    here = ngrams(word_hashes(words("Ein Text, 小明 with 5 words")), 2).tolist()
    for seed in ("0", "1"):
        environment = child_environment() | {"PYTHONHASHSEED": seed}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        assert run.stdout.strip() == str(here)


def test_the_marked_words_are_the_words(rng):
    for _ in range(100):
        text = random_text(rng, 30)
        found = words(text)
        if not found:
            continue
        start = int(rng.integers(len(found)))
        end = int(rng.integers(start + 1, len(found) + 1))
        shown = marked(text, start, end, limit=10_000)
        if "⟦" in shown:  # not where a word depends on its neighbours
            inside = words(shown.partition("⟦")[2].partition("⟧")[0])
            joined = " ".join(found[start:end])
            assert joined in " ".join(inside)
            assert shown.replace("⟦", "").replace("⟧", "") == text
    assert marked("One two, three four.", 1, 3, limit=100) == "One ⟦two, three⟧ four."
    assert marked("小明有3个", 1, 3, limit=100) == "小⟦明有⟧3个"
    assert marked("one two", 5, 9, limit=100) == "one two"


def test_a_long_text_is_cut():
    text = "a " * 5000 + "b c d" + " e" * 5000
    shown = marked(text, 5000, 5003, limit=200)
    assert "⟦b c d⟧" in shown and len(shown) < 500 and shown.startswith("… ") and shown.endswith(" …")
    assert clipped("abcdef", 0, 6, 3) == "abc …" and clipped("abc", 0, 3, 3) == "abc"


def test_huge_and_hostile_texts_are_quick():
    start = time.perf_counter()
    for text in (
        "x" * 10**6,
        "word " * 200_000,
        "a" + "\u0316\u0301" * 100_000,  # combining marks out of order: sorting them takes the square of their number
        "1," * 500_000,
        "-" * 10**6,
        "." * 10**6,
        "".join(map(chr, range(0x20, 0xD800))),
    ):
        found = words(text)
        assert form(text) and len(word_hashes(found)) == len(found)
    assert time.perf_counter() - start < 30
    assert unicodedata.normalize("NFKC", "é") in form("e\u0301")
