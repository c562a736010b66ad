"""`distill traces stats`: what is in a trace set, as numbers (docs/traces.md names every field).

Nothing here reads a text twice or holds more than one batch of them: columns.py makes arrays, this file counts.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from distill import artifact
from distill.errors import InputError
from distill.traces.stats.columns import UNKNOWN, Rows, Side, read_columns
from distill.traces.stats.numbers import CONFIDENCE, exact_sum, lengths, project, share
from distill.traces.store import KIND, MADE_BY
from distill.traces.trace import MODES, Mode

SCHEMA = "distill-trace-stats/2"
_EXTREMES, _VERDICTS = 5, 20
_ASSUMPTION = (
    "further questions like those asked so far, put to the same teacher at the same sampling, samples and prices, and "
    "failing as often; questions that were not asked, and rows that are none, are left out"
)


def stats(path: Path, tokenizer: str | None = None, projected_questions: int | None = None) -> dict[str, Any]:
    """Counts, lengths, truncation, agreement, verified shares and cost of the trace set in the folder `path`.

    Tokens are those that the teacher counted, or with `tokenizer` (a folder or Hub id) those of that tokenizer. With
    `projected_questions`, what so many further questions would come to. None stands for what is not known.
    Raises InputError for a folder that is no finished trace set, a tokenizer that cannot be loaded, or a projection to
    less than one question.
    """
    if projected_questions is not None and projected_questions < 1:
        raise InputError(f"projection: found {projected_questions} questions, expected at least 1")
    made = artifact.read(path, KIND, made_by=MADE_BY)
    pairs, rejected = read_columns(path, _token_counter(tokenizer) if tokenizer else None)
    cost = _cost([rows.sides[mode] for rows in (pairs, rejected) for mode in MODES])
    return {
        "schema": SCHEMA,
        "key": made.key,
        **_questions(pairs, rejected),
        "rows": len(pairs) + len(rejected),
        "pairs": len(pairs),
        "pairs_by_task": _counts(pairs, "task"),
        "teachers": sorted(pairs.names["teacher"].texts),
        "rejected": {
            "total": len(rejected),
            "by_reason": _counts(rejected, "reason"),
            "by_reason_and_mode": _reasons(rejected),
        },
        "agreement": _agreement(pairs),
        "right": _right(pairs),
        "reasoning_length": _reasoning_length(pairs),
        "tokenizer": tokenizer,
        "modes": {mode: _mode_stats(mode, pairs, rejected) for mode in MODES},
        "cost_usd": {
            **cost,
            "per_pair": cost["total"] / len(pairs) if len(pairs) and cost["total"] is not None else None,
        },
        "projection": None if projected_questions is None else _projection(pairs, rejected, projected_questions),
    }


def _questions(pairs: Rows, rejected: Rows) -> dict[str, Any]:
    """How many questions, and how often each was asked and became a pair: {samples: questions}. A row that could not be
    read, or that repeats another one's question, is none."""
    places = np.concatenate([pairs.place, rejected.place[rejected.columns["is_question"]]])
    questions, asked = np.unique(places, return_counts=True)
    kept = np.bincount(np.searchsorted(questions, pairs.place), minlength=len(questions))
    return {
        "questions": len(questions),
        "distinct_prompts": pc.count_distinct(pairs.ids).as_py(),
        "samples_per_question": {str(k): v for k, v in sorted(Counter(asked.tolist()).items())},
        "pairs_per_question": {str(k): v for k, v in sorted(Counter(kept.tolist()).items())},
    }


def _counts(rows: Rows, column: str) -> dict[str, int]:
    codes, texts = rows.columns[column], rows.names[column].texts
    found = np.bincount(codes[codes != UNKNOWN], minlength=len(texts))
    return {texts[code]: int(n) for code, n in enumerate(found) if n}


def _reasons(rejected: Rows) -> dict[str, dict[str, int]]:
    """{reason: {mode that had it, or "row": rows}}"""
    reasons, modes = rejected.names["reason"].texts, [*rejected.names["mode"].texts, "row"]  # UNKNOWN is the last
    found = Counter(zip(rejected.columns["reason"].tolist(), rejected.columns["mode"].tolist(), strict=True))
    table: dict[str, dict[str, int]] = {}
    for (reason, mode), n in sorted(found.items()):
        table.setdefault(reasons[reason], {})[modes[mode]] = n
    return table


