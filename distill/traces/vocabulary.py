"""Which tokenizer token ids belong to: ids of one vocabulary mean nothing in another."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.artifact import canonical_json
from distill.errors import InputError
from distill.hub import asking_the_hub, looks_like_hub_id


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer calls which id. `size` is the largest id + 1; a model's own vocabulary may be padded beyond it."""

    size: int
    sha256: str  # of every (token, id)

    @classmethod
    def of(cls, tokenizer: Any) -> "Vocabulary":
        """Of a Hugging Face tokenizer, added tokens included."""
        entries = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
        return cls(entries[-1][1] + 1, hashlib.sha256(canonical_json(entries).encode()).hexdigest())


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or a Hub id. Raises InputError."""
    from transformers import AutoTokenizer

    if not Path(name).is_dir() and not looks_like_hub_id(name):
        raise InputError(f"tokenizer {name!r}: expected a folder with a tokenizer or a Hub id (owner/name)")
    try:
        with asking_the_hub(name):
            return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:  # a damaged folder makes the library raise almost anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(f"tokenizer {name!r}: cannot be loaded ({reason})") from None
