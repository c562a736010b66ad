"""A trace set that a command made, in a few lines for a person: pairs, what was set aside, the bill, who is right."""

from collections import Counter
from typing import Any

import pyarrow.compute as pc

from distill import console
from distill.artifact import Artifact
from distill.report.numbers import count, fixed, percent, usd
from distill.report.text import shorten, visible
from distill.traces.faults import FAULTS
from distill.traces.store import PAIRS, iter_columns
from distill.traces.trace import MODES

_EXAMPLES = 3  # of what is better seen than counted; the JSON has more


def show_set(made: Artifact) -> None:
    """Print it to standard output. The JSON has every number."""
    summary = made.summary
    set_aside = summary["rejected"]
    rows = sum(set_aside.values()) + summary["pairs"]
    of = [_many(rows, "row")] if set_aside else []
    of += [_many(summary["questions"], "question")] if summary.get("questions", rows) != rows else []
    _say(f"{made.path}: {_many(summary['pairs'], 'pair')}" + (f" of {', '.join(of)}" if of else ""))
    for reason, number in set_aside.items():
        _say(f"  set aside: {count(number)} {reason} ({FAULTS.get(reason, 'of an unknown kind')})")
    if summary.get("ift") == "reasoning removed":
        _say("  no answer without reasoning is a teacher's own: each is the answer with reasoning, without it")
    if "top_k" in summary:
        kept = summary["top_k"]
        _say(f"  log-probabilities: the {kept['k']} highest at each of {count(kept['tokens'])} tokens")
    if "verification" in summary:
        _show_verification(summary["verification"], summary["pairs"])
    else:
        _show_labels(made)
    for name, bill in summary.get("bill", {}).items():
        if bill.get("output_tokens") or bill.get("cost_usd"):
            _say(f"  {'paid for, and no answer' if name == 'failed' else name}: {_bill(bill)}")


def _bill(bill: dict[str, Any]) -> str:
    """`150 answers, 1,292 prompt tokens, 3,766 output tokens, $1.64`, of what is known."""
    parts = [_many(bill["answers"], "answer")]
    parts += [
        f"{count(bill[f'{name}_tokens'])} {name} tokens" for name in ("prompt", "output") if f"{name}_tokens" in bill
    ]
    return ", ".join(parts + ([usd(bill["cost_usd"])] if "cost_usd" in bill else []))


def _show_labels(made: Artifact) -> None:
    """How many answers are right, where they were graded as they came."""
    right, judged = Counter[str](), Counter[str]()
    for batch in iter_columns(made.path, PAIRS, [f"{mode}.verified" for mode in MODES]):
        for mode in MODES:
            labels = pc.struct_field(batch.column(mode), "verified")
            judged[mode] += len(labels) - labels.null_count
            right[mode] += labels.true_count
    for mode in MODES:
        if judged[mode]:
            _say(f"  right, {mode}: {_share(right[mode], judged[mode])}")


def _show_verification(found: dict[str, Any], pairs: int) -> None:
    """What `verify` put into the summary."""
    right = "the two modes agree" if found["against"] == "other-mode" else "right"
    if found["against"] == "gold":
        for mode in MODES:
            _say(f"  {right}, {mode}: {_share(found['verified'][mode], found['judged'][mode])}")
        right = "right in both modes"
    _say(f"  {right}: {_share(found['pairs_verified'], pairs)}; these are what --keep verified trains on")
    _say("  checked by: " + ", ".join(f"{name} ({count(number)})" for name, number in found["by_checker"].items()))
    for name, meaning in (
        ("without_gold", "pairs without a gold answer, which keep the label they had"),
        ("unreadable_gold", "answers called wrong because the checker cannot read the gold answer: another --checker?"),
        ("without_majority", "answers on which the judges have no majority"),
    ):
        if found.get(name):
            _say(f"  {count(found[name])} {meaning}")
    for reason, number in found["failures"].items():
        _say(f"  {count(number)} answers called wrong because checking them came to no end ({reason})")
    one_way = found["orders_disagree"]
    if one_way["answers"]:
        _say(f"  {count(one_way['answers'])} answers that math-verify accepts in one order only, such as")
        for example in one_way["examples"][:_EXAMPLES]:
            _say(
                f"    gold {shorten(example['gold'], 40)}, answer {shorten(example['answer'], 40)}: {example['verdict']}"
            )
    if "judges" in found:
        _show_judges(found["judges"])


def _show_judges(found: dict[str, Any]) -> None:
    for name, said in found["by_judge"].items():
        _say(f"  judge {name}: {percent(said['correct'])} % right, no word on {count(said['no_word'])}")
    if len(found["by_judge"]) > 1:
        _say(f"  judges unanimous: {percent(found['unanimous'])} %")
    for names, kappa in found["kappa"].items():
        _say(f"  Cohen's kappa, {names}: {fixed(kappa, 2)}")


def _many(n: int, name: str) -> str:
    return f"{count(n)} {name}{'' if n == 1 else 's'}"


def _share(number: int, of: int) -> str:
    return f"{count(number)} of {count(of)}" + (f" ({percent(number / of)} %)" if of else "")


def _say(line: str) -> None:
    console.out.print(visible(line), markup=False, soft_wrap=True)
