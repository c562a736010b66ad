"""How the pages read results: any part may be missing; and the colour and mark of everything that was scored."""

import re
from collections.abc import Callable
from typing import Any

from distill.report.blocks import Cell, Key
from distill.report.numbers import compact, fixed, percent, times

MOST_PANELS = 6  # of one figure; beyond that a reader wants a summary, and the rest as data
ALL = "all"  # the mean over tasks

_ARM_COLOUR = {"base": "grey", "ift": "blue", "reasoning": "orange", "mixed": "purple", "sequential": "green"}
_KIND_COLOUR = {"teacher": "gold", "base": "grey", "router": "ink", "oracle": "ink"}
_SIZE_MARK = ("disc", "square", "diamond", "triangle", "wedge")
FORMAT = {"open": "open-ended", "choice": "multiple choice", "labels": "labels", "extraction": "extraction"}


def pick(value: Any, *keys: str) -> Any:
    """The nested entry of a mapping, or None where any part of the way is missing: a failed cell has no results."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def entries(results: dict) -> list[dict]:
    """Everything that was scored: the cells, and what stands beside them."""
    return [*results["cells"], *(results.get("comparators") or [])]


def analysis(results: dict, name: str) -> list[dict]:
    """One list of `results["analysis"]`, empty where there is none."""
    found = pick(results, "analysis", name)
    return [entry for entry in found if isinstance(entry, dict)] if isinstance(found, list) else []


def colour(entry: dict | None) -> str:
    """The colour of a cell's arm; `mixed:0.25` and `mixed:0.5` share one. A majority has that of its voters."""
    if (kind := pick(entry, "kind")) in _KIND_COLOUR:
        return _KIND_COLOUR[kind]
    return _ARM_COLOUR.get(arm_family(entry), "gold")


def arm_family(entry: dict | None) -> str:
    return str(pick(entry, "arm")).split(":")[0]


def marks(cells: list[dict]) -> dict[str, str]:
    """A mark for each size, the smallest first."""
    return {size: _SIZE_MARK[min(i, len(_SIZE_MARK) - 1)] for i, size in enumerate(sizes(cells))}


def sizes(cells: list[dict]) -> dict[str, float | None]:
    """The sizes with their parameters, the smallest first."""
    ordered = sorted(cells, key=lambda cell: cell.get("parameters") or 0)
    return {cell["size"]: cell.get("parameters") for cell in ordered}


def size_keys(cells: list[dict]) -> list[Key]:
    return [Key(f"{size} students", "ink", mark) for size, mark in marks(cells).items()]


def rates(cell: dict) -> list[float]:
    """The peak learning rates of a cell's students, each once."""
    found = cell.get("learning_rate")
    return sorted({rate for rate in (found if isinstance(found, list) else [found]) if rate})


def judged_by(task: dict) -> str:
    """The metric that stands for a task in one picture: that of its verdict, or else accuracy where it has that."""
    names = task.get("metrics") or ["accuracy"]
    if task.get("metric") in names:
        return str(task["metric"])
    return "accuracy" if "accuracy" in names else names[0]


def metric_name(metric: str) -> str:
    return {"accuracy": "accuracy", "macro_f1": "Macro F1", "rouge_l": "ROUGE-L"}.get(metric, metric)


def ends(value: dict) -> tuple[float, float, float]:
    """Value, low, high; without an interval both ends are the value."""
    centre = value["value"]
    low, high = value.get("low"), value.get("high")
    return centre, centre if low is None else low, centre if high is None else high


def with_interval(value: dict | None, write: Callable[[float | None], str] = percent) -> Cell:
    low, high = pick(value, "low"), pick(value, "high")
    note = f"[{write(low)}, {write(high)}]".replace("×", "") if low is not None and high is not None else ""
    return Cell(write(pick(value, "value")), note)


def typeset(sentence: str) -> str:
    """A sentence of the results with the signs that the page writes."""
    sentence = re.sub(r"(?<![\w.-])-(?=\d)", "−", sentence)
    return re.sub(r"(?<![\w.-])(\d[\d.]*)x(?![\w-])", r"\1×", re.sub(r"(?<=\d)%", "\u00a0%", sentence))


def in_line(cell: Cell) -> str:
    return f"{cell.text} {cell.note}".rstrip()


def generated(tokens: dict | None) -> float | None:
    """Thinking and answer tokens together."""
    parts = [pick(tokens, "thinking"), pick(tokens, "answer")]
    return None if None in parts else sum(parts)


def factor(contrast: dict, name: str) -> Cell:
    """How many times the control's tokens or FLOPs an answer of the treatment takes."""
    return with_interval(contrast.get(f"{name}_factor_interval") or {"value": contrast.get(f"{name}_factor")}, times)


def parameters(value: float | None) -> str:
    """How many, as people write them: 127k, 500M, 1.5B."""
    return compact(value).replace(" ", "").replace("G", "B")


def p_value(value: float | None) -> str:
    return "<0.001" if value is not None and value < 0.001 else fixed(value, 3)


def confidence(results: dict) -> str:
    return f"{percent(results.get('confidence'), 0)}\u00a0%"


def of_contrast(contrast: dict) -> tuple[str, str]:
    """Treatment and control as the preset names them: without the size."""
    size = f"{contrast.get('size')}-"
    sides = (str(contrast.get(side)) for side in ("treatment", "control"))
    treatment, control = (side.removeprefix(size) for side in sides)
    return treatment, control


def sides_of(contrast: dict) -> tuple[object, list]:
    """The ids of the treatment and of its control; of the students around its cost, where that is the control."""
    return contrast.get("treatment"), [one.get("cell") for one in around(contrast)] or [contrast.get("control")]


def around(contrast: dict) -> list[dict]:
    """The students around the treatment's cost, where they are its control; none elsewhere."""
    found = pick(contrast.get("at_equal_cost"), "students")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def primary(results: dict) -> list[dict]:
    """The contrasts that decide a verdict."""
    return [contrast for contrast in results.get("contrasts") or [] if contrast.get("primary")]


def decided_on(results: dict) -> set:
    """The ids of all that a verdict compares."""
    return {name for c in primary(results) for treatment, controls in [sides_of(c)] for name in (treatment, *controls)}


def decides(results: dict, entry: dict) -> bool:
    """Whether an entry of the analysis is of the contrast that decides its task's verdict, in any size."""
    names = (entry.get("treatment"), entry.get("control"))
    return any(of_contrast(c) == names for c in primary(results))
