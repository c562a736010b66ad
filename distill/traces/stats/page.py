"""The page of a trace set: what `stats` found, with plots, and the longest and shortest traces to look at."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill import artifact
from distill.errors import InputError
from distill.report.blocks import (
    Answer,
    Block,
    Card,
    Cards,
    Cell,
    Code,
    Example,
    Figure,
    Group,
    Key,
    Notice,
    Panel,
    Section,
    Table,
    Text,
)
from distill.report.histogram import Series, histogram
from distill.report.numbers import DASH, compact, count, fixed, percent, times, usd
from distill.report.page import render_page
from distill.report.text import shorten
from distill.traces.bill import GOLD
from distill.traces.faults import FAULTS
from distill.traces.layouts.names import IMPORTED, REASONING_REMOVED
from distill.traces.stats.text import AMOUNTS, range_text
from distill.traces.store import KIND, MADE_BY, pair_at
from distill.traces.trace import MODES, Mode, Pair

_KICKER = "distill traces stats"
_ROLE = {"reasoning": "orange", "ift": "blue"}
_AMOUNT_NAMES = dict(zip(AMOUNTS, ("Pairs", "Prompt tokens", "Output tokens", "Cost"), strict=True))
_MUCH_TRUNCATED = 0.05
_PARTS = ("reasoning", "answer", "output")


def write_page(traces: Path, file: Path, found: dict[str, Any]) -> None:
    """Write the page of the set in the folder `traces`, of which `stats` found `found`. Raises InputError when the file
    cannot be written, or is no page that was made here."""
    artifact.require_file_place(file)
    _require_own(file)
    artifact.write_atomic(file, render(traces, found))


def _require_own(file: Path) -> None:
    if file.is_file() and _KICKER not in file.read_text(encoding="utf-8", errors="replace"):
        raise InputError(f"{file}: exists and is no page of `distill traces stats`; choose another --html")


def render(traces: Path, found: dict[str, Any]) -> str:
    """The page as HTML; every text of the set is escaped by the renderer."""
    recipe = artifact.read(traces, KIND, made_by=MADE_BY).recipe
    sections = [
        Section("What is there", _overview(found)),
        Section("Lengths", _lengths(found)),
        Section("Answers", _answers(found)),
        Section("Not usable", _rejected(found)),
        Section("Cost", _costs(found)),
        Section(
            "The longest and the shortest",
            _extremes(traces, found),
            lead="Where something is wrong with a teacher or its settings, it often shows at the ends.",
        ),
        Section(
            "How it was made",
            [Code(json.dumps(recipe, indent=2, sort_keys=True, ensure_ascii=False), "Settings", folded=True)],
        ),
    ]
    return render_page(
        _title(found),
        [section for section in sections if section.blocks],
        kicker=f"{_KICKER} · {found['key']}",
        lead=_lead(found),
    )


def _title(found: dict[str, Any]) -> str:
    """`120 pairs by Qwen3-32B`; whoever imported pairs may not have said whose they are."""
    names = [name for name in found["teachers"] if name != GOLD]
    if all(name in (IMPORTED, f"{IMPORTED}{REASONING_REMOVED}") for name in names):
        return f"{count(found['pairs'])} imported pairs" if names else f"{count(found['pairs'])} pairs"
    return f"{count(found['pairs'])} pairs by {', '.join(shorten(name, 60) for name in names)}"


def _lead(found: dict[str, Any]) -> str:
    samples = [int(n) for n in found["samples_per_question"]]
    text = _many(found["questions"], "question")
    if max(samples, default=1) > 1:
        text += f", {'up to ' if len(samples) > 1 else ''}{max(samples)} samples of each"
    unread = found["rejected"]["by_reason_and_mode"]
    rows = sum(unread.get(reason, {}).get("row", 0) for reason in ("malformed", "repeated"))
    return f"{text}, and {_many(rows, 'row')} that gave none." if rows else f"{text}."


def _many(n: int, name: str) -> str:
    return f"{count(n)} {name}{'' if n == 1 else 's'}"


def _overview(found: dict[str, Any]) -> list[Block]:
    unit, lengths = _unit(found)
    means = [lengths[mode] and lengths[mode]["output"]["mean"] for mode in MODES]
    truncated = [percent(found["modes"][mode]["truncated"]["value"]) for mode in MODES]
    cost = found["cost_usd"]
    pairs = [
        ("Questions", count(found["questions"])),
        ("With a pair", count(_with_pair(found))),
        ("Different prompts", count(found["distinct_prompts"])),
        *((shorten(task, 30), count(n)) for task, n in list(found["pairs_by_task"].items())[:6]),
    ]
    reasoning = [
        *((f"{unit.capitalize()}, {mode}", fixed(mean)) for mode, mean in zip(MODES, means, strict=True)),
        ("Truncated, % of answers", ", ".join(truncated)),
    ]
    price = [("A pair", usd(cost["per_pair"])), ("Answers of unknown price", count(cost["unknown"]))]
    cards = [
        Card("Pairs", count(found["pairs"]), _set_aside(found), pairs, "plain"),
        Card(
            "Reasoning",
            times(means[0] / means[1]) if all(means) else DASH,
            f"as many {unit} a trace with reasoning as without.",
            reasoning,
            "plain",
        ),
    ]
    if cost["total"] is not None:
        what = "for everything that was asked, set aside or not."
        cards.append(Card("Cost", usd(cost["total"]), what, price, "plain"))
    repeated = _with_pair(found) - found["distinct_prompts"]
    notices = [f"{count(repeated)} questions repeat the prompt of another."] if repeated > 0 else []
    notices += [
        f"{mode}: {text} % of the answers hit the token limit. What is left is shorter and easier than what was asked."
        for mode, text in zip(MODES, truncated, strict=True)
        if (found["modes"][mode]["truncated"]["value"] or 0) > _MUCH_TRUNCATED
    ]
    return [Cards(cards), *([Notice("Mind this.", notices)] if notices else [])]


def _set_aside(found: dict[str, Any]) -> str:
    return f"of {count(found['rows'])} rows; {count(found['rejected']['total'])} are set aside."


def _with_pair(found: dict[str, Any]) -> int:
    return found["questions"] - found["pairs_per_question"].get("0", 0)


def _unit(found: dict[str, Any]) -> tuple[str, dict[Mode, Any]]:
    """Tokens where both modes have them, else characters; and the lengths by mode."""
    for unit in ("tokens", "characters"):
        lengths = {mode: found["modes"][mode][unit] for mode in MODES}
        if all(lengths.values()):
            break
    return unit, lengths


def _lengths(found: dict[str, Any]) -> list[Block]:
    unit, lengths = _unit(found)
    if not all(lengths.values()):
        return [Text("No pair, no length.")]
    source = "" if unit == "characters" else f" of {found['tokenizer'] or 'the teacher'}"
    both = [(mode, lengths[mode]) for mode in MODES]
    blocks: list[Block] = [
        Figure(
            f"How long the parts of a trace are, in {unit}{source}",
            "Outlines of histograms with bins a quarter of an octave wide; the axis is logarithmic.",
            [
                _panel("Reasoning", unit, [("reasoning", lengths["reasoning"]["reasoning"])]),
                _panel("Answer", unit, [(mode, parts["answer"]) for mode, parts in both]),
                _panel("Whole output", unit, [(mode, parts["output"]) for mode, parts in both]),
            ],
            [row for mode, parts in both for part in _PARTS for row in _bins(mode, part, parts[part])],
            "lengths.csv",
            [Key(mode, _ROLE[mode], "bar") for mode in MODES],
        )
    ]
    groups = []
    for mode in MODES:
        rows = [
            [
                Cell(part, unit),
                count(values["total"]),
                fixed(values["mean"]),
                *(count(value) for value in values["percentiles"].values()),
            ]
            for unit in ("tokens", "characters")
            for part in ("prompt", *_PARTS)
            if (values := (found["modes"][mode][unit] or {}).get(part)) and values["total"]
        ]
        groups += [Group(rows, f"Mode {mode}")] if rows else []
    columns = ["Part", "Total", "Mean", *(f"{p[1:]} %" for p in lengths["ift"]["output"]["percentiles"])]
    blocks.append(Table("Lengths of the pairs' traces, with percentiles", columns, groups))
    return blocks


def _panel(title: str, unit: str, series: list[tuple[str, dict[str, Any]]], roles: dict[str, str] = _ROLE) -> Panel:
    medians = ", ".join(f"{name} {compact(values['percentiles']['p50'])}" for name, values in series)
    drawn = [
        Series(values["histogram"]["edges"], values["histogram"]["counts"], roles[name], dashed=i > 0)
        for i, (name, values) in enumerate(series)
    ]
    return histogram(drawn, title=title, description=f"{title}: medians in {unit}: {medians}", x_label=unit)


def _bins(series: str, part: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    edges, counts = values["histogram"]["edges"], values["histogram"]["counts"]
    return [
        {"series": series, "part": part, "from": low, "below": high, "count": n}
        for (low, high), n in zip(pairwise(edges), counts, strict=True)
    ]


def _answers(found: dict[str, Any]) -> list[Block]:
    modes = found["modes"]
    rows = [["Both modes agree", *_share(found["agreement"])]]
    rows += [[f"– {name}", *_share(value)] for name, value in found["agreement"]["by_format"].items()]
    rows += [[f"Verified, {mode}", *_share(modes[mode]["verified"])] for mode in MODES]
    blocks: list[Block] = [
        Table(
            "Shares with 95 % intervals; questions are the unit",
            ["", Cell("Share", "%"), Cell("Interval", "%"), "Count", "Of"],
            [Group(rows)],
        )
    ]
    judged = sum(found["right"].values())
    if judged:
        listed = [
            [name.replace("_", " ").capitalize(), count(n), percent(n / judged)] for name, n in found["right"].items()
        ]
        blocks.append(Table("Who is right, of pairs judged in both modes", ["", "Pairs", "%"], [Group(listed)]))
    groups = [
        Group(
            [
                [
                    shorten(entry["verdict"] or DASH, 60),
                    {True: "yes", False: "no", None: "undecided"}[entry["verified"]],
                    count(entry["count"]),
                ]
                for entry in modes[mode]["verdicts"]
            ],
            mode,
        )
        for mode in MODES
        if modes[mode]["verdicts"]
    ]
    if groups:
        blocks.append(Table("What the checkers said", ["Verdict", "Verified", "Traces"], groups))
    length = found["reasoning_length"]
    series = [(name, length[key]) for name, key in (("verified", "verified"), ("not verified", "not_verified"))]
    series = [(name, values) for name, values in series if values]
    if len(series) == 2:
        roles = {"verified": "green", "not verified": "purple"}
        medians = ", ".join(f"{name} {count(values['percentiles']['p50'])}" for name, values in series)
        blocks.append(
            Figure(
                "Reasoning that led to a verified answer, and reasoning that did not",
                f"Medians in {length['unit']}: {medians}.",
                [_panel("Reasoning", length["unit"], series, roles)],
                [row for name, values in series for row in _bins(name, "reasoning", values)],
                "verified.csv",
                [Key(name, roles[name], "bar") for name, _ in series],
            )
        )
    return blocks


def _share(share: dict[str, Any]) -> list[str]:
    interval = DASH if share["low"] is None else f"[{percent(share['low'])}, {percent(share['high'])}]"
    return [percent(share["value"]), interval, count(share["count"]), count(share["of"])]


def _rejected(found: dict[str, Any]) -> list[Block]:
    rows = [
        [mode, *_share(found["modes"][mode]["truncated"]), count(found["modes"][mode]["refused"])] for mode in MODES
    ]
    columns = ["Mode", Cell("Cut off", "% of answers"), Cell("Interval", "%"), "Cut off", "Answers", "Refused"]
    blocks: list[Block] = [Table("Answers that hit the token limit or were refused", columns, [Group(rows)])]
    table = found["rejected"]["by_reason_and_mode"]
    if table:
        order = sorted(table, key=lambda reason: -sum(table[reason].values()))
        listed = [
            [
                Cell(shorten(reason, 40), FAULTS.get(reason, "")),
                *(count(table[reason].get(mode, 0)) for mode in (*MODES, "row")),
                count(sum(table[reason].values())),
            ]
            for reason in order
        ]
        columns = ["Reason", *MODES, Cell("Row", "in no mode"), "Total"]
        blocks.append(Table("Rows set aside, by the mode that had the fault", columns, [Group(listed)]))
    return blocks


def _costs(found: dict[str, Any]) -> list[Block]:
    modes = found["modes"]
    rows = [
        [
            mode,
            *(count(((modes[mode]["tokens"] or {}).get("all") or {}).get(part)) for part in ("prompt", "output")),
            usd(modes[mode]["cost_usd"]["total"]),
            count(modes[mode]["cost_usd"]["unknown"]),
        ]
        for mode in MODES
    ]
    columns = ["Mode", "Prompt tokens", "Output tokens", "Cost", Cell("Unknown", "answers without a price")]
    blocks: list[Block] = [Table("All that was asked, set aside or not", columns, [Group(rows)])]
    projection = found["projection"]
    if projection:
        listed = [[_AMOUNT_NAMES[name], range_text(projection[name], name)] for name in AMOUNTS]
        title = f"{count(projection['questions'])} further questions, from {count(projection['from_questions'])}"
        blocks += [
            Table(title, ["", Cell("Expected", "95 % interval")], [Group(listed)]),
            Text(f"Assuming {projection['assumption']}.", muted=True),
        ]
    return blocks


def _extremes(traces: Path, found: dict[str, Any]) -> list[Block]:
    groups, shown = [], {}
    for mode in MODES:
        side = found["modes"][mode]
        for which in ("longest", "shortest"):
            rows = [[entry["id"], count(entry["sample"]), count(entry["length"])] for entry in side[which]]
            groups += [Group(rows, f"{mode}, {which}, in {side['length_unit']}")] if rows else []
            if side[which]:
                shown.setdefault(side[which][0]["row"], []).append(f"{which} {mode}")
    examples = [_example(pair_at(traces, row), ", ".join(labels)) for row, labels in shown.items()]
    return [Table("By id", ["Question", "Sample", "Length"], groups), *examples] if groups else []


def _example(pair: Pair, label: str) -> Example:
    answers = [
        Answer(
            mode,
            (trace := pair.trace(mode)).reasoning,
            trace.answer,
            {True: "right", False: "wrong", None: "unjudged"}[trace.verified],
            trace.verdict or "",
            _ROLE[mode],
        )
        for mode in MODES
    ]
    return Example(f"{label} · {pair.problem.id}", pair.problem.prompt, pair.problem.gold, answers)
