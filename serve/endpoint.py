"""Where an OpenAI-compatible server is and how to talk to it."""

import ipaddress
import json
import ssl
from dataclasses import dataclass, field
from functools import cache
from urllib.request import getproxies, proxy_bypass

import aiohttp
import httpx

from distill.errors import InputError, unknown_name

CONNECT_S = 10.0
KEPT_S = 4.0  # an idle connection; vLLM's server hangs up after 5, and a request that was on its way then is lost


@dataclass(frozen=True)
class Endpoint:
    """A server that speaks the OpenAI protocol: one of ours, or one that was there already."""

    base_url: str  # with the version, as every OpenAI client writes it: http://127.0.0.1:8000/v1
    model: str  # the name the server knows the model by
    api_key: str | None = field(default=None, repr=False)  # white space around it is left out

    def __post_init__(self) -> None:
        """Raises InputError for a key that no HTTP header can carry."""
        object.__setattr__(self, "api_key", clean_key(self.api_key, f"API key for {self.base_url}"))

    @property
    def root_url(self) -> str:
        """The server without /v1, where /health and /metrics are."""
        return self.base_url.rstrip("/").removesuffix("/v1")

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}

    @property
    def proxy(self) -> str | None:
        """The proxy that the environment names for this server; none to this machine. Raises InputError."""
        url = httpx.URL(self.base_url)
        if is_loopback(url.host) or proxy_bypass(url.netloc.decode()):
            return None
        proxies = getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
        if not proxy:
            return None
        kind = proxy.partition("://")[0].lower() if "://" in proxy else None
        if kind not in (None, "http", "https"):
            raise InputError(f"endpoint {self.base_url}: expected an http or https proxy, the environment has {kind}")
        return proxy if kind else f"http://{proxy}"

    def session(self) -> aiohttp.ClientSession:
        """Connections to the server, as many as there are requests at a time. Sets no limit to how long one takes.

        Not httpx's: reading a stream of tokens with it takes three times the processor time, which matters where a
        server has to share the processor.
        """
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S, ssl=tls_context()),
            headers=self.headers,
            proxy=self.proxy,
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            max_field_size=2**16,  # of a reply's headers
        )

    def hide_key(self, text: str) -> str:
        """`text` without the key: servers quote it back in their errors. Hide it first, then cut the text short."""
        if self.api_key:
            for form in (self.api_key, json.dumps(self.api_key)[1:-1], repr(self.api_key)[1:-1]):
                text = text.replace(form, "***")
        return text


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at `host`, an address or a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@cache
def tls_context() -> ssl.SSLContext:
    """What connections are made with, the same for all: making one reads every certificate, which takes 20 ms."""
    return httpx.create_ssl_context()


def clean_key(key: str | None, where: str) -> str | None:
    """The key without white space around it, None when nothing is left. Raises InputError, which names only `where`."""
    key = (key or "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise InputError(f"{where}: expected printable ASCII without spaces")
    return key or None


def tokenize(endpoint: Endpoint, text: str) -> list[int] | None:
    """The token ids of a text as the server has them; None when it is no vLLM and cannot say."""
    try:
        reply = httpx.post(
            f"{endpoint.root_url}/tokenize",
            json={"model": endpoint.model, "prompt": text, "add_special_tokens": False},
            headers=endpoint.headers,
            proxy=endpoint.proxy,
            trust_env=False,
            verify=tls_context(),
            timeout=10,
        )
        return [int(token) for token in reply.raise_for_status().json()["tokens"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
        return None


def check_endpoint(endpoint: Endpoint) -> None:
    """Ask the server for its models. Raises InputError when it is out of reach, refuses the key or lacks the model."""
    try:
        _check(endpoint)
    except InputError as error:
        raise InputError(endpoint.hide_key(str(error))) from None


def _check(endpoint: Endpoint) -> None:
    where = f"endpoint {endpoint.base_url}"
    try:
        reply = httpx.get(
            f"{endpoint.base_url.rstrip('/')}/models",
            headers=endpoint.headers,
            timeout=10,
            proxy=endpoint.proxy,
            trust_env=False,
            verify=tls_context(),
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"{where}: cannot be reached ({error or type(error).__name__})") from None
    if reply.status_code in (401, 403):
        none = "wants an API key; the environment variable for it (OPENAI_API_KEY if no other is named) is not set"
        key = "refuses the API key" if endpoint.api_key else none
        raise InputError(f"{where}: {key} (HTTP {reply.status_code})")
    if reply.status_code == 404:
        return  # some gateways serve completions but no list
    try:
        names = [str(entry["id"]) for entry in reply.raise_for_status().json()["data"]]
    except (httpx.HTTPError, ValueError, KeyError, TypeError, RecursionError):
        found = f"HTTP {reply.status_code} {endpoint.hide_key(reply.text)[:80]!r}"
        raise InputError(f"{where}: expected a list of models at /models, found {found}") from None
    if endpoint.model not in names:
        raise unknown_name(f"model at {endpoint.base_url}", endpoint.model, names)
