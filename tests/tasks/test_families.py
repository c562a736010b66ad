"""The embedded families: what a prompt means, that solvers are right, that graders accept nothing else."""

import itertools
import random
import re
import time
from collections import Counter

import pytest

from distill.errors import InputError
from distill.tasks import TASKS, get_task
from distill.tasks.add import LENGTHS
from distill.tasks.checkers import check
from distill.tasks.procedural import mixed_radix, shuffled_range
from distill.tasks.record import CATEGORIES, FILLERS, FIRST_WORDS, LATE_LIMITS, SECOND_WORDS
from distill.tasks.task import split_of

EMBEDDED = ("add", "max", "record")
SPLITS = ("train", "validation", "test")


@pytest.fixture
def seed() -> int:
    return random.SystemRandom().randrange(2**31)


def gold(prompt: str) -> str:
    """The answer by the stated rules, worked out another way than the solvers do."""
    family, rest = prompt.split(" ", 1)
    if family == "add":
        return str(sum(map(int, rest)))
    if family == "max":
        return max(rest.split(), key=lambda option: option[1])[0]
    name, plan, late, message = re.fullmatch(r"(\w+ \w+) plan (\w+) late (\d+) says (.*)", rest).groups()
    left = re.sub(r"\bno \w+", "", message).split()
    (category,) = {c for c, keywords in CATEGORIES.items() if set(keywords) & set(left)}
    return f"{name} {category} {'risk' if int(late) > LATE_LIMITS[plan] else 'ok'}"


@pytest.mark.parametrize("name", EMBEDDED)
def test_solver_is_right_and_graded_right(name, seed):
    task = get_task(name)
    problems = task.problems("train", 2000, seed)
    assert len({problem.prompt for problem in problems}) == 2000
    for problem in problems:
        reasoning, answer = task.solve(problem)
        assert answer == problem.gold == gold(problem.prompt)
        assert task.is_correct(problem, answer)
        assert task.is_correct(problem, f" {answer}\n")
        assert task.is_correct(problem, rf"It is \boxed{{{answer}}}")
        assert reasoning and not task.is_correct(problem, reasoning)
        assert not task.is_correct(problem, f"<think>{reasoning}</think>")
        assert not task.is_correct(problem, "")
        assert (problem.task, problem.answer_format) == (name, task.answer_format)


def test_the_documented_examples():
    examples = {
        "add": ("add 7523", "7:7,5:12,2:14,3:17", "17"),
        "max": ("max A3 B9 C5 D1", "A3:A3,B9:B9,C5:B9,D1:B9", "B"),
        "record": (
            "rec nova corp plan pro late 21 says please no cancel crash our",
            "no cancel!,crash:tech,pro 15,21>15:risk",
            "nova corp tech risk",
        ),
    }
    for name, (prompt, *solution) in examples.items():
        assert get_task(name).solve_prompt(prompt) == tuple(solution)
    late = get_task("record").solve_prompt("rec nova corp plan pro late 15 says crash no cancel our the")
    assert late == ("crash:tech,no cancel!,pro 15,15<=15:ok", "nova corp tech ok")


def test_near_misses_are_wrong(seed):
    for problem in get_task("add").problems("test", 200, seed):
        right = int(problem.gold)
        for wrong in (right - 1, right + 1, -right - 1, f"{right}{right}", f"0{right}", f"{right} {right + 1}"):
            assert not get_task("add").is_correct(problem, str(wrong))
    for problem in get_task("max").problems("test", 200, seed):
        for wrong in set("ABCD") - {problem.gold}:
            assert not get_task("max").is_correct(problem, wrong)
        other = "A" if problem.gold != "A" else "B"
        assert not get_task("max").is_correct(problem, f"{problem.gold} or {other}")
        assert get_task("max").is_correct(problem, f"The answer is ({problem.gold}).")
    for problem in get_task("record").problems("test", 200, seed):
        first, second, category, risk = problem.gold.split()
        other = next(name for name in CATEGORIES if name != category)
        for wrong in (
            f"{first} {second} {risk} {category}",
            f"{second} {first} {category} {risk}",
            f"{first} {second} {other} {risk}",
            f"{first} {second} {category} {'ok' if risk == 'risk' else 'risk'}",
            f"{first} {second} {category}",
            f"{category} {risk}",
            f"{problem.gold} {risk}",
        ):
            assert not get_task("record").is_correct(problem, wrong)


@pytest.mark.parametrize("name", EMBEDDED)
def test_splits_are_disjoint_whatever_the_seed(name, seed):
    task = get_task(name)
    count = 350 if name == "max" else 1500
    prompts = {split: {p.prompt for s in range(3) for p in task.problems(split, count, seed + s)} for split in SPLITS}
    for one, other in itertools.combinations(SPLITS, 2):
        assert not prompts[one] & prompts[other]
    assert all(split_of(prompt) == split for split in SPLITS for prompt in prompts[split])


@pytest.mark.parametrize("name", EMBEDDED)
def test_same_seed_same_problems_and_a_prefix(name, seed):
    task = get_task(name)
    problems = task.problems("train", 300, seed)
    assert problems == get_task(name).problems("train", 300, seed)
    assert problems[:40] == task.problems("train", 40, seed)
    assert problems != task.problems("train", 300, seed + 1)


