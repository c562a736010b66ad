"""Asking a teacher what a journal does not have yet, in an order that suits, until all is answered or the budget is spent.

The journal keeps what was answered, whole; a request that failed is kept in memory with its reason, since the next run
asks it again. No answer stays in memory.
"""

import asyncio
import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from distill import console
from distill.artifact import canonical_json
from distill.errors import InputError
from distill.journal import Journal
from distill.tasks.questions import OwnTask
from distill.tasks.task import Task
from distill.traces.asked import Asked
from distill.traces.bill import Bill, Budget
from distill.traces.faults import FAULTS, HINTS
from distill.traces.pairing import Answer
from distill.traces.settings import GenerateOptions, GenerateSettings
from distill.traces.store import trace_from_row, trace_to_row
from distill.traces.teachers.teacher import Question, Teacher
from distill.traces.top_k import Distributions
from distill.traces.trace import MODES, Mode, Trace

VERSION = 1  # part of every request's key: raise it when the same answer would be kept in another way
_PAID_FOR_NOTHING = "failed "  # how the journal's keys of requests begin that cost something and gave no answer
_UNKNOWN = -1  # length of an answer that nobody has seen
_TRIAL = 20  # so many questions are asked in every mode first; when a mode gives nothing usable, no more is paid for

Place = tuple[int, int, Mode]  # number among the problems, sample, mode


def request_key(teacher: Teacher, question: Question) -> str:
    """The hash of everything the answer depends on."""
    parts = [VERSION, teacher.identity, question.mode, question.sample, teacher.render(question)]
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


