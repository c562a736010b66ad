"""A teacher behind an OpenAI-compatible server that is there already, or behind two: one reasons, one does not."""

import os
from collections.abc import Callable, Iterable

from distill.serve.endpoint import Endpoint, check_endpoint, clean_key
from distill.traces.pairing import Answer
from distill.traces.teachers.chat import ChatTeacher
from distill.traces.teachers.settings import EndpointSettings
from distill.traces.teachers.teacher import Question
from distill.traces.trace import Mode


class EndpointTeacher(ChatTeacher):
    """Models by name, at a URL. The keys come from the environment and go nowhere else."""

    def __init__(self, settings: EndpointSettings, seed: int, *, gold_shown: bool = False):
        """Raises InputError for a key that cannot be sent, or a tokenizer that cannot be loaded."""
        super().__init__(settings, seed, gold_shown=gold_shown, tokenizer=settings.tokenizer or settings.model)
        key = _key(settings.api_key_env)
        endpoint = Endpoint(settings.url, settings.model, key)
        self.endpoints: dict[Mode, Endpoint] = {"reasoning": endpoint, "ift": endpoint}
        self.identity |= {"name": settings.model, "revision": settings.revision}
        if settings.thinking == "models":
            model = settings.ift_model or settings.model
            url = settings.ift_url or settings.url
            if settings.ift_url is not None:
                key = _key(settings.ift_api_key_env) if settings.ift_api_key_env else None
            self.endpoints["ift"] = Endpoint(url, model, key)
            self.identity["ift"] = {"name": model, "revision": settings.ift_revision}

    async def answer(self, questions: Iterable[Question], on_answer: Callable[[Question, Answer], None]) -> None:
        for endpoint in dict.fromkeys(self.endpoints.values()):
            check_endpoint(endpoint)
        await self.ask(self.endpoints, questions, on_answer, stream=True)


def _key(variable: str) -> str | None:
    return clean_key(os.environ.get(variable), f"environment variable {variable}")
