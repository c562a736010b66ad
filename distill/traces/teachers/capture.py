"""Log-probabilities of a vLLM server: how they are asked for, and at which temperature they come.

A server gives them either as the model made them, at temperature 1 whatever is sampled (--logprobs-mode raw_logprobs,
its default), or as it sampled from them (processed_logprobs): at the sampling temperature and, with a top-p below 1,
cut off, which nothing can be distilled from. No reply says which. So the first token of one question is asked for
twice, greedily, which is always at temperature 1, and as it will be sampled.
"""

from typing import Any

from distill.errors import InputError
from distill.serve.client import SamplingSettings, chat
from distill.serve.endpoint import Endpoint, tokenize
from distill.traces.top_k import Distributions

_TOLERANCE = 0.1  # between two replies to one request: rounding only
_COMPARED = 8
_SAMPLE_TEXT = "<think>\n1 + 2 = 3, naïve Straße 東京 🙂\tdef f(x):\n    return x</think>\n\n42"


def capture_fields(k: int) -> dict[str, Any]:
    """What a chat request must carry so that its reply has the `k` most likely ids at every token.

    One more is asked for: vLLM's list begins with the sampled token, which may not be among them.
    """
    return {
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        "logprobs": True,
        "top_logprobs": k + 1,
    }


async def captured_temperature(
    endpoint: Endpoint,
    messages: list[dict[str, Any]],
    sampling: SamplingSettings,
    k: int,
    *,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> float:
    """The temperature of the log-probabilities that come with answers sampled as `sampling` says.

    Raises InputError when the server gives none, not so many, logits instead, or cut off ones.
    """
    k = max(k, _COMPARED)  # one likely id may have probability 1 at any temperature
    replies = []
    for how in ({"temperature": 0.0, "top_p": 1.0}, {}):
        (reply,) = await chat(
            endpoint,
            [messages],
            sampling.model_copy(update={"max_tokens": 1} | how),
            chat_template_kwargs=chat_template_kwargs,
            extra=capture_fields(k),
        )
        if reply.error is not None:
            raise InputError(
                f"endpoint {endpoint.base_url}: gives no {k + 1} log-probabilities a token ({reply.error}); vLLM "
                f"must be started with --max-logprobs {k + 1} for more than its 20"
            )
        try:
            found = Distributions.read(reply.logprobs or [], reply.token_ids or [], k)
            if len(found.ids) != 1:
                raise ValueError(f"{len(found.ids)} log-probability entries for one token")
        except ValueError as error:
            raise InputError(
                f"endpoint {endpoint.base_url}: expected vLLM's log-probabilities, found {error}"
            ) from None
        replies.append(dict(zip(found.ids[0].tolist(), found.logprobs[0].tolist(), strict=True)))
    return _temperature(*replies, sampling, endpoint)


def _temperature(
    plain: dict[int, float], sampled: dict[int, float], sampling: SamplingSettings, endpoint: Endpoint
) -> float:
    both = sorted(plain.keys() & sampled.keys() - {-1})
    cut = (-1 in sampled) and (-1 not in plain)
    if both and not cut:
        raw = max(abs(plain[i] - sampled[i]) for i in both)
        # Dividing logits by T makes log p_T = log p / T + constant.
        constants = [sampled[i] * sampling.temperature - plain[i] for i in both]
        processed = max(constants) - min(constants)
        if raw < _TOLERANCE and (raw <= processed or sampling.temperature in (0.0, 1.0)):
            return 1.0
        if processed < _TOLERANCE and sampling.top_p == 1.0 and sampling.temperature > 0:
            return sampling.temperature
    raise InputError(
        f"endpoint {endpoint.base_url}: its log-probabilities are what is left after sampling with top_p "
        f"{sampling.top_p:g}; use top_p 1, or a server started with --logprobs-mode raw_logprobs"
    )


def check_tokenizer(endpoint: Endpoint, tokenizer: Any) -> None:
    """Raise InputError when the server is no vLLM or tokenizes a text otherwise than `tokenizer` does."""
    found = tokenize(endpoint, _SAMPLE_TEXT)
    if found is None:
        raise InputError(
            f"endpoint {endpoint.base_url}: has no /tokenize; log-probabilities of token ids need a vLLM server"
        )
    if found != tokenizer(_SAMPLE_TEXT, add_special_tokens=False)["input_ids"]:
        raise InputError(
            f"endpoint {endpoint.base_url}: tokenizes otherwise than {tokenizer.name_or_path}; say whose tokenizer the "
            "teacher has with --tokenizer"
        )
