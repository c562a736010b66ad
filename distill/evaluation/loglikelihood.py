"""Multiple choice by log-likelihood: which of the options the student finds likeliest as its answer, without any thinking.

The answer scored is an option as it stands in the question, `B) 42`. `sum` adds the log-probabilities of its tokens;
`per_byte` divides by its bytes, so that short options are not favoured. This is another measurement than an answer that
was generated and graded: it is never part of accuracy.
"""

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import numpy as np

from distill import console
from distill.errors import InputError
from distill.evaluation.questions import Asked, Prompts
from distill.evaluation.statistics.intervals import score
from distill.evaluation.statistics.resampling import of_scores
from distill.evaluation.subject import Subject
from distill.journal import Journal
from distill.serve import Endpoint
from distill.serve.replies import RequestFailed, malformed, only_choice, post
from distill.tasks.problem import Problem

JOURNAL = "options.journal.jsonl"
_CONCURRENCY = 64
_TRIES, _PAUSE_S = 5, 1.0
Rows = Mapping[str, tuple[list[int], list[int]]]  # prompt and continuation as token ids, by key
_OPTION = re.compile(r"^([A-J])\) ?(.+)$", re.MULTILINE)


def options_of(problem: Problem) -> dict[str, str]:
    """Letter -> the line of its option, as in the question. Raises InputError for a question that lists none."""
    found: dict[str, str] = {}
    for match in _OPTION.finditer(problem.prompt):
        if match[1] == "A":  # the last list is the question's own
            found = {}
        if match[1] == "ABCDEFGHIJ"[len(found)]:
            found[match[1]] = match[0].strip()
    if len(found) < 2 or problem.gold not in found:
        raise InputError(
            f"task {problem.task}: cannot be scored by log-likelihood: no options `A) ...`, `B) ...` in {problem.prompt[:60]!r}"
        )
    return found


def with_options(subject: Subject, asked: list[Asked], prompts: Prompts) -> list[Asked]:
    """The tasks whose questions all list options; a note says which do not. Raises InputError when there is none, or
    when no option can follow the prompts."""
    if prompts.opened:
        raise InputError(
            f"{subject.folder}: its prompts open a think block, so no option can follow; use --think off with "
            "--score loglikelihood"
        )
    found, reasons = [], []
    for a in asked:
        try:
            if a.task.answer_format != "choice":
                raise InputError(f"task {a.task.name}: is not multiple choice, so it has no log-likelihood of options")
            for problem in a.problems:
                options_of(problem)
            found.append(a)
        except InputError as error:
            reasons.append(error)
    if not found:
        raise reasons[0]
    for reason in reasons:
        console.note(f"--score loglikelihood leaves out {reason}")
    return found


def scored_prompts(subject: Subject, asked: list[Asked], prompts: Prompts) -> dict[str, tuple[list[int], list[int]]]:
    """(prompt, option) token ids by journal key, of questions that list options."""
    rows: dict[str, tuple[list[int], list[int]]] = {}
    for a in asked:
        for problem in a.problems:
            for letter, text in options_of(problem).items():
                said = f" {text}" if prompts.as_text else text
                ids = subject.tokenizer(said, add_special_tokens=False)["input_ids"]
                rows[f"{problem.id} {letter}"] = prompts.ids[problem.id], ids
    return rows


async def score_options(endpoint: Endpoint, rows: Rows, journal: Journal) -> None:
    """Ask for the log-probability of every option that the journal lacks. Raises InputError."""
    with console.progress() as bar:
        task = bar.add_task("scoring options", total=len(rows), completed=len(journal))

        def keep(key: str, found: tuple[float, bool]) -> None:
            journal.append(key, found[0])
            bar.advance(task)

        await logprobs(endpoint, {key: row for key, row in rows.items() if key not in journal}, keep)


async def logprobs(
    endpoint: Endpoint, rows: Rows, on_result: Callable[[str, tuple[float, bool]], None] | None = None
) -> dict[str, tuple[float, bool]]:
    """For each (prompt, continuation): natural log p(continuation | prompt), and whether each of its tokens is the likeliest.

    Raises InputError when one of them cannot be had.
    """
    found: dict[str, tuple[float, bool]] = {}
    waiting = iter(rows.items())

    async def worker() -> None:
        for key, (prompt, said) in waiting:
            found[key] = await _logprob(session, endpoint, prompt, said)
            if on_result:
                on_result(key, found[key])

    async with endpoint.session() as session:
        await asyncio.gather(*(worker() for _ in range(min(_CONCURRENCY, len(rows)))))
    return found


async def _logprob(
    session: aiohttp.ClientSession, endpoint: Endpoint, prompt: list[int], said: list[int]
) -> tuple[float, bool]:
    ids = [*prompt, *said]
    body = {"model": endpoint.model, "prompt": ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
    for tries in range(1, _TRIES + 1):
        try:
            reply = await post(session, f"{endpoint.base_url.rstrip('/')}/completions", body, 2**20 + 2048 * len(ids))
            return _read(only_choice(reply).get("prompt_logprobs"), ids, len(prompt))
        except RequestFailed as failure:
            if not failure.again or tries == _TRIES:
                said_why = endpoint.hide_key(str(failure))[:300]
                raise InputError(f"a text was not scored ({said_why}); run again for it") from None
            await asyncio.sleep(_PAUSE_S * tries)
    raise AssertionError


def _read(found: Any, ids: list[int], start: int) -> tuple[float, bool]:
    try:
        entries = [found[i][str(ids[i])] for i in range(start, len(ids))]
        total = sum(float(entry["logprob"]) for entry in entries)
        likeliest = all(entry["rank"] == 1 for entry in entries)
    except (TypeError, KeyError, IndexError, ValueError):
        raise malformed("the log-probabilities of a prompt", found) from None
    if np.isnan(total):
        raise malformed("the log-probabilities of a prompt", total)
    return total, likeliest


def loglikelihood_grades(asked: Asked, logprob: Callable[[str], float]) -> dict[str, Any]:
    """The section of one task; `logprob` by journal key."""
    right: dict[str, list[bool]] = {"sum": [], "per_byte": []}
    for problem in asked.problems:
        options = options_of(problem)
        sums = {letter: logprob(f"{problem.id} {letter}") for letter in options}
        chosen = {
            "sum": max(sums, key=sums.__getitem__),
            "per_byte": max(sums, key=lambda letter: sums[letter] / len(options[letter].encode())),
        }
        for name, letter in chosen.items():
            right[name].append(letter == problem.gold)
    result: dict[str, Any] = {"n_questions": len(asked.problems)}
    for name, row in right.items():
        found = score([of_scores(np.asarray(row, dtype=float))])
        result[name] = {"value": found.value, "low": found.low, "high": found.high}
    return result
