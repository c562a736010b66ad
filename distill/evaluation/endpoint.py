"""A model behind an OpenAI-compatible endpoint, graded as a student is: the teacher, or any other yardstick.

It is asked in messages and answers in text. Thinking comes in a field of its own or between tags; tokens are counted from
the ids that a vLLM server gives, else from what the server says it used. What it refuses is an unfinished answer.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from distill import artifact, console
from distill.artifact import Artifact
from distill.errors import InputError
from distill.evaluation.answer_file import KIND, write_answers
from distill.evaluation.answers import Answer, shared
from distill.evaluation.evaluate import all_grades
from distill.evaluation.generate import JOURNAL
from distill.evaluation.grading import grade, grading_recipe
from distill.evaluation.judging import JUDGEMENTS, judges_of
from distill.evaluation.page import Arm, write_page
from distill.evaluation.questions import Prompts, ask, distinct_problems, note_rows_left_out, recipe_of
from distill.evaluation.requests import Request, answer_limit, requests
from distill.evaluation.settings import EvaluateSettings
from distill.journal import Journal
from distill.serve import (
    ChatCompletion,
    ChatRequest,
    Endpoint,
    SamplingSettings,
    ServerGone,
    chat_stream,
    check_endpoint,
)
from distill.serve.tokens import split_thinking
from distill.settings import ServerUrl, Settings
from distill.traces.teachers.chat import think_ids
from distill.traces.teachers.read_reply import count_in, parts_of, valid_text

CONCURRENCY = 32


class ModelSettings(Settings):
    """Who answers. The key comes from the environment and goes nowhere else."""

    url: ServerUrl
    model: str = Field(min_length=1)
    api_key_env: str = "OPENAI_API_KEY"  # environment variable that holds the key, if the server wants one
    switch: str = Field("enable_thinking", pattern=r"^\w+$")  # the template's variable for `think` on and off


def evaluate_endpoint(settings: EvaluateSettings, model: ModelSettings, out: Path) -> Artifact:
    """Answer and grade; the same folder as `evaluate` writes. Raises InputError."""
    _check(settings)
    asked = ask(settings.questions, settings.judges)
    note_rows_left_out(asked)
    wanted = requests(settings, asked, Prompts({problem.id: [] for problem in distinct_problems(asked)}))
    recipe = {
        "settings": recipe_of(settings, asked)
        | {"max_tokens": {a.task.name: answer_limit(settings, a) for a in asked}},
        "model": model.model_dump(mode="json", exclude={"api_key_env"}),
        "tasks": {a.task.name: a.task.revision for a in asked},
        "grading": grading_recipe(asked, settings.judges),
    }
    with artifact.workspace(out, KIND, recipe) as work:
        if work.finished:
            console.note(f"{out}: already evaluated, nothing to do")
            return work.finished
        with Journal(work.path / JOURNAL) as journal:
            missing = [request for request in wanted if request.key not in journal]
            if missing:
                endpoint = Endpoint(model.url, model.model, os.environ.get(model.api_key_env))
                check_endpoint(endpoint)
                try:
                    asyncio.run(_ask(endpoint, model, settings, missing, journal))
                except ServerGone as error:
                    raise InputError(f"{error}; finished answers are kept, run the same command again") from None
            answers = [_answer(settings, request, journal.get(request.key)) for request in wanted]
        judges = judges_of(settings.judges, work.path)
        answers = grade(asked, answers, judges)
        grades = all_grades(asked, answers, None, judges)
        write_answers(work.path / "answers.parquet", answers)
        artifact.write_json(work.path / "grades.json", grades)
        arm = Arm(model.model, answers, work.recipe, grades)
        write_page(work.path / "answers.html", [arm], kicker=f"distill evaluate · {work.key}")
        return work.commit(grades, remove=(JOURNAL, JUDGEMENTS))


def _check(settings: EvaluateSettings) -> None:
    """What needs the student's own tokens is not possible."""
    refused = {
        "--mode": settings.mode is not None,
        "--few-shot": settings.few_shot is not None,
        "--thinking-budget": settings.limits_thinking,
        "--score loglikelihood": settings.score == "loglikelihood",
        "--engine transformers": settings.engine == "transformers",
    }
    for flag, used in refused.items():
        if used:
            raise InputError(f"{flag}: not for a model behind an endpoint, which is asked in messages")