def _agreement(pairs: Rows) -> dict[str, Any]:
    """Whether both modes say the same: of all pairs, and by answer format; `same_text` counts those that do literally."""
    agree, same, formats = pairs.columns["agree"], pairs.columns["same_text"], pairs.columns["answer_format"]

    def of(rows: np.ndarray) -> dict[str, Any]:
        return {**share(agree[rows], pairs.place[rows]), "same_text": int(same[rows].sum())}

    texts = pairs.names["answer_format"].texts
    by_format = {text: of(formats == code) for code, text in enumerate(texts)}
    return {**of(np.full(len(pairs), True)), "by_format": by_format}


def _right(pairs: Rows) -> dict[str, int]:
    """Of the pairs whose answers were both judged: who was right."""
    reasoning, ift = (pairs.sides[mode].verified for mode in MODES)
    table = {"both": (1, 1), "only_reasoning": (1, 0), "only_ift": (0, 1), "neither": (0, 0)}
    return {name: int(((reasoning == r) & (ift == i)).sum()) for name, (r, i) in table.items()}


def _reasoning_length(pairs: Rows) -> dict[str, Any]:
    """Of reasoning that led to a verified answer, and of that which did not."""
    side = pairs.sides["reasoning"]
    counted = bool((side.reasoning_tokens != UNKNOWN).all())
    values = side.reasoning_tokens if counted else side.reasoning_characters
    return {
        "unit": "tokens" if counted else "characters",
        "verified": lengths(values[side.verified == 1]),
        "not_verified": lengths(values[side.verified == 0]),
    }


def _mode_stats(mode: Mode, pairs: Rows, rejected: Rows) -> dict[str, Any]:
    kept, unused = pairs.sides[mode], rejected.sides[mode]
    cut_off, ended, places = (
        np.concatenate([a, b])
        for a, b in (
            (kept.cut_off, unused.cut_off),
            (kept.answered, unused.answered),
            (pairs.place, rejected.place),
        )
    )
    judged = kept.verified != UNKNOWN
    return {
        "answers": int(ended.sum()),
        "truncated": share(cut_off[ended], places[ended]),
        "refused": _reasons(rejected).get("refused", {}).get(mode, 0),
        "tokens": _tokens(kept, unused),
        "characters": _parts(kept.reasoning_characters, kept.answer_characters),
        "verified": share(kept.verified[judged] == 1, pairs.place[judged]),
        "verdicts": _verdicts(kept, pairs.names["verdict"].texts),
        "cost_usd": _cost([kept, unused]),
        **_extremes(kept, pairs),
    }


def _parts(reasoning: np.ndarray, answer: np.ndarray) -> dict[str, Any] | None:
    if len(reasoning) == 0:
        return None
    return {"reasoning": lengths(reasoning), "answer": lengths(answer), "output": lengths(reasoning + answer)}


def _tokens(kept: Side, unused: Side) -> dict[str, Any] | None:
    """Of the pairs, by part; and what was paid for in all, rejected answers included."""
    known = (kept.reasoning_tokens != UNKNOWN) & (kept.answer_tokens != UNKNOWN)
    if not known.any():
        return None
    return {
        "unknown": int((~known).sum()),
        "prompt": lengths(kept.prompt_tokens[kept.prompt_tokens != UNKNOWN]),
        **_parts(kept.reasoning_tokens[known], kept.answer_tokens[known]),
        "all": {
            "prompt": _sum(kept.prompt_tokens, unused.prompt_tokens),
            "output": _sum(*(a for s in (kept, unused) for a in (s.reasoning_tokens, s.answer_tokens))),
        },
    }


def _sum(*columns: np.ndarray) -> int:
    return sum(exact_sum(column[column != UNKNOWN]) for column in columns)