class Asking:
    """Getting what the journal does not have, as far as the budget goes."""

    def __init__(
        self,
        settings: GenerateSettings,
        options: GenerateOptions,
        tasks: Mapping[str, Task | OwnTask],
        teacher: Teacher,
        asked: Asked,
        journal: Journal,
    ):
        self.journal = journal
        self.settings, self.options, self.teacher, self.asked = settings, options, teacher, asked
        self.tasks = tasks  # by Problem.task
        self.modes = MODES if settings.gold == "grade" else MODES[:1]  # that the teacher is asked in
        self.budget = Budget(options, teacher.prices)
        self.failed: dict[str, Answer] = {}  # by request key; the journal does not keep them
        self.requests = 0
        # Without a gold answer there is no pair where it is to be the other answer: nothing is paid for half of one.
        self._numbers = [i for i, p in enumerate(asked.problems) if settings.gold == "grade" or p.gold]
        self._total = len(self._numbers) * settings.samples * len(self.modes)
        self._lengths = {mode: array("q", [_UNKNOWN]) * len(asked.problems) for mode in MODES}  # in characters
        self._in_flight: dict[str, Place] = {}
        self._drawn_all = False
        self.stopped_by: str | None = None  # the limit that was reached
        self._faults: dict[Mode, Counter[str | None]] = {mode: Counter() for mode in MODES}

    def ask(self) -> str | None:
        """Returns why it ended early; None when nothing is missing. Without `partial` that is an InputError."""
        try:
            self._ask()
        except InputError as error:
            if not self.options.partial:
                raise
            return str(error)
        except KeyboardInterrupt:
            if not self.options.partial:
                raise
            return "interrupted"
        if self.stopped_by and not self.options.partial:
            raise InputError(
                f"{self._progress()}; with a higher limit the same command goes on, with --partial it writes what there is"
            )
        return self._progress() if self.stopped_by else None

    def _progress(self) -> str:
        done = sum(not key.startswith(_PAID_FOR_NOTHING) for key in self.journal)
        cost = f", {self.budget.cost_usd:.4g} USD" if self.budget.max_cost_usd is not None else ""
        return f"stopped at {self.stopped_by} with {done} of {self._total} answers, {self.budget.tokens} tokens{cost}"

    def _ask(self) -> None:
        found, questions = self._look_back(), self._questions()
        first = next(questions, None)
        if first is None:
            self._require_hope()
            return
        with console.progress() as bar:
            shown = bar.add_task("asking the teacher", total=self._total, completed=found)

            def on_answer(question: Question, answer: Answer) -> None:
                self._keep(question, answer)
                bar.advance(shown)

            asyncio.run(self.teacher.answer(chain([first], questions), on_answer))
        self._require_hope()
        missing = len(self._in_flight)
        if missing or not (self._drawn_all or self.stopped_by):
            raise InputError(
                f"the teacher ended with {missing or 'some'} questions unanswered; finished answers are kept, "
                "run the same command again"
            )

    def _look_back(self) -> int:
        """Take note of what earlier runs have left: how much they spent, and how long answers were."""
        found = 0
        if not len(self.journal):
            return 0
        for number, sample, mode in self._by_question(self._numbers):
            key = request_key(self.teacher, Question(self.asked.problems[number], mode, sample))
            if key in self.journal:
                found += 1
                self._take_note(number, mode, answer_from_json(self.journal.get(key), mode))
        for answer in self.paid_for_nothing():
            self._spend(answer)
        return found

    def paid_for_nothing(self) -> Iterator[Answer]:
        """Of this run and earlier ones: requests that cost something and gave no answer. Their modes are not kept."""
        for key in self.journal:
            if key.startswith(_PAID_FOR_NOTHING):
                yield answer_from_json(self.journal.get(key), "reasoning")

    def _require_hope(self) -> None:
        if not self._drawn_all and (why := self._hopeless()):
            raise InputError(why)

    def _hopeless(self) -> str | None:
        """Why no more should be asked: a mode of which every answer so far is unusable, after a trial of some length."""
        for mode, faults in self._faults.items():
            if faults.total() >= _TRIAL and not faults[None]:
                (fault, count), total = faults.most_common(1)[0], faults.total()
                return (
                    f"none of the first {total} answers in mode {mode} can be used ({count} of them: {FAULTS[fault]}"
                    f"{HINTS.get(fault, '')}); no more was asked, and what was answered is kept"
                )
        return None

    def _take_note(self, number: int, mode: Mode, answer: Answer) -> None:
        self._faults[mode][answer.fault] += 1
        self._lengths[mode][number] = len(answer.trace.reasoning) + len(answer.trace.answer)
        self._spend(answer)

    def _spend(self, answer: Answer) -> None:
        spent = answer.trace.prompt_tokens, answer.output_tokens, self.teacher.cost_usd(answer)
        if answer.fault == "failed":  # what it does not tell is taken to be nothing
            spent = tuple(value or 0 for value in spent)
        self.budget.spend(*spent)

    def _questions(self) -> Iterator[Question]:
        """What is missing, until the budget is spent."""
        for number, sample, mode in self._order():
            problem = self.asked.problems[number]
            question = Question(problem, mode, sample)
            key = request_key(self.teacher, question)
            if key in self.journal or key in self.failed or key in self._in_flight:
                continue
            self.stopped_by = self.budget.spent
            if self.stopped_by or self._hopeless():
                return
            self._in_flight[key] = (number, sample, mode)
            yield question
        self._drawn_all = True

    def _order(self) -> Iterator[Place]:
        """All reasoning first, since it takes longest; and of one mode the longest answers, as far as can be known. Before
        that, some questions in every mode: a teacher that does not think where it should is to be found out early.

        A run that may end early asks for both answers of a question at once, so that what is paid for makes pairs, and
        takes the questions at random: those that were reached are then like those that were not.
        """
        numbers = self._numbers.copy()
        if self.budget.limited or self.options.partial:
            random.Random(self.settings.seed).shuffle(numbers)
            yield from self._by_question(numbers)
            return
        yield from ((number, 0, mode) for number in numbers[:_TRIAL] for mode in self.modes)
        worked = self._worked_lengths()
        for mode in self.modes:
            other = MODES[1 - MODES.index(mode)]
            for sample in range(self.settings.samples):
                lengths = {
                    i: next(
                        (a[i] for a in (self._lengths[mode], self._lengths[other], worked) if a[i] != _UNKNOWN), None
                    )
                    for i in numbers
                }
                # One that nobody knows may be the longest of all.
                numbers.sort(key=lambda i: (lengths[i] is not None, -(lengths[i] or 0), i))
                yield from ((number, sample, mode) for number in numbers)

    def _by_question(self, numbers: list[int]) -> Iterator[Place]:
        samples = range(self.settings.samples)
        return ((number, sample, mode) for number in numbers for sample in samples for mode in self.modes)

    def _worked_lengths(self) -> array:
        """Of the sources' own solutions, in characters."""
        lengths = array("q", [_UNKNOWN]) * len(self.asked.problems)
        if self.settings.teacher == "solver":
            return lengths
        for number, problem in enumerate(self.asked.problems):
            if not isinstance(self.tasks[problem.task], OwnTask):
                lengths[number] = sum(map(len, self.tasks[problem.task].solve(problem)))
        return lengths

    def _keep(self, question: Question, answer: Answer) -> None:
        key = request_key(self.teacher, question)
        place = self._in_flight.pop(key, None)
        if place is None or answer.trace.mode != question.mode:
            raise InputError(
                f"the teacher answered what it was not asked ({question.problem.id}, {question.mode}, sample "
                f"{question.sample}); finished answers are kept"
            )
        self.requests += 1
        if answer.fault != "failed":
            try:
                self.journal.append(key, answer_to_json(answer))
                self._take_note(place[0], question.mode, answer)
                return
            except (ValueError, TypeError) as error:  # no JSON: a lone surrogate, a number that is none
                answer = replace(answer, fault="failed", detail=f"an answer that cannot be kept ({error})"[:300])
        # The texts of a failed answer mean nothing; what it has cost does.
        trace = Trace(question.mode, "", "", "error", answer.trace.teacher, answer.trace.prompt_tokens)
        trace = replace(trace, sampling=answer.trace.sampling, seed=answer.trace.seed)
        answer = Answer(trace, "failed", answer.detail, answer.output_tokens)
        self.failed[key] = answer
        if answer.output_tokens or trace.prompt_tokens:
            self.journal.append(f"{_PAID_FOR_NOTHING}{len(self.journal)}", answer_to_json(replace(answer, detail="")))
        self._spend(answer)

    def in_words(self, bill: Bill) -> str:
        """What was asked now, and what all of it cost, on one line."""
        retries = getattr(self.teacher, "retries", 0)
        parts = [f"{self.requests} requests" + (f", {retries} retried" if retries else "")]
        for name, sums in bill.parts.items():
            known = [f"{sums.output_tokens:,} tokens"] if sums.output_tokens else []
            known += [f"{sums.cost_usd:.4g} USD"] if sums.cost_usd else []
            if known:
                parts.append(f"{name} {', '.join(known)}")
        return "; ".join(parts)


def answer_to_json(answer: Answer) -> dict[str, Any]:
    rest = {"fault": answer.fault, "detail": answer.detail, "output_tokens": answer.output_tokens}
    if answer.distributions is not None:
        rest["top_k"] = answer.distributions.to_json()
    return {"trace": trace_to_row(answer.trace)} | rest


def answer_from_json(value: dict[str, Any], mode: Mode) -> Answer:
    found = Distributions.from_json(value["top_k"]) if "top_k" in value else None
    return Answer(trace_from_row(value["trace"], mode), value["fault"], value["detail"], value["output_tokens"], found)
