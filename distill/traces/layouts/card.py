"""The data card of a Hub-ready folder: what is in it, how it was made, what to mind; the licence is the user's to choose.

What is said of the making comes from the recipes in the manifest, of this set and of those it was made from. Places on
this machine and addresses are left out.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml

from distill import artifact
from distill.report.numbers import DASH, count, percent, usd
from distill.report.text import shorten
from distill.traces.faults import FAULTS
from distill.traces.stats.stats import stats
from distill.traces.stats.text import length_text, share_text
from distill.traces.store import KIND, MADE_BY
from distill.traces.trace import MODES

_COLUMNS = {
    "prompt": "the question",
    "reasoning": "the answer with its reasoning: `<think>...</think>`, then the answer",
    "ift": "the answer to the same question without reasoning",
    "gold": "the given answer; empty where there is none",
    "task": "where the question comes from",
    "id": "task and hash of the prompt: the same question has the same id",
    "sample": "which of several pairs of one question",
    "answer_format": "open, choice, labels or extraction",
    "reasoning_teacher": "who wrote the answer with reasoning",
    "reasoning_verified": "whether a checker accepts it; empty where none judged it",
    "reasoning_verdict": "which checker, and what it said",
    "ift_teacher": "who wrote the answer without reasoning",
    "ift_verified": "whether a checker accepts it; empty where none judged it",
    "ift_verdict": "which checker, and what it said",
    "reasoning_tokens": "tokens of the reasoning, counted by the teacher",
    "reasoning_answer_tokens": "tokens of the answer after it",
    "ift_tokens": "tokens of the answer without reasoning",
}
_FEATURES = {pa.string(): "string", pa.int32(): "int32", pa.int64(): "int64", pa.bool_(): "bool"}
_SIZES = ((1e3, "n<1K"), (1e4, "1K<n<10K"), (1e5, "10K<n<100K"), (1e6, "100K<n<1M"), (1e7, "1M<n<10M"))
_LEFT_OUT = {"version", "files", "source", "source_recipe", "prices"}  # of a step: hashes, and what is said elsewhere


def card(traces: Path, *, columns: dict[str, pa.DataType], pairs: int, keep: str, files: int) -> str:
    """README.md for `pairs` pairs of the set in the folder `traces`, kept by `keep`, in so many Parquet files."""
    made, found = artifact.read(traces, KIND, made_by=MADE_BY), stats(traces)
    steps = _chain(made.recipe)
    return f"""---
{_header(columns, pairs)}
# license: not chosen. See "License" below, then add a line such as `license: cc-by-4.0` here.
---

# Paired reasoning traces

{count(pairs)} pairs: each question answered {_by(found["teachers"])}, once with reasoning and once without. A student
trained on one answer or the other sees the same questions, so that a difference between two students is one of reasoning.

```python
from datasets import load_dataset

pairs = load_dataset("path/to/this/folder", split="train")  # or OWNER/NAME, once it is on the Hub
```

## Columns

{_table(["column", "holds"], [[f"`{name}`", _COLUMNS[name]] for name in columns])}

## How it was made

{_steps(steps)}

{"Only pairs of which both answers were verified are here." if keep == "verified" else _all_kept(found)}
Trace set `{made.key}`; {count(files)} Parquet file{"s" if files > 1 else ""} in `data/`.

## Numbers

Of the whole trace set: {count(found["pairs"])} pairs of {count(found["questions"])} questions. Shares have 95 % intervals;
lengths are total; median; 95th percentile.

{_numbers(found)}

- Both modes say the same: {share_text(found["agreement"])}.
- Who is right, of the pairs judged in both modes: {_right(found["right"])}.
- Cost of everything, what was set aside included: {usd(found["cost_usd"]["total"])}; {DASH} is not known, $0 is free.

{_rejected(found)}

## Limits

- A model wrote these answers, or they come from the data that was imported. They can be wrong, and a wrong answer can
  follow convincing reasoning. `*_verified` says what a checker accepts, not what is true.
- Questions whose answers were cut off or faulty are missing in both modes. What is left is easier and shorter than what
  was asked.
- Texts are as they were written, not filtered for harmful, private or biased content unless a step above says so.
- Before a score on an evaluation set is trusted, check that its questions are not among these.

