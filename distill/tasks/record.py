"""`record`: a business record in, a company name and two labels out. Extraction and labelling in one row.

    prompt     rec nova corp plan pro late 21 says please no cancel crash our
    reasoning  no cancel!,crash:tech,pro 15,21>15:risk
    answer     nova corp tech risk

The rules, in the order in which the reasoning applies them:
1. The message after `says` is five words. Exactly one keyword counts, and its category is the first label.
   Half of the messages also have a negated keyword of another category (`no cancel`), which must be ignored.
   The reasoning lists keywords as they come: `no cancel!` for an ignored one, `crash:tech` for the one that counts.
2. Each plan allows so many days of delay: basic 5, pro 15, max 25. More is `risk`, else `ok`:
   `pro 15,21>15:risk` or `pro 15,9<=15:ok`.
3. The answer is the company name as it stands in the record, the category and the second label.
"""

import math
from typing import Any

from distill.tasks.answers import final_answer
from distill.tasks.metrics import mean_f1, rouge_l
from distill.tasks.problem import Problem
from distill.tasks.procedural import ProceduralTask, mixed_radix
from distill.tasks.task import ACCURACY, Columns, Metric
from distill.tasks.verdict import Verdict

FIRST_WORDS = (
    *("nova", "acme", "orion", "delta", "zenith", "lumen", "cobalt", "maple"),
    *("terra", "vertex", "atlas", "ember", "quartz", "river", "summit", "pixel"),
)
SECOND_WORDS = ("corp", "labs", "group", "media", "foods", "works", "bank", "trade")
LATE_LIMITS = {"basic": 5, "pro": 15, "max": 25}
LATE_DAYS = range(1, 31)
CATEGORIES = {
    "tech": ("crash", "error", "login", "bug"),
    "billing": ("invoice", "refund", "charge", "price"),
    "churn": ("cancel", "leave", "quit", "switch"),
}
FILLERS = ("please", "our", "the", "we", "now", "again", "today", "help", "still", "just", "this", "asap")
RISKS = ("ok", "risk")
LABELS = tuple(f"{category} {risk}" for category in CATEGORIES for risk in RISKS)

_CATEGORY_OF = {keyword: category for category, keywords in CATEGORIES.items() for keyword in keywords}
_KEYWORDS = tuple(_CATEGORY_OF)
_PLANS = tuple(LATE_LIMITS)
# (keyword that counts, negated keyword of another category)
_KEYWORD_PAIRS = tuple((k, n) for k in _KEYWORDS for n in _KEYWORDS if _CATEGORY_OF[k] != _CATEGORY_OF[n])
_HEAD = (len(FIRST_WORDS), len(SECOND_WORDS), len(_PLANS), len(LATE_DAYS))
_PLAIN = (*_HEAD, len(_KEYWORDS), 5, *[len(FILLERS)] * 4)
_NEGATED = (*_HEAD, len(_KEYWORD_PAIRS), 4, 3, *[len(FILLERS)] * 2)


class Record(ProceduralTask):
    """Labels and a name from a templated business record."""

    name = "record"
    revision = "1"
    answer_format = "extraction"
    checker = "exact"
    strata = (math.prod(_PLAIN), math.prod(_NEGATED))

    def __init__(self) -> None:
        self.metrics = {
            "accuracy": ACCURACY,
            "macro_f1": Metric("macro_f1", rows=_label_row, value=_macro_f1),
            "rouge_l": rouge_l([]),
        }

    def prompt(self, stratum: int, index: int) -> str:
        first, second, plan, late, *rest = mixed_radix(index, *(_NEGATED if stratum else _PLAIN))
        if stratum:
            pair, keyword_place, negated_place, *fillers = rest
            keyword, negated = _KEYWORD_PAIRS[pair]
        else:
            keyword_index, keyword_place, *fillers = rest
            keyword = _KEYWORDS[keyword_index]
        message = [FILLERS[i] for i in fillers]
        if stratum:
            message.insert(negated_place, f"no {negated}")
        message.insert(keyword_place, keyword)
        return (
            f"rec {FIRST_WORDS[first]} {SECOND_WORDS[second]} plan {_PLANS[plan]} late {LATE_DAYS[late]} "
            f"says {' '.join(message)}"
        )

    def solve_prompt(self, prompt: str) -> tuple[str, str]:
        head, message = prompt.split(" says ")
        _, first, second, _, plan, _, late = head.split()
        steps, category, words = [], "", message.split()
        for before, word in zip(["", *words], words, strict=False):
            if word in _CATEGORY_OF and before == "no":
                steps.append(f"no {word}!")
            elif word in _CATEGORY_OF:
                category = _CATEGORY_OF[word]
                steps.append(f"{word}:{category}")
        limit = LATE_LIMITS[plan]
        risk = "risk" if int(late) > limit else "ok"
        steps += [f"{plan} {limit}", f"{late}{'>' if risk == 'risk' else '<='}{limit}:{risk}"]
        return ",".join(steps), f"{first} {second} {category} {risk}"


def _label(text: str) -> int:
    """Which of LABELS the last two words are; -1, a class of its own that is never right, when they are none."""
    label = " ".join(text.rsplit(maxsplit=2)[-2:])
    return LABELS.index(label) if label in LABELS else -1


def _label_row(problem: Problem, answer: str, verdict: Verdict) -> dict[str, float]:
    return {"gold_label": _label(problem.gold), "label": _label(final_answer(answer))}


def _macro_f1(columns: Columns, sample_weight: Any = None) -> Any:
    """Mean F1 over the labels that occur in the gold column, the same ones for every resample of it."""
    import numpy as np

    gold, found = (np.asarray(columns[name], dtype=int)[:, None] for name in ("gold_label", "label"))
    labels = np.unique(gold)
    return mean_f1(gold == labels, found == labels, sample_weight)
