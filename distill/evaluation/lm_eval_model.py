"""A student as lm-eval sees a model: token ids go to the server and come back, and answers are handed on without thinking.

lm-eval's own client for completions servers sends text and gets text back, in which think tags are missing where they are
special tokens, and stops in the middle of a thought at what ends an answer. Importing this file imports lm-eval.
"""

import asyncio
from typing import Any

from lm_eval.api.model import TemplateLM

from distill.evaluation.answers import take_apart
from distill.evaluation.generate import CONCURRENCY, Sampling
from distill.evaluation.loglikelihood import logprobs
from distill.evaluation.subject import Subject
from distill.serve import Completion, Endpoint, complete


class ServedStudent(TemplateLM):
    """Generation and log-likelihoods of one student behind a server."""

    def __init__(self, subject: Subject, endpoint: Endpoint, *, max_tokens: int, seed: int, positions: int):
        super().__init__()
        self.subject, self.endpoint, self.tokenizer = subject, endpoint, subject.tokenizer
        self.max_tokens, self.seed, self.max_length = max_tokens, seed, positions

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.subject.folder)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        special = self.subject.chat is None if add_special_tokens is None else add_special_tokens
        return self.tokenizer(string, add_special_tokens=special, truncation=False)["input_ids"]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """The answers, each up to the first of its stops; what is unfinished is none."""
        groups: dict[tuple[tuple[str, ...], int, float], list[int]] = {}
        for i, request in enumerate(requests):
            how = request.args[1]
            until = how.get("until") or ()
            until = (until,) if isinstance(until, str) else tuple(until)
            most = how.get("max_gen_toks") or how.get("max_tokens") or self.max_tokens
            groups.setdefault((until, int(most), float(how.get("temperature") or 0)), []).append(i)
        found = asyncio.run(self._generate(requests, groups))
        return [found[i] for i in range(len(requests))]

    async def _generate(
        self, requests: list[Any], groups: dict[tuple[tuple[str, ...], int, float], list[int]]
    ) -> dict[int, str]:
        found: dict[int, str] = {}
        chat = self.subject.chat
        end = chat.end_of_turn if chat else self.eot_token_id
        for (until, most, temperature), places in groups.items():
            sampling = Sampling(
                max_tokens=most,
                temperature=temperature,
                seed=self.seed,
                stop_token_ids=(end,),
                stop=() if chat else until,  # in a chat they end the answer, not a thought
            )
            prompts = [self.tok_encode(requests[i].args[0])[-(self.max_length - most) :] for i in places]
            results = await complete(
                self.endpoint, prompts, sampling, concurrency=CONCURRENCY, label="answers for lm-eval"
            )
            for i, result in zip(places, results, strict=True):
                found[i] = _up_to(self._answer(result), until)
        return found

    def _answer(self, result: Completion) -> str:
        if result.error is not None:
            raise RuntimeError(result.error)
        if self.subject.chat is None:
            return result.text
        parts = take_apart(self.subject.chat, result.token_ids)
        return parts.answer if parts.closed and result.finish_reason == "stop" else ""

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        rows = {str(i): (context, said) for i, (_, context, said) in enumerate(requests)}
        found = asyncio.run(logprobs(self.endpoint, rows))
        return [found[str(i)] for i in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        rows = {
            str(i): ([self.prefix_token_id], self.tok_encode(request.args[0], add_special_tokens=False))
            for i, request in enumerate(requests)
        }
        found = asyncio.run(logprobs(self.endpoint, rows))
        return [found[str(i)][0] for i in range(len(requests))]


def _up_to(text: str, stops: tuple[str, ...]) -> str:
    for stop in stops:
        text = text.partition(stop)[0]
    return text
