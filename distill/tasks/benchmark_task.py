"""A benchmark as a task: every row of its test split is a question, in the order of the rows.

Examples for few-shot prompts come from another split, from the benchmark's file, or are rows held out of the questions
by a hash; a text that is a question is never an example.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from heapq import nsmallest
from pathlib import Path
from typing import Literal

from distill.artifact import canonical_json
from distill.errors import InputError
from distill.tasks.benchmark import Benchmark, FewShot, load_benchmark
from distill.tasks.benchmark_rows import Question, example_answer, is_wanted, model_answer, read_row
from distill.tasks.benchmark_source import place_of
from distill.tasks.checkers import QUICK, check
from distill.tasks.checkers import VERSION as CHECKERS_VERSION
from distill.tasks.ifeval import check_rules
from distill.tasks.jsonl import printable
from distill.tasks.metrics import METRICS
from distill.tasks.problem import Problem, Split
from distill.tasks.questions import BadRow
from distill.tasks.rows import Row, open_source
from distill.tasks.task import CheckedByName, check_request, draw

VERSION = 1  # part of the revision: raise it when the same file and rows would give other questions


@dataclass(frozen=True)
class Example:
    """A question and how it is answered, for the prompt of a base model."""

    prompt: str
    answer: str


def open_benchmark(benchmark: str | Path | Benchmark, rows: Path | None = None) -> "BenchmarkTask":
    """A benchmark on its published rows, or on those at `rows`: a file, a folder with a file or a saved data set for
    each split, or a Hub id. Raises InputError."""
    return BenchmarkTask(benchmark if isinstance(benchmark, Benchmark) else load_benchmark(benchmark), rows)


class BenchmarkTask(CheckedByName):
    """The questions of a benchmark.

    Raises InputError for the first row that cannot be read: a benchmark without some of its questions is another one.
    """

    def __init__(self, benchmark: Benchmark, rows: Path | None = None):
        self.benchmark = benchmark
        self.name = benchmark.name
        self.answer_format = benchmark.format
        self.max_tokens = benchmark.max_tokens
        self.checker = benchmark.checker
        self.bad_rows: list[BadRow] = []  # questions that stand twice: the first one counts
        self._rows_at = rows
        self._places: dict[str, int] = {}
        self._problems: list[Problem] = []
        self._held_out: list[Question] = []
        self._load()
        self.metrics = {name: METRICS[name](self._problems) for name in benchmark.metrics}
        if benchmark.few_shot and benchmark.few_shot.rows is not None:
            _ = self.examples  # what is wrong with them is said before anything is generated
        graded_by = [benchmark.format, benchmark.checker, benchmark.metrics]
        content = [VERSION, CHECKERS_VERSION, graded_by, [(p.prompt, p.gold) for p in self._problems]]
        self.revision = hashlib.sha256(canonical_json(content).encode()).hexdigest()

    @property
    def distinct_prompts(self) -> int:
        return len(self._problems)

    def problems(self, split: Split | Literal["all"], count: int | None, seed: int) -> list[Problem]:
        """`count` of the questions in an order drawn by `seed`, or with None all of them in the order of the rows.

        Raises InputError for another split than test: what a benchmark asks is not for training.
        """
        check_request("test" if split == "all" else split, 1 if count is None else count)
        if split not in ("test", "all"):
            raise InputError(f"task {self.name}: a benchmark has only test questions, found split {split!r}")
        pool = list(self._problems)
        return draw(self.name, split, pool, count, seed)

    def places(self) -> dict[str, int]:
        """Problem id -> number of its row, from 0: questions of one row, as of one story, are not independent."""
        return dict(self._places)

    def solve(self, problem: Problem) -> tuple[str, str]:
        raise InputError(
            f"task {self.name}: has no worked solutions; --teacher says who answers (a server's URL, or vllm:MODEL)"
        )

    @cached_property
    def examples(self) -> tuple[Example, ...]:
        """The few-shot examples, the same for every question. Raises InputError when there are too few."""
        few_shot = self.benchmark.few_shot
        if few_shot is None:
            return ()
        wrong: list[InputError] = []
        candidates = self._candidates(few_shot, wrong)
        if few_shot.rows is not None:
            drawn = list(candidates)[: few_shot.count]
        else:
            drawn = nsmallest(few_shot.count, candidates, key=lambda example: _hash(example.prompt))
        if len(drawn) < few_shot.count:
            few = InputError(f"task {self.name}: {few_shot.count} examples needed, but there are only {len(drawn)}")
            raise wrong[0] if wrong else few
        return tuple(drawn)

    def _candidates(self, few_shot: FewShot, wrong: list[InputError]) -> Iterator[Example]:
        """Answered questions that are not asked. A row of another split that cannot be read is passed over, for the sake
        of the thousands that can; what is the matter with the first of them goes to `wrong`."""
        seen = {problem.prompt for problem in self._problems}
        for read in self._example_rows(few_shot):
            try:
                found = [Example(q.problem.prompt, example_answer(self.benchmark, few_shot.answer, q)) for q in read()]
            except InputError as error:
                if few_shot.rows is not None:
                    raise
                if not wrong:
                    wrong.append(error)
                continue
            for example in found:
                if example.prompt not in seen:
                    seen.add(example.prompt)
                    yield example

    def _example_rows(self, few_shot: FewShot) -> Iterator[Callable[[], list[Question]]]:
        if few_shot.rows is not None:
            name = f"benchmark {self.name}: few_shot.rows"
            yield from (partial(read_row, self.benchmark, row, f"{name}[{i}]") for i, row in enumerate(few_shot.rows))
        elif few_shot.held_out is not None:
            yield from (partial(list, [question]) for question in self._held_out)
        else:
            yield from (read for _, _, read in self._rows(few_shot.split or ""))

    def few_shot_prompt(self, problem: Problem) -> str:
        """The examples and the question as one text that a base model goes on with."""
        shots = [f"{example.prompt}\n\nAnswer: {example.answer}\n\n\n" for example in self.examples]
        return "".join(shots) + f"{problem.prompt}\n\nAnswer:"

    def _load(self) -> None:
        benchmark, seen, taken = self.benchmark, {}, 0
        held_out = benchmark.few_shot.held_out if benchmark.few_shot else None
        for place, where, read in self._rows(benchmark.question_split):
            questions = read()
            taken += bool(questions)
            if held_out and questions and int.from_bytes(_hash(questions[0].problem.prompt)) % 100 < held_out:
                self._held_out += questions
                continue
            for question in questions:
                problem = question.problem
                if (first := seen.setdefault(problem.id, place)) != place or problem.id in self._places:
                    detail = f"the same question as row {first + 1}"
                    self.bad_rows.append(BadRow(place, where, "repeated", detail))
                    continue
                self._check_gold(question)
                self._places[problem.id] = place
                self._problems.append(problem)
        # A story that stands twice, once held out, would be an example of its own questions.
        self._held_out = [q for q in self._held_out if q.problem.id not in seen]
        if not self._problems:
            place = printable(place_of(benchmark, self._rows_at, benchmark.question_split))
            raise InputError(f"{place}: {'no question left' if taken else _no_row(benchmark)}")

    def _rows(self, split: str) -> Iterator[tuple[int, str, Callable[[], list[Question]]]]:
        """(number of the row, its place, read its questions) for every row; one that the filter leaves out has none."""
        benchmark = self.benchmark
        source = open_source(place_of(benchmark, self._rows_at, split), benchmark.row_fields)
        for name, field in {**benchmark.fields, **benchmark.turns}.items():
            if name not in benchmark.when_blank:
                source.require(field)
        for place, (where, read) in enumerate(source.rows()):
            yield place, where.removeprefix(source.prefix), partial(_questions, benchmark, read, where)

    def _check_gold(self, question: Question) -> None:
        """A right answer that its own checker refuses would count every answer as wrong."""
        checker, gold = self.benchmark.checker, question.problem.gold
        if checker == "ifeval":
            check_rules(gold, question.where)
        if checker not in QUICK:
            return
        verdict = check(checker, gold, model_answer(self.benchmark, gold))
        if not verdict.correct:
            field = question.values[self.benchmark.gold.names[0]][1]
            raise InputError(
                f"{question.where}: field {field!r}: checker {checker} does not take the right answer for one "
                f"({verdict.note})"
            )


def _questions(benchmark: Benchmark, read: Callable[[], Row], where: str) -> list[Question]:
    row = read()
    return read_row(benchmark, row, where) if is_wanted(benchmark, row, where) else []


def _no_row(benchmark: Benchmark) -> str:
    if not benchmark.filter:
        return "no row in it"
    wanted = (f"{benchmark.fields[name]} {values!r}" for name, values in benchmark.filter.items())
    return f"no row that benchmark {benchmark.name} takes (it takes {'; '.join(wanted)[:200]})"


def _hash(prompt: str) -> bytes:
    return hashlib.sha256(f"few-shot {prompt}".encode()).digest()
