"""A comparison in a few sentences, for the terminal and the head of its page."""

from pathlib import Path
from typing import Any

from distill import artifact, console
from distill.report.numbers import fixed, signed
from distill.report.text import visible


def show_comparison(folder: Path) -> None:
    """compare.json in a few lines on standard output; what failed on standard error."""
    result = artifact.read_json(folder / "compare.json")
    for name, task in result["tasks"].items():
        for level in task["levels"]:
            for who, factors in level["factors"].items():
                _say(f"{name} at {level['load']['name']}: {in_words(who, result['reference'], factors)}")
            failed = {who: c["failed"] for who, c in level["contenders"].items() if c["failed"]}
            for who, number in failed.items():
                console.note(visible(f"{name} at {level['load']['name']}: {number} requests to {who} failed"))
        if task["objective"] is not None:
            for line in objective_in_words(task["objective"], result["reference"]):
                _say(f"{name}: {line}")
    _say(f"page: {folder / 'compare.html'}")


def _say(line: str) -> None:
    console.out.print(visible(line), markup=False, soft_wrap=True)


def in_words(name: str, reference: str, factors: dict[str, Any]) -> str:
    """What `factors` of a level says, as a sentence."""
    seconds = factors["seconds"]
    text = (
        f"{name}'s answers are {times(factors['token_factor'])} as long as {reference}'s, each token costs "
        f"{times(seconds['per_token_factor'])}: {times(seconds['cost_factor'])} an answer"
    )
    if seconds["cost_factor_per_correct"] is not None:
        text += f", {times(seconds['cost_factor_per_correct'])} a correct one"
    elif "accuracy" in factors["metrics"]:
        accuracy = factors["metrics"]["accuracy"]
        none = [who for who, right in ((name, accuracy["value"]), (reference, accuracy["reference"])) if not right]
        text += f" (none of {' and '.join(none)} is right)" if none else ""
    if "accuracy" in factors["metrics"]:
        value, low, high = (
            signed(100 * factors["metrics"]["accuracy"]["difference"][n]) for n in ("value", "low", "high")
        )
        text += f"; {value} [{low}, {high}] points of right answers"
    return text


def objective_in_words(found: dict[str, Any], reference: str) -> list[str]:
    """What `objective` says, a line for every contender but the reference."""
    limits = limits_in_words(found["objective"])
    rates = {who: one["measured"]["answers_per_s"] for who, one in found["contenders"].items()}
    none = [who for who, rate in rates.items() if rate is None]
    lines = [f"within {limits}: no rate keeps it with {who}" for who in none]
    unlimited = [who for who, one in found["contenders"].items() if rates[who] and not one["measured"]["limited"]]
    lines += [
        f"within {limits}: a search met no rate that is too high for {who}; the best closed loop's is taken there"
        for who in unlimited
    ]
    for who, factors in found["factors"].items():
        lines.append(
            f"within {limits}: {who} takes {fixed(rates[who]['value'], 2)} answers/s, {reference} "
            f"{fixed(rates[reference]['value'], 2)}: {times(factors['cost_factor'])} an answer"
            + (
                f", {times(factors['cost_factor_per_correct'])} a correct one"
                if factors["cost_factor_per_correct"] is not None
                else ""
            )
        )
    return lines


def limits_in_words(objective: dict[str, float]) -> str:
    """
    >>> limits_in_words({"ttft_s": 0.5, "e2e_s": 2.0})
    'TTFT 0.5 s, E2E 2 s'
    """
    return ", ".join(f"{name.removesuffix('_s').upper()} {limit:g} s" for name, limit in objective.items())


def times(part: dict[str, float | None]) -> str:
    """A factor with its interval.

    >>> times({"value": 9.72, "low": 9.5, "high": 9.94}), times({"value": 0.981, "low": None, "high": None})
    ('9.7x [9.5, 9.9]', '0.98x')
    """
    digits = lambda value: 1 if abs(value) >= 2 else 2  # noqa: E731
    value, low, high = part["value"], part["low"], part["high"]
    text = f"{fixed(value, digits(value))}x"
    if low is None and high is None:
        return text
    ends = ["-" if end is None else fixed(end, digits(value)) for end in (low, high)]
    return f"{text} [{ends[0]}, {ends[1]}]"
