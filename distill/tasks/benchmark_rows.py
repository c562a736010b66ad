"""From a row of a benchmark to its questions: templates filled, options lettered, the right answer in one form.

The form of a gold answer is text, so that it can be stored and compared anywhere: a letter, a number as it stands, or
JSON where it is a list of accepted answers, a set of labels or the arguments of rules.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from distill.artifact import canonical_json
from distill.errors import InputError
from distill.tasks.aqua import LETTERS
from distill.tasks.benchmark import Benchmark, fill, placeholders
from distill.tasks.jsonl import checked_text, value_at
from distill.tasks.problem import Problem
from distill.tasks.questions import gold_text
from distill.tasks.rows import Row

Values = dict[str, tuple[Any, str]]  # name -> (value, field)

_LETTER_MARK = re.compile(r"\s*\(?([A-Ja-j])[).:]\s*")


@dataclass(frozen=True)
class Question:
    """A problem, and what it was made from."""

    problem: Problem
    values: Values
    where: str


def is_wanted(benchmark: Benchmark, row: Row, where: str) -> bool:
    """Whether the filter takes a row; it never takes one with nothing there. Raises InputError when a field of it is
    missing, or holds neither text nor a number."""
    for name, wanted in benchmark.filter.items():
        field = benchmark.fields[name]
        value = value_at(row, field, where)
        if value is None or (isinstance(value, str) and not value.strip()):
            return False
        found = gold_text(value, field, where)
        if found not in ((wanted,) if isinstance(wanted, str) else wanted):
            return False
    return True


def read_row(benchmark: Benchmark, row: Row, where: str) -> list[Question]:
    """The questions of a row: one, or one for each turn. `where` is "file:line".

    Raises InputError for a row of another form.
    """
    return [
        Question(_problem(benchmark, values, history, where), values, where)
        for values, history in _turns(benchmark, row, where)
    ]


def example_answer(benchmark: Benchmark, template: str, question: Question) -> str:
    """How an example is answered. Raises InputError when something in the template is blank."""
    texts = _texts(template, question.values, question.where)
    return fill(template, texts | {"gold": model_answer(benchmark, question.problem.gold)})


def model_answer(benchmark: Benchmark, gold: str) -> str:
    """A gold answer as one would write it: the first of the accepted ones, labels with commas between them."""
    if benchmark.gold.read == "any_of":
        return json.loads(gold)[0]
    if benchmark.gold.read == "labels":
        labels = json.loads(gold)
        return gold if any(set(label) & set(",;|\n") for label in labels) else ", ".join(labels) or "none"
    return gold


def _turns(benchmark: Benchmark, row: Row, where: str) -> Iterator[tuple[Values, str]]:
    """(values, the turns before) for each question."""
    values = {}
    for name, field in benchmark.fields.items():
        stands_in = benchmark.when_blank.get(name)
        value = _value_or(stands_in, row, field, where)
        values[name] = (value, field)
    if not benchmark.turns:
        yield values, ""
        return
    lists = {name: (_list(value_at(row, field, where), field, where), field) for name, field in benchmark.turns.items()}
    lengths = {field: len(found) for found, field in lists.values()}
    if len({*lengths.values()}) > 1:
        said = ", ".join(f"{count} in {field!r}" for field, count in lengths.items())
        raise InputError(f"{where}: expected lists of one length, found {said}")
    if 0 in lengths.values():
        raise InputError(f"{where}: field {next(iter(lengths))!r}: an empty list; expected a question")
    history = ""
    for i in range(next(iter(lengths.values()))):
        turn = {name: (found[i], f"{field}[{i}]") for name, (found, field) in lists.items()}
        yield {**values, **turn}, history
        if benchmark.history:
            history += fill(benchmark.history, _texts(benchmark.history, turn, where))


def _value_or(stands_in: str | None, row: Row, field: str, where: str) -> Any:
    if stands_in is None:
        return value_at(row, field, where)
    try:
        value = value_at(row, field, where)
    except InputError:
        return stands_in
    return stands_in if value is None or (isinstance(value, str) and not value.strip()) else value


def _problem(benchmark: Benchmark, values: Values, history: str, where: str) -> Problem:
    options = _options(benchmark, values, where)
    gold = _gold(benchmark, values, len(options), where)
    lettered = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
    made = {"options": lettered, "history": history}
    prompt = fill(benchmark.prompt, _texts(benchmark.prompt, values, where) | made).strip()
    if benchmark.instruction.strip():
        prompt += f"\n\n{benchmark.instruction.strip()}"
    return Problem(benchmark.name, prompt, gold, benchmark.format)


def _texts(template: str, values: Values, where: str) -> dict[str, str]:
    """What the names in a template stand for, but those that are made here."""
    return {name: gold_text(*values[name], where) for name in placeholders(template) if name in values}


def _options(benchmark: Benchmark, values: Values, where: str) -> list[str]:
    """Their texts, without letters."""
    if benchmark.options is None:
        return []
    if isinstance(benchmark.options, str):
        listed, field = values[benchmark.options]
        listed = [(option, f"{field}[{i}]") for i, option in enumerate(_list(listed, field, where))]
        if not 2 <= len(listed) <= len(LETTERS):
            raise InputError(f"{where}: field {field!r}: expected 2 to {len(LETTERS)} options, found {len(listed)}")
    else:
        listed = [values[name] for name in benchmark.options]
    texts = [(gold_text(option, field, where), field) for option, field in listed]
    if benchmark.lettered:
        return [_unlettered(*text, letter, where) for text, letter in zip(texts, LETTERS, strict=False)]
    return [text for text, _ in texts]


def _unlettered(text: str, field: str, letter: str, where: str) -> str:
    mark = _LETTER_MARK.match(text)
    if mark is None or mark[1].upper() != letter:
        raise InputError(f"{where}: field {field!r}: expected '{letter})' at the beginning, found {text!r:.60}")
    return checked_text(text[mark.end() :], field, where)


def _gold(benchmark: Benchmark, values: Values, options: int, where: str) -> str:
    gold = benchmark.gold
    if gold.read == "json":
        found = {name: _without_null(values[name][0]) for name in gold.names}
        fields = ", ".join(benchmark.fields[name] for name in gold.names)
        try:
            return checked_text(canonical_json(found), fields, where)
        except (TypeError, ValueError, RecursionError):
            raise InputError(f"{where}: field {fields!r}: cannot be written as JSON") from None
    value, field = values[gold.names[0]]
    if gold.read == "any_of":
        accepted = value if isinstance(value, list) else [value]
        if not accepted:
            raise InputError(f"{where}: field {field!r}: no accepted answer in it")
        return _json_list(dict.fromkeys(gold_text(answer, field, where) for answer in accepted))
    if gold.read == "labels":
        labels = _list(value, field, where) if not isinstance(value, str) else filter(str.strip, value.split(","))
        return _json_list(dict.fromkeys(gold_text(label, field, where) for label in labels))
    text = gold_text(value, field, where)
    if gold.read == "letter":
        if len(text) != 1 or text not in LETTERS[:options]:
            raise InputError(f"{where}: field {field!r}: expected one of {LETTERS[:options]}, found {text!r:.40}")
        return text
    if gold.read == "index":
        if not text.isdecimal() or len(text) > 2 or not 0 <= int(text) - gold.first < options:
            numbers = f"{gold.first} to {options - 1 + gold.first}"
            raise InputError(f"{where}: field {field!r}: expected a number from {numbers}, found {text!r:.40}")
        return LETTERS[int(text) - gold.first]
    if gold.after is not None:
        _, mark, text = text.rpartition(gold.after)
        if not mark or not text.strip():
            raise InputError(f"{where}: field {field!r}: expected `{gold.after}`, then the answer")
    return text.strip()


def _list(value: Any, field: str, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{where}: field {field!r}: expected a list, found {type(value).__name__}")
    return value


def _json_list(texts: dict[str, None]) -> str:
    return json.dumps(list(texts), ensure_ascii=False)


def _without_null(value: Any) -> Any:
    """Tables give every argument of every rule to all of them, as null."""
    if isinstance(value, dict):
        return {key: _without_null(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_without_null(entry) for entry in value]
    return value
