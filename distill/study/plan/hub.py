"""Whether the Hugging Face Hub can be reached, asked once: its clients wait long for a network that is not there."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import httpx

OFFLINE, PATIENCE_S = "HF_HUB_OFFLINE", 5.0


@cache
def hub_answers() -> bool:
    """Whether anything answers where the Hub is."""
    if os.environ.get(OFFLINE):
        return False
    try:
        httpx.head(os.environ.get("HF_ENDPOINT", "https://huggingface.co"), timeout=PATIENCE_S)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return True


@contextmanager
def from_the_cache_at_once() -> Iterator[None]:
    """Where the Hub cannot be reached, what was fetched before is found at once, and what was not is an error at once."""
    if hub_answers():
        yield
        return
    libraries = [sys.modules[name] for name in ("huggingface_hub.constants", "datasets.config") if name in sys.modules]
    before, flags = os.environ.get(OFFLINE), [library.HF_HUB_OFFLINE for library in libraries]
    os.environ[OFFLINE] = "1"
    for library in libraries:
        library.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for library, flag in zip(libraries, flags, strict=True):
            library.HF_HUB_OFFLINE = flag
        if before is None:
            del os.environ[OFFLINE]
        else:
            os.environ[OFFLINE] = before