## License

None is chosen here. Whoever publishes this has to: the licence of the questions and the terms of the teacher model both
say what is allowed.
"""


def _header(columns: dict[str, pa.DataType], pairs: int) -> str:
    features = [{"name": name, "dtype": _FEATURES[kind]} for name, kind in columns.items()]
    about = {
        "pretty_name": "Paired reasoning traces",
        "task_categories": ["text-generation"],
        "tags": ["reasoning", "distillation", "synthetic"],
        "size_categories": [next((name for limit, name in _SIZES if pairs < limit), "n>10M")],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
        "dataset_info": {"features": features},
    }
    return yaml.safe_dump(about, sort_keys=False, allow_unicode=True).strip()


def _chain(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The recipes from the first step to this one."""
    steps = [recipe]
    while isinstance(origin := steps[-1].get("source_recipe"), dict):
        steps.append(origin)
    return steps[::-1]


def _steps(steps: list[dict[str, Any]]) -> str:
    parts = []
    for number, recipe in enumerate(steps, start=1):
        shown = _public({name: value for name, value in recipe.items() if name not in _LEFT_OUT})
        text = json.dumps(shown, indent=2, sort_keys=True, ensure_ascii=True)
        parts.append(f"{number}. {_what(recipe)}\n\n```json\n{text}\n```")
    return "\n\n".join(parts)


def _what(recipe: dict[str, Any]) -> str:
    if "step" in recipe:
        return f"Step {_code(recipe['step'])} of `distill traces`."
    teacher = recipe.get("teacher")
    if isinstance(teacher, dict):
        revision = f", revision {_code(teacher['revision'])}" if teacher.get("revision") else ""
        return f"Answers generated by {_code(teacher.get('name'))}{revision}."
    return "Answers imported from a file." if "layout" in recipe else "Made by `distill traces`."


def _public(value: Any) -> Any:
    """A setting without prices, places of this machine and addresses."""
    if isinstance(value, dict):
        return {name: _public(part) for name, part in value.items() if not name.startswith("usd_per")}
    if isinstance(value, list):
        return [_public(part) for part in value]
    if isinstance(value, str) and (":/" in value or ":\\" in value or value.startswith(("/", "~", "./", "../"))):
        return "(left out: a place)"
    return value


def _numbers(found: dict[str, Any]) -> str:
    modes = found["modes"]
    rows = [
        [name, *(write(modes[mode]) for mode in MODES)]
        for name, write in (
            ("verified", lambda mode: share_text(mode["verified"])),
            ("cut off by the token limit", lambda mode: share_text(mode["truncated"])),
            ("tokens of reasoning", lambda mode: length_text((mode["tokens"] or {}).get("reasoning"))),
            ("tokens of the answer", lambda mode: length_text((mode["tokens"] or {}).get("answer"))),
            ("characters in all", lambda mode: length_text((mode["characters"] or {}).get("output"))),
            ("cost", lambda mode: usd(mode["cost_usd"]["total"])),
        )
    ]
    return _table(["", *MODES], rows)


def _rejected(found: dict[str, Any]) -> str:
    reasons = found["rejected"]["by_reason"]
    if not reasons:
        return "No row was set aside."
    total = found["rejected"]["total"]
    rows = [
        [_code(reason), FAULTS.get(reason, DASH), count(n), f"{percent(n / total)} %"]
        for reason, n in sorted(reasons.items(), key=lambda item: -item[1])
    ]
    return "Rows that were set aside, in both modes:\n\n" + _table(["reason", "what was found", "rows", "share"], rows)


def _all_kept(found: dict[str, Any]) -> str:
    judged = any(found["modes"][mode]["verified"]["of"] for mode in MODES)
    return "Right and wrong answers are here; choose by `*_verified`." if judged else "No answer was verified."


def _right(right: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count(n)}" for name, n in right.items())


def _by(teachers: list[str]) -> str:
    return "by " + " and ".join(_code(name) for name in teachers[:4]) if teachers else "twice"


def _table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: Any) -> str:
    """A text of the set in Markdown, where nothing in it can act."""
    return "`" + shorten(str(text).replace("`", "'").replace("|", "/"), 80) + "`"
