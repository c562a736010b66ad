"""What `distill traces generate` is told."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from distill.settings import Settings
from distill.tasks.problem import Split


class EndpointSettings(Settings):
    """A teacher behind an OpenAI-compatible server.

    `thinking` says how reasoning is switched on and off for the same prompt: `template` sends
    chat_template_kwargs {"enable_thinking": true or false}, `system` sends one of two system prompts.
    """

    url: str = Field(pattern="^https?://")  # with the version: http://127.0.0.1:8000/v1
    model: str = Field(min_length=1)
    revision: str = ""  # of the weights, where it is known; part of every request's key
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if the server wants one
    thinking: Literal["template", "system"] = "template"
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(4096, gt=0)  # reasoning and answer together
    usd_per_million_input: float | None = Field(None, ge=0)  # prices are part of no request's key
    usd_per_million_output: float | None = Field(None, ge=0)
    top_k: int | None = Field(None, gt=0)  # keep so many log-probabilities at every generated token, to distil from
    tokenizer: str | None = None  # the teacher's, as a folder or Hub id; the model's name if not given; for top_k only
    concurrency: int = Field(32, gt=0, le=1024)
    timeout_s: float = Field(600.0, gt=0)


def _kind_of_teacher(value: Any) -> str:
    return "solver" if isinstance(value, str) else "endpoint"


# Told apart by their type, so that an error names the endpoint's field and not every way it could have been meant.
Teacher = Annotated[
    Annotated[Literal["solver"], Tag("solver")] | Annotated[EndpointSettings, Tag("endpoint")],
    Discriminator(_kind_of_teacher),
]


class GenerateSettings(Settings):
    """Which questions are asked, and whom."""

    tasks: dict[str, int] = Field(min_length=1)  # how many problems of each, in this order; "gsm8k:PATH" for files
    split: Split = "train"
    seed: int = Field(0, ge=0, lt=2**31)  # of the choice of problems and of the teacher's sampling
    teacher: Teacher = "solver"
