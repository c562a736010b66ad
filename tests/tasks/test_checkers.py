"""Checkers: what each accepts, that they agree with the tasks' own, and that no text makes one fail or hang."""

import json
import random
import string
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import InputError
from distill.tasks import get_task
from distill.tasks.checkers import (
    ANSWER_TO_GOLD_ONLY,
    CHECKERS,
    GOLD_TO_ANSWER_ONLY,
    QUICK,
    Verdict,
    check,
    is_mathematics,
    math,
    normalised_text,
)
from distill.tasks.registry import known_checker


def accepts(name, gold, answer):
    return check(name, gold, answer).correct


def test_a_name_that_is_none():
    with pytest.raises(InputError, match="unknown checker 'mathe': did you mean 'math'"):
        check("mathe", "1", "1")


def test_exact(rng):
    gold = " ".join("".join(rng.choice(list(string.ascii_letters), 5)) for _ in range(4))
    assert accepts("exact", gold, f"  {gold.replace(' ', chr(10))}\n") and accepts(
        "exact", gold, rf"so \boxed{{{gold}}}"
    )
    assert not accepts("exact", gold, gold.swapcase()) and not accepts("exact", gold, gold + ".")


def squad(text):
    """The reference of SQuAD, for texts without numbers."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return [word for word in text.split() if word not in ("a", "an", "the")]


@pytest.mark.parametrize("_", range(20))
def test_normalised_is_squad_on_words(rng, _):
    draw = [*string.ascii_letters, *string.punctuation.replace("\\", ""), *"   ", " the ", " a ", " An "]
    one = "x" + "".join(rng.choice(draw, 30))
    other = one.upper() if rng.random() < 0.5 else one.replace("e", "", 1)
    assert accepts("normalised", one, other) == (squad(one) == squad(other))
    assert normalised_text(one).split() == (squad(one) or one.split())


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("Zürich", unicodedata.normalize("NFD", "ZÜRICH"), True),
        ("ﬁne ２", "fine 2", True),
        ("Straße", "STRASSE", True),
        ("-5", "5", False),
        ("-5", "−5.", True),
        ("3.5", "35", False),
        ("1/2", "12", False),
        ("$1,000.50", "1000.50", True),
        ("1,2", "12", False),
        ("10:30", "1030", False),
        ("New York", r"I think \boxed{\text{new  york}}.", True),
        ("The", "the", True),
        ("?!", "?!", True),
        ("?!", "!?", False),
        ("हिंदी", "हद", False),  # vowel signs are no punctuation
    ],
)
def test_normalised(gold, answer, same):
    assert accepts("normalised", gold, answer) == same


def test_numbers_letters():
    assert accepts("number", "1080", "She pays $1,080.00.") and not accepts("number", "1080", "1081")
    assert accepts("choice", "b", "The answer is (B).") and not accepts("choice", "B", "A or B")
    assert check("number", "many", "5") == Verdict(False, "no number in the gold answer")


def test_a_word_behind_a_number_counts_or_is_a_unit(rng):
    n = int(rng.integers(2, 1000))
    for word, factor in {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "k": 1000}.items():
        for answer in (f"{n} {word}", rf"\boxed{{{n} \text{{ {word}}}}}"):
            assert accepts("number", str(n * factor), answer) and accepts("number", str(n), answer)
            assert accepts("near_number", str(n * factor), answer)
            assert not accepts("number", str(n * factor + 1), answer) and not accepts("number", f"{n} %", answer)
    assert (
        accepts("number", "25 %", "0.25")
        and accepts("number", "0.25", r"\boxed{25\%}")
        and accepts("number", "25", "25%")
    )
    assert not accepts("number", "0.25", "2.5 %") and not accepts("number", "5 million", "5 thousand")
    digits = str(int(rng.integers(10**17, 10**18))) + str(
        int(rng.integers(10**17, 10**18))
    )  # more than a Decimal keeps
    for last in "1", "2":
        said = f"{digits[:2]}.{digits[2:]}{last} %"
        assert accepts("number", f"0.{digits}1", said) == (last == "1")


def test_labels_in_any_order_and_form(rng):
    words = sorted({"".join(rng.choice(list(string.ascii_lowercase), 4)) for _ in range(6)})
    gold, other = words[:-1], words[-1]
    shuffled = list(rng.permutation(gold))
    forms = [
        ", ".join,
        ";".join,
        " | ".join,
        json.dumps,
        lambda labels: f"The labels are: {', '.join(labels[:-1])} and {labels[-1]}.",
        lambda labels: "\n".join(f"- {label.upper()}" for label in labels),
        lambda labels: "\n".join(f"{i}. {label}" for i, label in enumerate(labels, 1)),
        lambda labels: f"```json\n{json.dumps(labels)}\n```",
        lambda labels: str(labels),
        lambda labels: rf"\boxed{{\text{{{', '.join(labels)}}}}}",
        lambda labels: " ".join(labels),
    ]
    for form in forms:
        for as_gold in (", ".join, json.dumps, "\n".join):
            assert accepts("labels", as_gold(gold), form([str(s) for s in shuffled])), form(shuffled)
            assert not accepts("labels", as_gold(gold), form([str(s) for s in shuffled[1:]]))
            assert not accepts("labels", as_gold(gold), form([*map(str, shuffled), other]))
    assert accepts("labels", "research and development, sales", "sales, research and development")
    assert accepts("labels", "[]", "none") and not accepts("labels", "[]", ", ".join(gold))
    assert not accepts("labels", ", ".join(gold), "")


def test_the_checker_of_a_task_is_known_without_its_files(tmp_path):
    (tmp_path / "g.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "It is 2. #### 2"}) + "\n")
    row = {"question": "1+1?", "options": ["A)1", "B)2"], "rationale": "It is 2.", "correct": "B"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    tasks = [get_task(name) for name in ("add", "max", "record")]
    tasks += [get_task("gsm8k", tmp_path / "g.jsonl"), get_task("aqua", tmp_path / "a.jsonl")]
    for task in tasks:
        assert known_checker(task.name) == task.checker in CHECKERS
    assert known_checker("math-500") == "math" and known_checker("mine") is None


# math: here in this process, for pairs that are known to be harmless


def math_verify_says(gold, answer):
    from math_verify import parse, verify

    return verify(parse(gold, parsing_timeout=None), parse(answer, parsing_timeout=None), timeout_seconds=None)


def random_formulas(rng):
    """(LaTeX, the same written otherwise, another value)"""
    a, b, c = (int(n) for n in rng.integers(2, 40, 3))
    return [
        (rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * c}}}{{{b * c}}}", rf"\frac{{{a + 1}}}{{{b}}}"),
        (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b}}}", rf"-{a}\sqrt{{{b}}}"),
        (f"x^2+{a}x", f"x(x+{a})", f"x^2-{a}x"),
        (rf"\left({a}, {a + b}\right)", f"({a},{a + b})", f"({a},{a + b + 1})"),
        (rf"\{{{a}, {a + b}\}}", rf"\{{{a + b}, {a}\}}", rf"\{{{a}, {a + b + 1}\}}"),
        (str(a), f"{a}.0", str(-a)),
        (f"x={a}", str(a), str(a + 1)),
    ]


def test_math_is_math_verify(rng):
    for gold, same, other in random_formulas(rng):
        for answer in (gold, same, other):
            boxed = rf"First \boxed{{7}}, no: \boxed{{{answer}}} and \boxed{{open"
            expected = math_verify_says(f"${gold}$", f"${answer}$")
            assert expected == (answer != other)
            assert math(gold, boxed).correct == math(f"${gold}$", f"so it is ${answer}$").correct == expected
            assert math(gold, answer).correct == expected  # bare formulas, without any mark


@pytest.mark.parametrize(
    ("gold", "answer", "note"),
    [("1<x<2", "(1,2)", GOLD_TO_ANSWER_ONLY), ("(1,2)", "1<x<2", ANSWER_TO_GOLD_ONLY)],
)
def test_the_argument_orders_may_disagree_and_gold_to_answer_counts(gold, answer, note):
    there, back = math_verify_says(f"${gold}$", f"${answer}$"), math_verify_says(f"${answer}$", f"${gold}$")
    assert there != back
    assert math(gold, answer) == Verdict(there, note)


@pytest.mark.parametrize(
    ("gold", "answer", "same"),
    [
        ("-5", "The answer is −5.", True),
        ("-5", r"\boxed{–5}", True),
        ("5", "−5", False),
        (r"\frac{5}{2}", r"\boxed{2½}", True),
        ("0.5", "½", True),
        ("12", r"\boxed{１２}", True),
        ("1000000", r"\boxed{1\,000\,000}", True),
        ("p - q", r"\boxed{-q+p}", True),
        ("p - q", r"\boxed{q-p}", False),
        (r"\$18.90", r"\boxed{18.9}", True),
        (r"\$18.90", r"\boxed{\$18.91}", False),
        ("5", "**5**", True),
    ],
)
def test_mathematics_in_the_signs_that_models_write(gold, answer, same):
    assert math(gold, answer).correct == same


def test_where_there_is_no_mathematics_words_count():
    assert math("Paris", "the paris!").correct and not math("Paris", "London").correct
    assert not math("5", "no idea").correct
    assert not math("5", rf"\boxed{{{'1+' * 5000}1}}").correct


def test_what_is_mathematics(rng):
    assert all(is_mathematics(text) for row in random_formulas(rng) for text in row)
    assert is_mathematics(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}") and is_mathematics("$3.50") and is_mathematics("50%")
    for text in ("", "B", "Paris", "The 3 Musketeers", "72 apples", "yes", "x"):
        assert not is_mathematics(text), text


# Hostile texts

PIECES = [
    *("\\boxed{", "{", "}", "9", "9**9", "10^", "-", "−", "/", ".", ",", "$", "\\frac{", "\\", "####", "answer is ", "(A)", "B."),
    *("<think>", "</think>", "<script>", "\x00", "\x1b[31m", "\u2028", "\u202e", "\ud800", "\uff9e", "\u0301", "\u0316", "ﷺ"),
    *("[", "]", '"', "- ", "1. ", "labels: ", " and ", "none", "a", "\n", "  ", "\\text{", "९", "𝟗", "{,}", "1,000"),
]  # fmt: skip
hostile = st.one_of(st.text(max_size=80), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


@settings(max_examples=300, deadline=None)
@given(hostile, hostile)
def test_any_two_texts_get_a_verdict(gold, answer):
    is_mathematics(gold)
    for name in QUICK:
        for one, other in ((gold, answer), (gold, gold)):
            verdict = check(name, one, other)
            assert type(verdict.correct) is bool and verdict.failure is None
            assert verdict.note.isprintable() and len(verdict.note) < 200


@pytest.mark.parametrize("name", [*QUICK, "is_mathematics"])
def test_long_texts_take_little_time(name):
    """More of every kind than is compared at all. What backtracks, or is quadratic, takes minutes."""
    length = 120_000
    kinds = [
        *(piece * (length // len(piece)) for piece in PIECES),
        "Labels" + " " * length,
        "\u0301\u0316" * (length // 2),
        "[" * (length // 2) + "]" * (length // 2),
        '["a"' + ',"a"' * (length // 4) + "]",
        *("".join(random.choices(PIECES, k=length // 4)) for _ in range(3)),
    ]
    start = time.process_time()
    for text in kinds:
        for cut in (text, text[:99_000]):
            if name == "is_mathematics":
                is_mathematics(cut)
                continue
            CHECKERS[name]("gold", cut)
        if name != "is_mathematics":
            CHECKERS[name](text[:50_000], text[:50_000])
    assert time.process_time() - start < 60
