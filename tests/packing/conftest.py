"""Pairs with hostile texts, and byte-level tokenizers with the chat templates of well-known families."""

import numpy as np
import pytest

from distill.tasks.problem import Problem
from distill.traces.trace import Pair, Trace

WORDS = [
    "seven",
    "12",
    "naïve",
    "東京",
    "🙂🙃",
    "e\u0301",
    "<b>",
    "a_b",
    "\t",
    "\n",
    "\n\n",
    "-",
    "<|",
    "|>",
    "{{x}}",
    "\\",
    "'",
]


def random_text(rng: np.random.Generator, words: int) -> str:
    """Text with unicode, white space at its ends and pieces that look like markup."""
    return "".join(rng.choice(WORDS) + rng.choice(["", " ", "  "]) for _ in range(words)) + "."


@pytest.fixture
def make_pairs(rng):
    """make_pairs(n, prompt=words, reasoning=words): n pairs of random texts."""

    def make(n: int, prompt: int = 6, reasoning: int = 20) -> list[Pair]:
        pairs = []
        for i in range(n):
            problem = Problem("add", f"{i} {random_text(rng, 1 + int(rng.integers(prompt)))}", f"gold{i}", "open")
            thought = random_text(rng, 1 + int(rng.integers(reasoning)))
            with_reasoning = Trace("reasoning", thought, random_text(rng, 2) + f"R{i}", "stop", "t")
            pairs.append(Pair(problem, with_reasoning, Trace("ift", "", random_text(rng, 2) + f"I{i}", "stop", "t")))
        return pairs

    return make


def build_tokenizer(special: list[str], template: str | None, eos: str | None):
    """Byte-level, every byte a token, `special` its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator([], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, clean_up_tokenization_spaces=False)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_with():
    return build_tokenizer
