"""Teachers: who answers each question twice, once with reasoning and once without.

`SolverTeacher` is the solver of an embedded task, or the worked solutions of a file; it costs nothing.
`EndpointTeacher` is any OpenAI-compatible server. Both answer a batch and report each answer as it comes.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import httpx

from distill.errors import InputError
from distill.serve.client import ChatCompletion, SamplingSettings, chat
from distill.serve.endpoint import Endpoint, check_endpoint, clean_key
from distill.serve.tokens import split_thinking
from distill.tasks.problem import Problem
from distill.tasks.task import Task
from distill.traces.capture import capture_fields, captured_temperature, check_tokenizer
from distill.traces.faults import CLOSING, OPENING, fault_of, split_think
from distill.traces.pairing import Answer
from distill.traces.settings import EndpointSettings
from distill.traces.top_k import Distributions
from distill.traces.trace import Mode, Trace
from distill.traces.vocabulary import Vocabulary, load_tokenizer

Question = tuple[Problem, Mode]

SYSTEM_PROMPTS: Mapping[Mode, str] = {
    "reasoning": f"Reason step by step between {OPENING} and {CLOSING}. After that, give only the answer.",
    "ift": "Give the answer directly, without reasoning.",
}
_FAILURES_IN_A_ROW = 20  # after so many, tries included, the server is taken to be gone


class Teacher(Protocol):
    """Answers questions. Two teachers with the same identity give answers that may stand for each other's."""

    identity: dict[str, Any]  # name, revision and everything else that answers depend on
    prices: dict[str, float | None]  # what answers cost; other prices do not make other answers
    vocabulary: Vocabulary | None  # of the ids in its answers' distributions; None when it gives none

    def render(self, problem: Problem, mode: Mode) -> dict[str, Any]:
        """The request as it is sent: with the identity, all that its answer depends on."""

    async def answer(self, questions: Sequence[Question], on_answer: Callable[[int, Answer], None]) -> None:
        """Answer each question; `on_answer(index, answer)` gets every answer as it comes, in any order."""

    def cost_usd(self, answer: Answer) -> float | None:
        """What an answer cost; None when that is not known."""


class SolverTeacher:
    """The solvers of the tasks themselves."""

    def __init__(self, tasks: Mapping[str, Task]):
        self.tasks = tasks  # by Problem.task
        self.identity = {"name": "solver", "revision": "1"}
        self.prices: dict[str, float | None] = {}
        self.vocabulary = None

    def render(self, problem: Problem, mode: Mode) -> dict[str, Any]:
        return {"task": problem.task, "prompt": problem.prompt, "mode": mode}

    async def answer(self, questions: Sequence[Question], on_answer: Callable[[int, Answer], None]) -> None:
        for index, (problem, mode) in enumerate(questions):
            on_answer(index, self.solve(problem, mode))

    def cost_usd(self, answer: Answer) -> float:
        return 0.0

    def solve(self, problem: Problem, mode: Mode) -> Answer:
        reasoning, answer = self.tasks[problem.task].solve(problem)
        return worked_answer(mode, reasoning, answer)


def worked_answer(mode: Mode, reasoning: str, answer: str) -> Answer:
    """An answer of known reasoning that cost nothing; in mode "ift" the reasoning is left out."""
    trace = Trace(mode, reasoning if mode == "reasoning" else "", answer, "stop", "solver", cost_usd=0.0)
    return Answer(trace, fault_of(trace))


