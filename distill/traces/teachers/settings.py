"""What a teacher is told: who answers, how thinking is switched on and off, and how tokens are drawn."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from distill.serve.server import ServerSettings
from distill.settings import ServerUrl, Settings
from distill.traces.trace import MODES, Mode

_VLLM = "vllm:"


class ChatSettings(Settings):
    """What teachers that chat have in common.

    `thinking` says how reasoning is switched on and off for the same question:

        template       chat_template_kwargs {"enable_thinking": true or false}, as Qwen's template reads it
        template:KEY   the same under another key: `thinking` for DeepSeek and Granite
        system         one of two system prompts
        models         one model reasons, another answers directly

    Where that does not say it all, `template_kwargs` and `system_prompts` say for each mode what is sent.
    """

    thinking: str = Field("template", pattern=r"^(template(:\w+)?|system|models)$")
    template_kwargs: dict[Mode, dict[str, Any]] | None = None
    system_prompts: dict[Mode, Annotated[str, Field(min_length=1)]] | None = None
    temperature: float = Field(0.6, ge=0)
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(4096, gt=0)  # reasoning and answer together
    usd_per_million_input: float | None = Field(None, ge=0)  # prices are part of no request's key
    usd_per_million_output: float | None = Field(None, ge=0)
    top_k: int | None = Field(None, gt=0)  # keep so many log-probabilities at every generated token, to distil from
    tokenizer: str | None = None  # the teacher's, as a folder or Hub id; the model's name if not given; for top_k only
    concurrency: int = Field(32, gt=0, le=4096)
    timeout_s: float = Field(3600.0, gt=0)  # for a whole answer

    @model_validator(mode="after")
    def _both_modes(self) -> "ChatSettings":
        for name in ("template_kwargs", "system_prompts"):
            given = getattr(self, name)
            if given is not None and set(given) != set(MODES):
                raise ValueError(f"{name}: expected one entry for each of {' and '.join(MODES)}")
        if self.thinking.startswith("template:") and self.template_kwargs is not None:
            raise ValueError("a key of the template and template_kwargs are two ways to say it; give one")
        return self

    def _check_models(self, another: bool, names: str) -> None:
        if another != (self.thinking == "models"):
            raise ValueError(f"thinking 'models' and {names} are given together or not at all")
        if another and self.top_k is not None:
            raise ValueError("top_k: log-probabilities of two models cannot be distilled into one student")


class EndpointSettings(ChatSettings):
    """A teacher behind an OpenAI-compatible server, or two of them."""

    url: ServerUrl
    model: str = Field(min_length=1)
    revision: str = ""  # of the weights, where it is known; part of every request's key
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key, if the server wants one
    ift_model: str | None = Field(None, min_length=1)  # who answers directly, where thinking is by two models
    ift_url: ServerUrl | None = None  # where it is, if elsewhere
    ift_revision: str = ""
    ift_api_key_env: str | None = None  # of ift_url: another server is never sent the first one's key unasked

    @model_validator(mode="after")
    def _two_models(self) -> "EndpointSettings":
        self._check_models(self.ift_model is not None or self.ift_url is not None, "ift_model or ift_url")
        for name, needed in (("ift_revision", "ift_model or ift_url"), ("ift_api_key_env", "ift_url")):
            if getattr(self, name) and all(getattr(self, field) is None for field in needed.split(" or ")):
                raise ValueError(f"{name} needs {needed}")
        return self


class VllmSettings(ChatSettings):
    """A teacher that vLLM serves on this machine for as long as it is needed: written `vllm:MODEL`."""

    vllm: str = Field(min_length=1)  # a model's folder, a folder of LoRA adapters, or a Hub id
    server: ServerSettings = ServerSettings()
    ift_vllm: str | None = Field(None, min_length=1)  # who answers directly, where thinking is by two models
    ift_server: ServerSettings | None = None  # `server` if not given
    concurrency: int = Field(256, gt=0, le=4096)

    @model_validator(mode="after")
    def _two_models(self) -> "VllmSettings":
        if self.ift_vllm is None and self.ift_server is not None:
            raise ValueError("ift_server says how ift_vllm is served, but there is none")
        self._check_models(self.ift_vllm is not None, "ift_vllm")
        return self


def _spelt_out(value: Any) -> Any:
    return {"vllm": value.removeprefix(_VLLM)} if isinstance(value, str) and value.startswith(_VLLM) else value


def _kind_of_teacher(value: Any) -> str:
    if isinstance(value, str):
        return "solver"
    started_here = isinstance(value, VllmSettings) or (isinstance(value, dict) and "vllm" in value)
    return "started here" if started_here else "endpoint"


# Told apart by their type, so that an error names the endpoint's field and not every way it could have been meant. No tag
# is the name of a field, so that the error can leave it out.
TeacherSettings = Annotated[
    Annotated[Literal["solver"], Tag("solver")]
    | Annotated[EndpointSettings, Tag("endpoint")]
    | Annotated[VllmSettings, Tag("started here")],
    Discriminator(_kind_of_teacher),
    BeforeValidator(_spelt_out),
]