def _verdicts(side: Side, texts: list[str]) -> list[dict[str, Any]]:
    """The most frequent kinds of verdict and what they were taken for."""
    kinds, counts = np.unique(side.verdict.astype(np.int64) * 3 + side.verified, return_counts=True)
    found = [(n, *divmod(kind + 1, 3)) for kind, n in zip(kinds.tolist(), counts.tolist(), strict=True)]
    label = {2: True, 1: False, 0: None}  # 1, 0 and UNKNOWN, with 1 added to be divided
    listed = sorted((entry for entry in found if entry[1:] != (UNKNOWN, 0)), key=lambda entry: (-entry[0], entry[1:]))
    return [
        {"verdict": None if code == UNKNOWN else texts[code], "verified": label[verified], "count": n}
        for n, code, verified in listed[:_VERDICTS]
    ]


def _extremes(side: Side, pairs: Rows) -> dict[str, Any]:
    """The longest and the shortest outputs, the earlier of equal ones first."""
    output = side.reasoning_tokens + side.answer_tokens
    counted = bool(((side.reasoning_tokens != UNKNOWN) & (side.answer_tokens != UNKNOWN)).all())
    if not counted:
        output = side.reasoning_characters + side.answer_characters

    def some(order: np.ndarray) -> list[dict[str, Any]]:
        return [
            {"row": int(i), "id": pairs.ids[int(i)].as_py(), "sample": int(pairs.sample[i]), "length": int(output[i])}
            for i in order[:_EXTREMES]
        ]

    return {
        "length_unit": "tokens" if counted else "characters",
        "longest": some(np.argsort(-output, kind="stable")),
        "shortest": some(np.argsort(output, kind="stable")),
    }


def _cost(sides: list[Side]) -> dict[str, Any]:
    """What these traces cost: None where that is known of none, or of none but those that are free; `unknown` counts
    traces without a price."""
    costs = np.concatenate([side.cost_usd[side.there] for side in sides])
    known = costs[~np.isnan(costs)]
    total, unknown = float(known.sum()), len(costs) - len(known)
    return {"total": total if total or not unknown else None, "unknown": unknown}


def _projection(pairs: Rows, rejected: Rows, n: int) -> dict[str, Any]:
    not_asked = [code for code, text in enumerate(rejected.names["reason"].texts) if text == "not_asked"]
    left_out = rejected.place[np.isin(rejected.columns["reason"], not_asked)]
    places = np.concatenate([pairs.place, rejected.place])
    sides = [(pairs.sides[mode], rejected.sides[mode]) for mode in MODES]
    amounts = {"pairs": np.concatenate([np.ones(len(pairs)), np.zeros(len(rejected))])}
    answered = [np.concatenate([s.answered for s in side]) for side in sides]
    for name, parts in {
        "prompt_tokens": ("prompt_tokens",),
        "output_tokens": ("reasoning_tokens", "answer_tokens"),
        "cost_usd": ("cost_usd",),
    }.items():
        amounts[name] = np.zeros(len(places))
        for side, there in zip(sides, answered, strict=True):
            for part in parts:
                values = np.concatenate([getattr(s, part) for s in side])
                values = values if part == "cost_usd" else np.where(values == UNKNOWN, np.nan, values)
                # An answer of unknown size leaves the sum unknown; a request that failed came to nothing, and so did a
                # gold answer.
                amounts[name] += np.where(there, values, np.nan_to_num(values))
    is_question = np.concatenate([np.ones(len(pairs), dtype=bool), rejected.columns["is_question"]])
    asked = is_question & ~np.isin(places, left_out)
    questions, question = np.unique(places[asked], return_inverse=True)
    known = [name for name, values in amounts.items() if len(questions) and not np.isnan(values[asked]).any()]
    found: dict[str, Any] = dict.fromkeys(amounts)
    if known:
        totals = np.stack([np.bincount(question, weights=amounts[name][asked]) for name in known], axis=1)
        for name, *values in zip(known, *project(totals, n), strict=True):
            found[name] = {
                key: None if np.isnan(x) else float(x) for key, x in zip(("value", "low", "high"), values, strict=True)
            }
    about = {"questions": n, "from_questions": len(questions), "confidence": CONFIDENCE, "assumption": _ASSUMPTION}
    return {**about, **found}


def _token_counter(name: str) -> Callable[[list[str]], list[int]]:
    from distill.traces.vocabulary import load_tokenizer

    tokenizer = load_tokenizer(name)

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    return count
