"""What `distill study plan` says in a terminal: stages first, then cells, memory, and what it can show."""

from collections.abc import Iterator
from typing import Any

from distill import console
from distill.evaluation.table import print_table
from distill.report.numbers import DASH, compact, count, fixed, usd
from distill.report.text import visible

_STAGES = ("stage", "", "jobs", "done", "trained\ntokens", "generated\ntokens", "FLOPs", "device\ntime", "$")
_CELLS = (
    "cell",
    "tokens",
    "seeds",
    "examples",
    "tokens",
    "supervised",
    "FLOPs",
    "answer\ntokens",
    "train",
    "serve",
    "$",
)
_MEMORY = ("size", "shape from", "parameters", "train\nGiB", "serve\nGiB", "device\nGiB", "devices")
_POWER = ("contrast", "size", "task", "questions", "seeds", "± points", "margin")
_ACTUAL = ("cell", "stage", "students", "tokens\nplanned", "tokens", "ratio", "seconds\nplanned", "seconds", "ratio")


def show_plan(plan: dict[str, Any]) -> None:
    """On standard output; what is assumed or not known on standard error."""
    out = f" in {plan['out']}" if plan["out"] else ""
    print_table(f"{plan['title']}{out}, on {plan['hardware']}", _STAGES, [list(_stages(plan))])
    if any(one["training"] for one in plan["cells"]):
        print_table("a student of each cell", _CELLS, _by_size(plan["cells"], _cell))
    seen: dict[str, dict[str, Any]] = {}
    for one in plan["cells"]:
        if one["memory"]:
            most = seen.setdefault(one["size"], one)
            if one["memory"]["training"]["total_gib"] > most["memory"]["training"]["total_gib"]:
                seen[one["size"]] = one
    if seen:
        print_table(
            "memory of a device, of the cell that needs most", _MEMORY, [[_memory(one) for one in seen.values()]]
        )
    if plan["detectable"]:
        print_table("the smallest difference this can show", _POWER, [[_power(one) for one in plan["detectable"]]])
    if plan["actual"]:
        print_table("planned beside what it took", _ACTUAL, [[_actual(one) for one in plan["actual"]]])
    console.out.print(visible(_total(plan)), markup=False, soft_wrap=True)
    for line in [*_assumed(plan), *plan["notes"]]:
        console.note(visible(line))


def duration(seconds: float | None) -> str:
    """
    >>> duration(42.3), duration(90), duration(7200), duration(None)
    ('42 s', '1.5 min', '2.0 h', '–')
    """
    if seconds is None:
        return DASH
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{fixed(seconds / 60)} min" if seconds < 3600 else f"{fixed(seconds / 3600)} h"


def _stages(plan: dict[str, Any]) -> Iterator[list[str]]:
    for one in plan["stages"]:
        numbers = (one["tokens"], one["generated_tokens"], one["flops"])
        yield [
            one["stage"],
            "",
            count(one["jobs"]),
            count(one["done"]),
            *(DASH if value == 0 else compact(value) for value in numbers),
            duration(one["device_seconds"]),
            usd(one["usd"]),
        ]


def _by_size(cells: list[dict[str, Any]], row: Any) -> list[list[list[str]]]:
    sizes = dict.fromkeys(one["size"] for one in cells)
    return [[row(one) for one in cells if one["size"] == size] for size in sizes]


def _cell(one: dict[str, Any]) -> list[str]:
    training, seconds, money = one["training"], one["seconds"], one["usd"]
    if training is None:
        return [one["id"], "unknown", count(len(one["seeds"])), *[DASH] * 8]
    answers = sum(b["answers"] for b in one["generation"] if b["what"] == "graded")
    generated = sum(b["generated_tokens"] for b in one["generation"] if b["what"] == "graded")
    known = [money.get(name) for name in ("train", "serve")]
    return [
        one["id"],
        training["source"],
        count(len(one["seeds"])),
        compact(training["examples"]),
        compact(training["tokens"]),
        compact(training["supervised_tokens"]),
        compact(training["flops"]),
        fixed(generated / answers) if answers else DASH,
        duration(seconds.get("train")),
        duration(seconds.get("serve")),
        usd(None if None in known else sum(known)),
    ]


def _memory(one: dict[str, Any]) -> list[str]:
    training, serving = one["memory"]["training"], one["memory"]["serving"]
    mark = lambda need: fixed(need["total_gib"]) + ("" if need["fits"] else " !")  # noqa: E731
    return [
        one["size"],
        one["shape_from"],
        compact(one["parameters"]),
        mark(training),
        mark(serving),
        fixed(training["device_gib"]),
        count(one["devices"]),
    ]


def _power(one: dict[str, Any]) -> list[str]:
    contrast = f"{one['treatment']} - {one['control']}"
    numbers = [count(one["questions"]), count(one["seeds"]), fixed(one["points"]), fixed(one["margin_points"])]
    return [contrast, one["size"], one["task"], *numbers]


def _actual(one: dict[str, Any]) -> list[str]:
    unit = "tokens" if one["stage"] == "train" else "generated_tokens"
    parts = []
    whole = one["actual"].get("stage_seconds") is not None
    for name in (unit, "stage_seconds" if whole else "seconds"):
        planned, actual, ratio = (one[part].get(name) for part in ("planned", "actual", "ratio"))
        form = compact if name == unit else duration
        parts += [form(planned), form(actual), DASH if ratio is None else f"{ratio:.3f}"]
    return [one["cell"], one["stage"], count(one["students"]), *parts]


def _total(plan: dict[str, Any]) -> str:
    total = plan["total"]
    if total["device_seconds"] is None:
        return "still to do: how long it takes, and so what it costs, is not known"
    here = f", about {duration(total['wall_seconds_here'])} on this machine" if total["wall_seconds_here"] else ""
    money = usd(total["usd"]) + (" (an illustrative price)" if plan["priced"]["illustrative"] else "")
    return f"still to do: {duration(total['device_seconds'])} of one device{here}, {money}"


def _assumed(plan: dict[str, Any]) -> Iterator[str]:
    """What the numbers rest on."""
    for one in plan["traces"]:
        said = {
            "there": "there: tokens are counted",
            "made": "made for this plan: tokens are counted",
            "expected": "not there: tokens are as `expected_tokens` says",
            "unknown": "not there",
        }[one["source"]]
        pairs = f", {count(one['count'])} pairs" if one["count"] else ""
        yield f"traces {one['name']}{pairs}: {said}" + (f"; {one['note']}" if one["note"] else "")
    yield "answers are taken to be as long as the traces of the mode that their arm teaches"
    rates = plan["rates"]
    if rates["kind"] == "calibrated":
        yield f"seconds of {', '.join(rates['sizes'])}: by rates measured here (calibration.json)"
        rates = rates["otherwise"]
        yield "seconds of what was not measured, if anything: as below"
    yield (
        f"seconds: training at an assumed MFU of {rates['assumed_mfu']:.0%} of {compact(rates['peak_flops'], 'FLOP/s')}; "
        + (
            f"generation at an assumed {rates['assumed_share_of_roofline']:.0%} of the roofline"
            if rates["start_seconds"]
            else "generation is not known without --calibrate"
        )
    )
    if plan["detectable"]:
        by = plan["assumed"]
        yield (
            f"differences: two arms are taken to differ on {by['discordance']:.0%} of the questions, and training seeds to "
            f"scatter by {100 * by['seed_spread']:g} points; shown with {by['power']:.0%} power"
        )