def test_max_has_as_many_prompts_as_it_says():
    task = get_task("max")
    prompts = {task.prompt(0, index) for index in range(task.distinct_prompts)}
    every = {
        "max " + " ".join(map("".join, zip("ABCD", values, strict=True)))
        for values in itertools.permutations("0123456789", 4)
    }
    assert prompts == every and len(prompts) == task.distinct_prompts == 5040
    shares = Counter(map(split_of, every))
    for split in SPLITS:
        assert len(task.problems(split, shares[split], seed=1)) == shares[split]
        with pytest.raises(InputError, match=rf"only {shares[split]}$"):
            task.problems(split, shares[split] + 1, seed=1)
    with pytest.raises(InputError, match="5040 in all"):
        task.problems("train", 5041, seed=1)


def test_add_prompts_and_lengths(seed):
    task = get_task("add")
    assert task.distinct_prompts == sum(10**n for n in range(2, 9))
    assert {task.prompt(0, i) for i in range(100)} == {f"add {a}{b}" for a in range(10) for b in range(10)}
    lengths = Counter(len(p.prompt) - len("add ") for p in task.problems("train", 7000, seed))
    assert set(lengths) == set(LENGTHS)
    assert lengths[2] == sum(split_of(f"add {i:02d}") == "train" for i in range(100))  # used up
    for one, other in itertools.combinations([lengths[n] for n in LENGTHS if n > 3], 2):
        assert abs(one - other) < 6 * (one + other) ** 0.5


def test_record_prompts_are_as_many_as_stated(seed):
    """Distinct numbers give distinct prompts, and the count is the one of the rules in the docstring."""
    task = get_task("record")
    heads = len(FIRST_WORDS) * len(SECOND_WORDS) * len(LATE_LIMITS) * 30
    plain = 12 * 5 * len(FILLERS) ** 4
    negated = 12 * 8 * (4 * 3) * len(FILLERS) ** 2
    assert task.distinct_prompts == heads * (plain + negated)
    # The message does not depend on the head: every message with a negated keyword, under one head.
    messages = [task.prompt(1, heads * i) for i in range(negated)]
    assert len(set(messages)) == negated
    assert len({task.prompt(0, heads * i) for i in random.Random(seed).sample(range(plain), 50_000)}) == 50_000
    assert len({task.prompt(0, i) for i in range(heads)}) == heads


def test_record_messages_follow_the_rules(seed):
    problems = get_task("record").problems("train", 4000, seed)
    assert len({p.prompt for p in problems}) == 4000
    labels = Counter(tuple(p.gold.split()[2:]) for p in problems)
    assert len(labels) == 6 and min(labels.values()) > 4000 / 6 * 0.8
    negated = 0
    for problem in problems:
        words = problem.prompt.split(" says ")[1].split()
        assert len(words) == 5
        keywords = [(i, w) for i, w in enumerate(words) if any(w in group for group in CATEGORIES.values())]
        counting = [w for i, w in keywords if i == 0 or words[i - 1] != "no"]
        ignored = [w for i, w in keywords if i and words[i - 1] == "no"]
        assert len(counting) == 1 and len(ignored) <= 1 and words.count("no") == len(ignored)
        category = problem.gold.split()[2]
        assert counting[0] in CATEGORIES[category]
        assert not set(ignored) & set(CATEGORIES[category])
        negated += len(ignored)
    assert 0.4 < negated / 4000 < 0.6


def test_bad_requests():
    assert TASKS == ("add", "max", "record", "gsm8k", "aqua")
    with pytest.raises(InputError, match="unknown task 'ad': did you mean 'add'"):
        get_task("ad")
    with pytest.raises(InputError, match="unknown split 'tests': did you mean 'test'"):
        get_task("add").problems("tests", 3, 0)
    with pytest.raises(InputError, match="expected at least 1"):
        get_task("add").problems("test", 0, 0)
    with pytest.raises(InputError, match="takes no path"):
        get_task("add:here")
    with pytest.raises(InputError, match="needs a file"):
        get_task("gsm8k")


@pytest.mark.parametrize("name", EMBEDDED)
def test_hostile_answers_are_wrong_and_fast(name):
    task = get_task(name)
    problem = task.problems("test", 1, 0)[0]
    megabyte = 2**20
    hostile = [
        "\\boxed{" * (megabyte // 7),
        "{" * megabyte,
        "9" * megabyte,
        "9**" * (megabyte // 3),
        "answer is " * (megabyte // 10),
        " " * megabyte,
        "\ud800" * 1000,
        "\x00" * megabyte,
        "<script>alert(1)</script>",
        "\\boxed{" + "\\text{" * 100_000 + "}" * 100_001,
    ]
    for text in hostile:
        started = time.perf_counter()
        assert not task.is_correct(problem, text)
        for metric in task.metrics.values():
            assert metric.score([problem], [text], [check(task.checker, problem.gold, text)]) < 0.5
        assert time.perf_counter() - started < 5


def test_shuffled_range_is_a_permutation(seed):
    for size in (0, 1, 2, 17, 1000):
        assert sorted(shuffled_range(random.Random(seed), size)) == list(range(size))
    first = Counter(next(shuffled_range(random.Random(seed + i), 5)) for i in range(2000))
    assert min(first.values()) > 300


def test_mixed_radix_counts_through_all_digits():
    assert {tuple(mixed_radix(i, 2, 3, 4)) for i in range(24)} == set(itertools.product(range(2), range(3), range(4)))
