"""`distill traces stats`: what is in a trace set, as numbers."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from distill import artifact
from distill.errors import InputError
from distill.tasks.answers import final_answer, final_number, option_letter
from distill.traces.store import KIND, MADE_BY, Rejected, read_pairs, read_rejected
from distill.traces.trace import MODES, Mode, Pair, Trace

_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)


def stats(path: Path, tokenizer: Path | None = None) -> dict[str, Any]:
    """Counts, lengths by mode, agreement, verified share and cost of the trace set in the folder `path`.

    Tokens are those that the teacher counted, or with `tokenizer` (a Hugging Face folder) those of that tokenizer;
    None where neither is there. Shares are None where nothing could be judged. A cost is "none" when the teacher
    costs nothing, None when it is not known, else US dollars, those of rejected rows included.
    Raises InputError for a folder that is no finished trace set.
    """
    made = artifact.read(path, KIND, made_by=MADE_BY)
    pairs, rejected = read_pairs(path), read_rejected(path)
    count = _token_counter(tokenizer) if tokenizer else None
    prompts = Counter((pair.problem.task, pair.problem.prompt) for pair in pairs)
    return {
        "key": made.key,
        "questions": len(pairs) + len(rejected),
        "pairs": len(pairs),
        "pairs_by_task": dict(Counter(pair.problem.task for pair in pairs)),
        "repeated_prompts": len(pairs) - len(prompts),
        "rejected": {
            "total": len(rejected),
            "by_reason": dict(Counter(row.reason for row in rejected)),
            "by_mode": dict(Counter(row.mode or "row" for row in rejected)),
        },
        "teachers": sorted({pair.trace(mode).teacher for pair in pairs for mode in MODES}),
        "agreement": _share([_agree(pair) for pair in pairs]),
        "modes": {mode: _mode_stats(mode, pairs, rejected, count) for mode in MODES},
    }


def _mode_stats(mode: Mode, pairs: list[Pair], rejected: list[Rejected], count: Any) -> dict[str, Any]:
    traces = [pair.trace(mode) for pair in pairs]
    verified = [trace.verified for trace in traces if trace.verified is not None]
    unused = [row.reasoning if mode == "reasoning" else row.ift for row in rejected]
    return {
        "characters": _lengths([(len(trace.reasoning), len(trace.answer)) for trace in traces]),
        "tokens": _lengths(_tokens(traces, count)),
        "verified": _share(verified),
        "judged": len(verified),
        "cost_usd": _cost([*traces, *(trace for trace in unused if trace)]),
    }


def _lengths(parts: list[tuple[int, int]] | None) -> dict[str, Any] | None:
    """Totals and percentiles of (reasoning, answer) lengths."""
    if not parts:
        return None
    reasoning, answer = np.asarray(parts, dtype=np.int64).T
    total = reasoning + answer
    return {
        "total": int(total.sum()),
        "reasoning": int(reasoning.sum()),
        "answer": int(answer.sum()),
        "mean": float(total.mean()),
        "percentiles": {f"p{p}": float(np.percentile(total, p)) for p in _PERCENTILES},
    }


def _tokens(traces: list[Trace], count: Callable[[list[str]], list[int]] | None) -> list[tuple[int, int]] | None:
    if count:
        reasoning = count([trace.reasoning for trace in traces])
        return list(zip(reasoning, count([trace.answer for trace in traces]), strict=True))
    counted = [(trace.reasoning_tokens, trace.answer_tokens) for trace in traces]
    return None if any(None in pair for pair in counted) else counted


def _token_counter(folder: Path) -> Callable[[list[str]], list[int]]:
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected a Hugging Face tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: no tokenizer in it ({str(error).splitlines()[0][:120]})") from None

    def count(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    return count


def _agree(pair: Pair) -> bool:
    """Whether both modes say the same: the same text, number (open questions) or option (multiple choice)."""
    one, other = pair.reasoning.answer, pair.ift.answer
    if final_answer(one) == final_answer(other):
        return True
    read = {"open": final_number, "choice": option_letter}.get(pair.problem.answer_format)
    return read is not None and read(one) is not None and read(one) == read(other)


def _share(flags: list[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _cost(traces: list[Trace]) -> float | str | None:
    costs = [trace.cost_usd for trace in traces]
    if None in costs:
        return None
    return sum(costs) or "none"
