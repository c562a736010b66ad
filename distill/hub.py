"""Which names mean something on the Hugging Face Hub, and which are paths on this machine; and what is asked of it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from distill import console

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
# Of files that we read or that lie beside those. Not any suffix: names on the Hub have dots, as in Qwen2.5-0.5B.
_FILE_SUFFIXES = {
    *(".json", ".jsonl", ".ndjson", ".parquet", ".arrow", ".csv", ".tsv", ".txt", ".md", ".yaml", ".yml"),
    *(".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".safetensors", ".bin", ".pt", ".gguf"),
}


def looks_like_hub_id(text: str) -> bool:
    """Whether `text` can only be meant as owner/name: a mistyped path must not be asked for on the Hub.

    >>> looks_like_hub_id("Qwen/Qwen2.5-0.5B"), looks_like_hub_id("data/pairz.jsonl")
    (True, False)
    """
    if not _HUB_ID.fullmatch(text) or Path(text).suffix.lower() in _FILE_SUFFIXES:
        return False
    return not Path(text).exists() and not Path(text).parent.is_dir()


@cache
def _say_once(name: str) -> None:
    console.note(f"{name}: asking the Hugging Face Hub")


@contextmanager
def asking_the_hub(name: str) -> Iterator[None]:
    """Say that the Hub is asked for `name`, unless that is a folder here, and keep its client's warnings of every try
    that failed from a person: the error at the end says it."""
    if Path(name).is_dir():
        yield
        return
    from huggingface_hub.utils import logging

    _say_once(name)
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
