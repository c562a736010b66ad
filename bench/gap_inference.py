"""The answering half of `distill bench gap`: both students behind vLLM, asked the same questions in turns."""

import asyncio
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from distill import console
from distill.bench.gap import GapSettings
from distill.bench.gap_training import ARMS, factor
from distill.errors import InputError
from distill.evaluation.generate import Output
from distill.evaluation.grading import grade
from distill.evaluation.questions import Asked, Prompts, positions_needed, prompt_ids
from distill.evaluation.requests import Request
from distill.evaluation.responses import read_output
from distill.evaluation.settings import EvaluateSettings, Questions
from distill.evaluation.subject import Subject, load_subject
from distill.flops import ModelShape
from distill.packing.source import TraceSet
from distill.serve import Endpoint, SamplingSettings, Server, ServerSettings, complete
from distill.serve.metrics import between, scrape
from distill.tasks import get_task
from distill.tasks.problem import Problem
from distill.tasks.registry import EMBEDDED
from distill.tasks.task import Task

WARMUP_REQUESTS = 4  # of each server at each concurrency, left out

Question = tuple[Task, Problem]


def prepare_questions(settings: GapSettings, trace_set: TraceSet) -> list[Question]:
    """Test questions for every level of every round, tasks in turn. Raises InputError when they cannot be had."""
    names = settings.tasks or tuple(dict.fromkeys(pair.problem.task for pair in trace_set.pairs))
    unknown = [name for name in names if not settings.tasks and name not in EMBEDDED]
    if unknown:
        raise InputError(
            f"the traces' task {unknown[0]!r} needs a file of questions; name it: --tasks {unknown[0]}:PATH"
        )
    needed = len(settings.concurrencies) * (settings.rounds * settings.requests + WARMUP_REQUESTS)
    each = -(-needed // len(names))
    tasks = [get_task(name) for name in names]
    drawn = [[(task, problem) for problem in task.problems("test", each, settings.seed)] for task in tasks]
    return [question for turn in zip(*drawn, strict=True) for question in turn][:needed]


def measure_inference(
    settings: GapSettings, questions: list[Question], students: dict[str, Path], folder: Path
) -> dict[str, Any]:
    """ "inference" of the result. Raises InputError when a student cannot be served or does not answer."""
    subjects = {arm: load_subject(students[arm]) for arm in ARMS}
    prompts = {arm: prompt_ids(subjects[arm], _by_task(questions)) for arm in ARMS}
    with ExitStack() as stack:
        endpoints = {}
        for arm in ARMS:
            console.note(f"starting vLLM with the {arm} student")
            longest = positions_needed(subjects[arm], prompts[arm], settings.max_tokens)
            served = ServerSettings(dtype=subjects[arm].dtype, max_model_len=longest)
            server = stack.enter_context(Server(subjects[arm].folder, served, folder / f"{arm}-server.log"))
            endpoints[arm] = server.endpoint
        supply = iter(questions)
        take = lambda n: [next(supply) for _ in range(n)]  # noqa: E731
        ask = lambda arm, batch, level: _ask(  # noqa: E731
            endpoints[arm], subjects[arm], prompts[arm], batch, level, settings.max_tokens
        )
        levels: dict[int, list[dict[str, Any]]] = {level: [] for level in settings.concurrencies}
        for level in levels:
            batch = take(WARMUP_REQUESTS)
            for arm in ARMS:
                ask(arm, batch, level)
        with console.progress() as bar:
            task = bar.add_task("answering in turns", total=settings.rounds * len(levels) * len(ARMS))
            for number in range(settings.rounds):
                for level, rounds in levels.items():
                    batch, answered = take(settings.requests), {}
                    for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
                        answered[arm] = ask(arm, batch, level)
                        bar.advance(task)
                    rounds.append(answered)
    return {
        "questions": dict(Counter(task.name for task, _ in questions)),
        "levels": [_level(level, rounds) for level, rounds in levels.items()],
    }


def _by_task(questions: list[Question]) -> list[Asked]:
    tasks = {task.name: task for task, _ in questions}
    return [Asked(task, [p for t, p in questions if t.name == name]) for name, task in tasks.items()]


def _ask(
    endpoint: Endpoint,
    subject: Subject,
    prompts: dict[str, list[int]],
    questions: list[Question],
    concurrency: int,
    max_tokens: int,
) -> dict[str, Any]:
    """Totals over the answers to `questions`, asked `concurrency` at a time, and the server's own means."""
    ids = [problem.id for _, problem in questions]
    sampling = SamplingSettings(max_tokens=max_tokens, stop_token_ids=(subject.chat.end_of_turn,))
    before = scrape(endpoint)
    done = asyncio.run(
        complete(endpoint, [prompts[i] for i in ids], sampling, concurrency=concurrency, stream=True, retries=0)
    )
    server = between(before, scrape(endpoint)) or {}
    failed = [c.error for c in done if c.error is not None]
    if failed:
        raise InputError(f"bench gap: {len(failed)} of {len(done)} questions got no answer ({failed[0]})")
    asked = _by_task(questions)
    settings = EvaluateSettings(questions=[Questions(task=a.task.name) for a in asked])
    shown = Prompts(prompts, opened=subject.require_chat().prompt_opens_thinking)
    answers = []
    for (_, problem), c in zip(questions, done, strict=True):
        request = Request(problem, prompts[problem.id], max_tokens)
        output = Output(c.token_ids, c.finish_reason, c.e2e_s)
        answers.append(read_output(settings, subject, shown, request, output))
    answers = grade(asked, answers)
    shape = ModelShape.from_config(subject.config)
    return {
        "answers": len(answers),
        "correct": sum(a.correct for a in answers),
        "unfinished": sum(not a.finished for a in answers),
        "prompt_tokens": sum(a.prompt_tokens for a in answers),
        "output_tokens": sum(len(a.token_ids) for a in answers),
        "thinking_tokens": sum(a.thinking_tokens for a in answers),
        "flops": sum(shape.generation_flops(a.prompt_tokens, len(a.token_ids)) for a in answers),
        "seconds": max(c.sent_s + c.e2e_s for c in done) - min(c.sent_s for c in done),
        "ttft_s": sum(c.ttft_s for c in done),
        "decode_s": sum(c.e2e_s - c.ttft_s for c in done),
        "server_prefill_s": server.get("prefill_s_mean"),
        "server_decode_s": server.get("decode_s_mean"),
    }


def _level(concurrency: int, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    result: dict[str, Any] = {"concurrency": concurrency}
    totals = {}
    for arm in ARMS:
        keys = [key for key in rounds[0][arm] if not key.startswith("server_")]
        total = totals[arm] = {key: sum(r[arm][key] for r in rounds) for key in keys}
        n, correct = total["answers"], total["correct"]
        result[arm] = {
            **{key: total[key] for key in ("answers", "correct", "unfinished")},
            **{key: total[key] / n for key in ("prompt_tokens", "output_tokens", "thinking_tokens", "flops")},
            "measured": {
                "seconds_per_answer": total["seconds"] / n,
                "seconds_per_correct": total["seconds"] / correct if correct else None,
                "ttft_s": total["ttft_s"] / n,
                "decode_s": total["decode_s"] / n,
                "output_tokens_per_second": total["output_tokens"] / total["seconds"],
                **{key: _mean([r[arm][key] for r in rounds]) for key in ("server_prefill_s", "server_decode_s")},
            },
        }
    for name, unit in (("per_answer", "answers"), ("per_correct", "correct")):
        result[name] = _factor(totals, rounds, unit) if all(totals[arm][unit] for arm in ARMS) else None
    return result


def _factor(totals: dict[str, Any], rounds: list[dict[str, Any]], unit: str) -> dict[str, Any]:
    per = lambda arm, key: totals[arm][key] / totals[arm][unit]  # noqa: E731
    modelled = {
        "tokens": per("reasoning", "output_tokens") / per("ift", "output_tokens"),
        "cost": per("reasoning", "flops") / per("ift", "flops"),
    }
    # A round without a correct answer has an infinite cost per correct answer: then there is no ratio.
    by_round = {
        key: {arm: [r[arm][key] / (r[arm][unit] or float("nan")) for r in rounds] for arm in ARMS}
        for key in ("output_tokens", "seconds")
    }
    return factor(modelled, by_round["output_tokens"], by_round["seconds"])


def _mean(values: list[float | None]) -> float | None:
    return None if None in values else sum(values) / len(values)