class EndpointTeacher:
    """A model behind an OpenAI-compatible server."""

    def __init__(self, settings: EndpointSettings, seed: int):
        self.settings, self.seed = settings, seed
        self.sampling = settings.model_dump(include={"temperature", "top_p", "max_tokens"})
        self.identity = {
            "name": settings.model,
            "revision": settings.revision,
            "thinking": settings.thinking if settings.thinking == "template" else dict(SYSTEM_PROMPTS),
            "sampling": self.sampling,
            "seed": seed,
        }
        self.vocabulary = None
        if settings.top_k is not None:
            self.tokenizer = load_tokenizer(settings.tokenizer or settings.model)
            self.vocabulary = Vocabulary.of(self.tokenizer)
            self.identity |= {"top_k": settings.top_k, "vocabulary": self.vocabulary.sha256}
        self.prices = settings.model_dump(include={"usd_per_million_input", "usd_per_million_output"})
        key = clean_key(os.environ.get(settings.api_key_env), f"environment variable {settings.api_key_env}")
        self.endpoint = Endpoint(settings.url, settings.model, key)

    def render(self, problem: Problem, mode: Mode) -> dict[str, Any]:
        return {"messages": self._messages(problem, mode), "chat_template_kwargs": self._template_kwargs(mode)}

    async def answer(self, questions: Sequence[Question], on_answer: Callable[[int, Answer], None]) -> None:
        check_endpoint(self.endpoint)
        think_ids = self._think_ids()
        extra = {"return_token_ids": True} if think_ids else {}
        temperature = None
        if self.settings.top_k is not None:
            check_tokenizer(self.endpoint, self.tokenizer)
            extra |= capture_fields(self.settings.top_k)
            problem, mode = questions[0]
            temperature = await captured_temperature(
                self.endpoint,
                self._messages(problem, mode),
                SamplingSettings(**self.sampling, seed=self.seed),
                self.settings.top_k,
                chat_template_kwargs=self._template_kwargs(mode),
            )
        failed_in_a_row = 0
        for mode in ("reasoning", "ift"):
            indices = [index for index, question in enumerate(questions) if question[1] == mode]

            def on_result(result: ChatCompletion, mode: Mode = mode, indices: list[int] = indices) -> None:
                nonlocal failed_in_a_row
                failed_in_a_row = failed_in_a_row + 1 if result.error else 0
                if failed_in_a_row == _FAILURES_IN_A_ROW:
                    raise InputError(
                        f"endpoint {self.settings.url}: {failed_in_a_row} requests in a row failed ({_line(result.error)}); "
                        "finished answers are kept, run the same command again"
                    )
                answer = self._read(result, mode, think_ids)
                if temperature is not None:
                    answer = self._with_distributions(answer, result, temperature)
                on_answer(indices[result.index], answer)

            await chat(
                self.endpoint,
                [self._messages(questions[index][0], mode) for index in indices],
                SamplingSettings(**self.sampling, seed=self.seed),
                chat_template_kwargs=self._template_kwargs(mode),
                extra=extra,
                concurrency=self.settings.concurrency,
                timeout_s=self.settings.timeout_s,
                on_result=on_result,
            )

    def _messages(self, problem: Problem, mode: Mode) -> list[dict[str, str]]:
        system = [{"role": "system", "content": SYSTEM_PROMPTS[mode]}] if self.settings.thinking == "system" else []
        return [*system, {"role": "user", "content": problem.prompt}]

    def _template_kwargs(self, mode: Mode) -> dict[str, Any] | None:
        return {"enable_thinking": mode == "reasoning"} if self.settings.thinking == "template" else None

    def _think_ids(self) -> tuple[int | None, int | None] | None:
        """The ids of the think tags where each is one token; None when the server is no vLLM and cannot say.

        A server that has /tokenize also gives token ids back; others may refuse to be asked for them.
        """
        ids: list[int | None] = []
        for tag in (OPENING, CLOSING):
            try:
                reply = httpx.post(
                    f"{self.endpoint.root_url}/tokenize",
                    json={"model": self.settings.model, "prompt": tag, "add_special_tokens": False},
                    headers=self.endpoint.headers,
                    trust_env=self.endpoint.trust_env,
                    timeout=10,
                )
                tokens = reply.raise_for_status().json()["tokens"]
                ids.append(int(tokens[0]) if len(tokens) == 1 else None)
            except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
                return None
        return ids[0], ids[1]

    def _read(self, result: ChatCompletion, mode: Mode, think_ids: tuple[int | None, int | None] | None) -> Answer:
        if result.error is not None:
            trace = Trace(mode, "", "", "error", self.settings.model, sampling=self.sampling, seed=self.seed)
            return Answer(trace, "failed", _line(result.error))
        if result.reasoning is not None:
            reasoning, answer, fault = result.reasoning.strip(), result.content.strip(), None
        else:
            reasoning, answer, fault = split_think(result.content)
        reasoning_tokens, answer_tokens = _token_counts(result, think_ids)
        trace = Trace(
            mode=mode,
            reasoning=_valid(reasoning),
            answer=_valid(answer),
            finish_reason=result.finish_reason,
            teacher=self.settings.model,
            prompt_tokens=_count(result.usage, "prompt_tokens"),
            reasoning_tokens=reasoning_tokens,
            answer_tokens=answer_tokens,
            sampling=self.sampling,
            seed=self.seed,
        )
        if fault is None and (trace.reasoning, trace.answer) != (reasoning, answer):
            fault = "bad_unicode"
        # What was cut off is called that, whatever else is wrong with it for the same reason.
        fault = fault_of(trace) if trace.finish_reason == "length" else fault or fault_of(trace)
        return Answer(trace, fault, output_tokens=_output_tokens(result))

    def _with_distributions(self, answer: Answer, result: ChatCompletion, temperature: float) -> Answer:
        """The answer with the server's log-probabilities, which leave the result: all results stay in memory."""
        entries = result.logprobs or []
        try:
            if answer.fault is not None:
                return answer
            found = Distributions.read(entries, result.token_ids or [], self.settings.top_k, temperature)
        except ValueError as error:
            failed = replace(answer.trace, finish_reason="error")
            return Answer(failed, "failed", _line(str(error)), answer.output_tokens)
        finally:
            entries.clear()
        return replace(answer, distributions=found)

    def cost_usd(self, answer: Answer) -> float | None:
        prices = self.settings.usd_per_million_input, self.settings.usd_per_million_output
        tokens = answer.trace.prompt_tokens, answer.output_tokens
        if None in (*prices, *tokens):
            return None
        return (prices[0] * tokens[0] + prices[1] * tokens[1]) / 1e6


def _valid(text: str) -> str:
    """`text` with what cannot be encoded (lone surrogates) replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _line(text: str) -> str:
    return " ".join(_valid(text).split())[:300]


def _count(usage: Any, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**63 else None


def _output_tokens(result: ChatCompletion) -> int | None:
    return _count(result.usage, "completion_tokens") if result.token_ids is None else len(result.token_ids)


def _token_counts(
    result: ChatCompletion, think_ids: tuple[int | None, int | None] | None
) -> tuple[int | None, int | None]:
    """(reasoning, answer) tokens: from token ids where the server gives them, else from what it says it used."""
    if result.token_ids is not None and think_ids and think_ids[1] is not None:
        thinking, answer, _ = split_thinking(result.token_ids, *think_ids)
        return len(thinking), len(answer)
    output = _output_tokens(result)
    reasoning = _count(result.usage.get("completion_tokens_details"), "reasoning_tokens")
    if reasoning is None and not result.reasoning and CLOSING not in result.content:
        reasoning = 0
    if output is None or reasoning is None or reasoning > output:
        return None, None
    return reasoning, output - reasoning