async def _ask(
    endpoint: Endpoint, model: ModelSettings, settings: EvaluateSettings, missing: list[Request], journal: Journal
) -> None:
    ids = await asyncio.to_thread(think_ids, endpoint)
    kwargs = None if settings.think == "free" else {model.switch: settings.think == "on"}
    failures: list[str] = []

    def asked() -> Iterator[ChatRequest]:
        for request in missing:
            sampling = SamplingSettings(
                max_tokens=request.max_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                seed=request.seed(settings.seed),
            )
            messages = [{"role": "user", "content": request.problem.prompt}]
            # A server that gives ids is vLLM, which would leave out tags that are special tokens.
            extra = {"return_token_ids": True, "skip_special_tokens": False} if ids else None
            yield ChatRequest(endpoint, messages, sampling, kwargs, extra, about=request)

    with console.progress() as bar:
        task = bar.add_task(f"{endpoint.model} answers", total=len(missing))

        def on_result(request: ChatRequest, result: ChatCompletion) -> None:
            if result.finish_reason == "error":
                failures.append(result.error or "no answer")
            else:
                journal.append(request.about.key, _reply(result, ids, endpoint))
                bar.advance(task)

        await chat_stream(asked(), on_result, concurrency=CONCURRENCY)
    if failures:
        raise InputError(
            f"{len(failures)} of {len(missing)} questions got no answer ({failures[0]}); the others are kept, run again "
            "for these"
        )


def _reply(result: ChatCompletion, ids: tuple[int | None, int | None] | None, endpoint: Endpoint) -> dict[str, Any]:
    """What is kept of a reply: its parts, and how many tokens each had."""
    thinking, answer, fault = parts_of(result)
    thinking_tokens, answer_tokens = _tokens(result, ids, endpoint, thinking, answer)
    return {
        "token_ids": result.token_ids or [],
        "thinking": valid_text(thinking.strip()),
        "answer": valid_text(answer.strip()),
        "prompt_tokens": count_in(result.usage, "prompt_tokens") or 0,
        "thinking_tokens": thinking_tokens,
        "answer_tokens": answer_tokens,
        "thought": bool(thinking.strip()),
        "finished": result.finish_reason == "stop" and fault is None,
        "finish_reason": result.finish_reason,
        "seconds": result.e2e_s or 0.0,
    }


def _tokens(
    result: ChatCompletion,
    ids: tuple[int | None, int | None] | None,
    endpoint: Endpoint,
    thinking: str,
    answer: str,
) -> tuple[int, int]:
    """Of thinking and of the answer. Where the server only says how many they are together, by their characters."""
    if result.token_ids is not None and ids and ids[1] is not None:
        opened = result.reasoning is not None and not answer and ids[1] not in result.token_ids
        parts = split_thinking(result.token_ids, *ids, opened=opened)
        return len(parts[0]), len(parts[1])
    total = count_in(result.usage, "completion_tokens") if result.token_ids is None else len(result.token_ids)
    if total is None:
        raise InputError(f"endpoint {endpoint.base_url}: does not say how many tokens it used, so answers have no cost")
    if not thinking.strip():
        return 0, total
    said = count_in(result.usage.get("completion_tokens_details"), "reasoning_tokens")
    if said is not None and 0 < said <= total:
        return said, total - said
    share = round(total * len(thinking) / max(len(thinking) + len(answer), 1))
    return share, total - share


def _answer(settings: EvaluateSettings, request: Request, reply: dict[str, Any]) -> Answer:
    problem = request.problem
    return Answer(
        problem_id=problem.id,
        task=problem.task,
        prompt=problem.prompt,
        gold=problem.gold,
        correct=False,
        sample=request.sample,
        think=settings.think,
        seed=request.seed(settings.seed) if settings.temperature > 0 else None,
        **reply | {"token_ids": shared(reply["token_ids"])},
    )
