"""The grading half of `distill bench evaluation`: made-up answers of every checker, graded as an evaluation grades them."""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from distill.bench.evaluation import EvaluationBenchSettings, spread_of
from distill.errors import InputError
from distill.evaluation.answers import Answer
from distill.evaluation.grading import grade
from distill.evaluation.questions import Asked
from distill.tasks.checkers import QUICK
from distill.tasks.ifeval import missing_packages

_SENTENCES = (
    "the ferry leaves the harbour before the sun comes up",
    "nobody had told the baker that the oven was still warm",
    "she keeps the letters in a box under the stairs",
    "on the third day the rain stopped and the river fell",
    "we walked along the wall until we found the gate",
    "it takes about an hour to read the whole report",
    "the children counted the boats from the top of the hill",
    "his brother repairs clocks in a small shop near the station",
)
_WRAPPED = ("\\boxed{{{}}}", "Adding these up gives \\boxed{{{}}}.", "{}", "So the answer is {}.", "**Answer:** {}")


@dataclass(frozen=True)
class _Task:
    """What grading looks at in a task."""

    name: str
    checker: str


def measure_grading(settings: EvaluationBenchSettings, checker: str) -> dict[str, Any]:
    """An entry of "grading". Raises InputError when a package that the checker needs is missing."""
    if checker == "ifeval" and (missing := missing_packages()):
        raise InputError(f"checker ifeval: {missing[0]} is not installed: pip install 'distill-stack[lm-eval]'")
    workers = 0 if checker in QUICK else settings.workers or len(os.sched_getaffinity(0))
    asked, answers = [Asked(_Task("bench", checker), [])], made_answers(checker, settings.answers, settings.seed)
    seconds, correct = [], 0
    for _ in range(settings.grading_rounds):
        start = time.perf_counter()
        graded = grade(asked, answers, processes=workers or None)
        seconds.append(time.perf_counter() - start)
        correct = sum(answer.correct for answer in graded)
    return {
        "checker": checker,
        "answers": len(answers),
        "correct": correct,
        "workers": workers,
        "measured": {"seconds": spread_of(seconds)},
    }


def made_answers(checker: str, count: int, seed: int) -> list[Answer]:
    """Finished answers, every other one right, after a paragraph of text each."""
    rng = random.Random(f"{seed} {checker}")
    rows = []
    for number in range(count):
        gold, answer = _MAKERS[checker](rng, number % 2 == 0)
        if checker != "ifeval":
            boxed = _WRAPPED[:2] if checker == "math" else _WRAPPED  # a formula must stand in a box
            answer = f"{_text(rng)}\n{rng.choice(boxed).format(answer)}"
        rows.append(_answer(str(number), gold, answer))
    return rows


def _answer(name: str, gold: str, text: str) -> Answer:
    return Answer(
        problem_id=name,
        task="bench",
        prompt="",
        gold=gold,
        token_ids=[],
        thinking="",
        answer=text,
        prompt_tokens=0,
        thinking_tokens=0,
        answer_tokens=0,
        thought=False,
        finished=True,
        finish_reason="stop",
        correct=False,
        seconds=0.0,
    )


def _text(rng: random.Random, sentences: int = 0) -> str:
    """Several sentences."""
    chosen = rng.choices(_SENTENCES, k=sentences or rng.randrange(4, 20))
    return " ".join(f"{sentence}." for sentence in chosen)


def _choice(rng: random.Random, right: bool) -> tuple[str, str]:
    gold, other = rng.sample("ABCDE", 2)
    return gold, rng.choice(("{}", "({})", "{})")).format(gold if right else other)


def _number(rng: random.Random, right: bool) -> tuple[str, str]:
    value = rng.randrange(1000, 10**7)
    found = value if right else value + rng.choice((-1, 1))
    return str(value), rng.choice(("{}", "{:,}", "${:,}.00", "{:,} apples")).format(found)


def _math(rng: random.Random, right: bool) -> tuple[str, str]:
    a, b, c = (rng.randrange(2, 90) for _ in range(3))
    wrong = 0 if right else 1
    return rng.choice(
        (
            (rf"\frac{{{a}}}{{{b}}}", rf"\frac{{{a * c + wrong}}}{{{b * c}}}"),
            (rf"{a}\sqrt{{{b}}}", rf"\sqrt{{{a * a * b + wrong}}}"),
            (f"(x+{a})(x-{b})", f"x^2+{a - b}x-{a * b + wrong}".replace("+-", "-")),
            (rf"\left({a}, {a + b}\right]", f"({a},{a + b + wrong}]"),
            (f"x={a}", f"{a + wrong}"),
        )
    )


def _ifeval(rng: random.Random, right: bool) -> tuple[str, str]:
    """One to three rules; of a wrong answer the last one is broken."""
    rules = rng.sample(list(_RULES), rng.randrange(1, 4))
    rules.sort(key=list(_RULES).index)
    broken = None if right else rng.choice(rules)
    text = _text(rng, sentences=rng.randrange(6, 20))
    for rule in rules:
        text = _RULES[rule][1 if rule == broken else 0](text)
    gold = {"instruction_id_list": rules, "kwargs": [_RULES[rule][2] for rule in rules]}
    return json.dumps(gold), text


# rule -> (follow it, break it, its arguments), in an order in which none undoes another
_RULES: dict[str, tuple[Callable[[str], str], Callable[[str], str], dict[str, Any]]] = {
    "length_constraints:number_words": (
        lambda text: text,
        lambda text: " ".join(text.split()[:20]),
        {"relation": "at least", "num_words": 40},
    ),
    "keywords:existence": (
        lambda text: f"the lantern was lit. {text}",
        lambda text: text,
        {"keywords": ["lantern"]},
    ),
    "punctuation:no_comma": (lambda text: text, lambda text: text.replace(".", ",", 1), {}),
    "detectable_format:number_bullet_lists": (
        lambda text: f"{text}\n* one\n* two\n* three",
        lambda text: f"{text}\n* one\n* two",
        {"num_bullets": 3},
    ),
    "change_case:english_lowercase": (lambda text: text, lambda text: text.title(), {}),
    "detectable_format:title": (
        lambda text: f"<<harbour>>\n{text}",
        lambda text: f"harbour\n{text}",
        {},
    ),
}
_MAKERS: dict[str, Callable[[random.Random, bool], tuple[str, str]]] = {
    "choice": _choice,
    "number": _number,
    "ifeval": _ifeval,
    "math": _math,
}
