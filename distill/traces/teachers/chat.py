"""Teachers that chat: how a question is put to them, and how their answers are asked for and read.

Both modes of one question get the same sampling and seed. What switches thinking is all that differs, but where the
gold answer is shown: that is done only to who reasons.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from distill.errors import InputError
from distill.serve.client import ChatCompletion, ChatRequest, SamplingSettings, chat_stream
from distill.serve.endpoint import Endpoint, tokenize
from distill.serve.patience import ServerGone
from distill.traces.faults import CLOSING, OPENING
from distill.traces.pairing import Answer
from distill.traces.teachers.capture import capture_fields, captured_temperature, check_tokenizer
from distill.traces.teachers.read_reply import ThinkIds, read_reply
from distill.traces.teachers.settings import ChatSettings
from distill.traces.teachers.teacher import Question
from distill.traces.top_k import Distributions
from distill.traces.trace import MODES, Mode
from distill.traces.vocabulary import Vocabulary, load_tokenizer

SYSTEM_PROMPTS: Mapping[Mode, str] = {
    "reasoning": f"Reason step by step between {OPENING} and {CLOSING}. After that, give only the answer.",
    "ift": "Give the answer directly, without reasoning.",
}
# After the question, where a teacher is shown what it is to reason towards; the gold answer follows.
GOLD_SHOWN = (
    "The correct answer is given below. Reason from the question to it as if you did not know it, without saying that "
    "it was given, and end with it.\nCorrect answer: "
)


class ChatTeacher:
    """What teachers behind a server have in common; where it is, they say to `ask`."""

    def __init__(self, settings: ChatSettings, seed: int, *, gold_shown: bool, tokenizer: str):
        """`tokenizer` is whose log-probabilities are captured, where they are. Raises InputError when it is missing."""
        self.settings, self.seed, self.gold_shown = settings, seed, gold_shown
        self.sampling = settings.model_dump(include={"temperature", "top_p", "max_tokens"})
        self.switch = {mode: _switch(settings, mode) for mode in MODES}
        self.identity: dict[str, Any] = {"thinking": self.switch, "sampling": self.sampling}
        if gold_shown:
            self.identity["gold_shown"] = GOLD_SHOWN
        self.vocabulary = None
        if settings.top_k is not None:
            self.tokenizer = load_tokenizer(tokenizer)
            self.vocabulary = Vocabulary.of(self.tokenizer)
            self.identity |= {"top_k": settings.top_k, "vocabulary": self.vocabulary.sha256}
        self.prices = settings.model_dump(include={"usd_per_million_input", "usd_per_million_output"})
        self.retries = 0  # tries beyond the first, of all requests together

    def render(self, question: Question) -> dict[str, Any]:
        prompt, switch = question.problem.prompt, self.switch[question.mode]
        if self.gold_shown and question.mode == "reasoning":
            prompt = f"{prompt}\n\n{GOLD_SHOWN}{question.problem.gold}"
        system = [{"role": "system", "content": switch["system"]}] if "system" in switch else []
        return {
            "messages": [*system, {"role": "user", "content": prompt}],
            "chat_template_kwargs": switch.get("template"),
            "seed": self.seed + question.sample,
        }

    async def ask(
        self,
        endpoints: Mapping[Mode, Endpoint],
        questions: Iterable[Question],
        on_answer: Callable[[Question, Answer], None],
        *,
        stream: bool = False,
    ) -> None:
        """Teacher.answer, of these endpoints. `stream` is for servers that something may stand before (chat_stream)."""
        questions = iter(questions)
        first = next(questions, None)
        if first is None:
            return
        known = {endpoint: await asyncio.to_thread(think_ids, endpoint) for endpoint in set(endpoints.values())}
        ids = {mode: known[endpoint] for mode, endpoint in endpoints.items()}
        extra = {mode: {"return_token_ids": True} if ids[mode] else {} for mode in MODES}
        temperature = None
        if self.settings.top_k is not None:
            temperature = await self._captured_temperature(endpoints[first.mode], first)
            extra = dict.fromkeys(MODES, capture_fields(self.settings.top_k))

        def requests() -> Iterator[ChatRequest]:
            for question in chain((first,), questions):
                yield self._request(question, endpoints[question.mode], extra[question.mode])

        def on_result(request: ChatRequest, result: ChatCompletion) -> None:
            question = request.about
            self.retries += result.tries - 1
            about = {"teacher": request.endpoint.model, "sampling": self.sampling, "seed": request.sampling.seed}
            answer = read_reply(result, question.mode, ids[question.mode], about)
            if temperature is not None and answer.fault is None:
                answer = self._with_distributions(answer, result, temperature)
            on_answer(question, answer)

        try:
            await chat_stream(
                requests(),
                on_result,
                concurrency=self.settings.concurrency,
                timeout_s=self.settings.timeout_s,
                stream=stream,
            )
        except ServerGone as error:
            raise InputError(f"{error}; finished answers are kept, run the same command again") from None

    def _request(self, question: Question, endpoint: Endpoint, extra: dict[str, Any]) -> ChatRequest:
        rendered = self.render(question)
        return ChatRequest(
            endpoint,
            rendered["messages"],
            SamplingSettings(**self.sampling, seed=rendered["seed"]),
            rendered["chat_template_kwargs"],
            extra,
            about=question,
        )

    async def _captured_temperature(self, endpoint: Endpoint, question: Question) -> float:
        check_tokenizer(endpoint, self.tokenizer)
        request = self._request(question, endpoint, {})
        return await captured_temperature(
            endpoint,
            list(request.messages),
            request.sampling,
            self.settings.top_k,
            chat_template_kwargs=request.chat_template_kwargs,
        )

    def _with_distributions(self, answer: Answer, result: ChatCompletion, temperature: float) -> Answer:
        try:
            found = Distributions.read(result.logprobs or [], result.token_ids or [], self.settings.top_k, temperature)
        except ValueError as error:
            failed = replace(answer.trace, finish_reason="error")
            return Answer(failed, "failed", " ".join(str(error).split())[:300], answer.output_tokens)
        return replace(answer, distributions=found)

    def cost_usd(self, answer: Answer) -> float | None:
        prices = self.settings.usd_per_million_input, self.settings.usd_per_million_output
        tokens = answer.trace.prompt_tokens, answer.output_tokens
        if None in (*prices, *tokens):
            return None
        return (prices[0] * tokens[0] + prices[1] * tokens[1]) / 1e6


def _switch(settings: ChatSettings, mode: Mode) -> dict[str, Any]:
    """What is sent to have an answer in this mode: arguments of the chat template, a system prompt, both or neither."""
    switch: dict[str, Any] = {}
    how, _, key = settings.thinking.partition(":")
    if settings.template_kwargs is not None:
        switch["template"] = settings.template_kwargs[mode]
    elif how == "template":
        switch["template"] = {key or "enable_thinking": mode == "reasoning"}
    if settings.system_prompts is not None:
        switch["system"] = settings.system_prompts[mode]
    elif how == "system":
        switch["system"] = SYSTEM_PROMPTS[mode]
    return switch


def think_ids(endpoint: Endpoint) -> ThinkIds | None:
    """The ids of the think tags where each is one token; None when the server is no vLLM and cannot say.

    A server that has /tokenize also gives token ids back; others may refuse to be asked for them.
    """
    ids: list[int | None] = []
    for tag in (OPENING, CLOSING):
        tokens = tokenize(endpoint, tag)
        if tokens is None:
            return None
        ids.append(tokens[0] if len(tokens) == 1 else None)
    return ids[0], ids[1]
