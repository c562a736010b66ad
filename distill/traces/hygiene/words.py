"""Text as the words that are compared: what two copies of a question share whatever their case, spaces and punctuation.

Unicode forms (NFKC), case, white space and punctuation do not matter. What can turn one question into another does:
signs of arithmetic (`5 - 3` is not `5 + 3`), decimal points, accents, symbols. In scripts that put no spaces between
words every character is a word.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence

import numpy as np

# Thai and Lao, Myanmar, Khmer, Japanese, Chinese.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_OPERATORS = frozenset("*/%")  # punctuation to Unicode, arithmetic to a reader
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_FULL_STOP = re.compile(r"(?<!\d)\.|\.(?!\d)")
_HYPHEN = re.compile(r"(?<=[^\W\d_])-(?=[^\W\d_])")
# Normalising a run of n combining marks takes n^2 steps, so long texts go in pieces.
_LONG, _PIECE = 2048, re.compile(r".{1,1024}(?=\s)|.{1,1024}", re.DOTALL)  # between words where it can be
_CACHED = 500_000  # words whose hash is remembered
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xD6E8FEB86659FD93)


class _Characters(dict[int, str]):
    """What becomes of a character, by its Unicode category; for str.translate."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] == "L" and _UNSPACED.match(character):
            kept = f" {character} "
        elif category[0] in "LMN":
            kept = "" if 0xFE00 <= code <= 0xFE0F else character  # variation selectors
        elif character == ".":
            kept = character  # a decimal point: others are gone
        elif category == "Pd":
            kept = " - "
        elif (category[0] == "S" and character != "$") or category == "Co" or character in _OPERATORS:
            kept = f" {character} "
        else:
            kept = "" if category == "Cf" else " "  # invisible marks join what they stand in
        self[code] = kept
        return kept


_CHARACTERS = _Characters()


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("Well-known:\\n It COSTS $1,080.50 - or 5%?")
    ['well', 'known', 'it', 'costs', '1080.50', '-', 'or', '5', '%']
    """
    if not text.isascii():
        pieces = [text] if len(text) < _LONG else _PIECE.findall(text)
        text = "".join(unicodedata.normalize("NFKC", piece) for piece in pieces)
    text = text.casefold()
    for pattern, replacement in ((_THOUSANDS, ""), (_FULL_STOP, " "), (_HYPHEN, " ")):
        text = pattern.sub(replacement, text)
    return text.translate(_CHARACTERS).split()


def normal_form(text: str, its_words: Sequence[str]) -> str:
    """What is equal for two texts that say the same. A text without words is compared as it is written."""
    return " ".join(its_words) or text.strip()


class _Hashes(dict[str, int]):
    """The hash of a word: the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _CACHED:
            self.clear()
        digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
        self[word] = value = int.from_bytes(digest, "little")
        return value


_HASHES = _Hashes()


def word_hashes(its_words: Sequence[str]) -> np.ndarray:
    """uint64[n]: the words as numbers; of the words that there can be, no two have the same but by bad luck (2^-64)."""
    return np.fromiter(map(_HASHES.__getitem__, its_words), np.uint64, len(its_words))


def ngrams(hashes: np.ndarray, size: int) -> np.ndarray:
    """uint64[max(n - size + 1, 0)]: one number for every `size` words in a row."""
    count = len(hashes) - size + 1
    if count < 1:
        return np.empty(0, np.uint64)
    total = np.zeros(count, np.uint64)
    for i in range(size):  # a polynomial in _BASE modulo 2^64
        total *= _BASE
        total += hashes[i : i + count]
    total ^= total >> np.uint64(32)
    return total * _MIX


def marked(text: str, start: int, end: int, *, limit: int) -> str:
    """`text` with its words start to end (not included) between ⟦ and ⟧, cut to about `limit` characters around them."""
    spans = []
    for piece in re.finditer(rf"[{UNSPACED}]|[^\s{UNSPACED}]+", text):
        spans += [piece.span()] * len(words(piece.group()))
    if len(spans) != len(words(text)) or not 0 <= start < end <= len(spans):  # a word that depends on its neighbours
        return clipped(text, 0, len(text), limit)
    first, last = spans[start][0], spans[end - 1][1]
    left = clipped(text[:first], max(0, first - limit // 4), first, limit)
    right = clipped(text[last:], 0, limit // 4, limit)
    return f"{left}⟦{clipped(text[first:last], 0, limit, limit)}⟧{right}"


def clipped(text: str, start: int, end: int, limit: int) -> str:
    """Characters start to end of a text, at most `limit`, with what is left out shown as an ellipsis."""
    end = min(end, start + limit, len(text))
    return f"{'… ' if start > 0 else ''}{text[start:end]}{' …' if end < len(text) else ''}"
