"""profile.html and compare.html: what an answer costs, under which load, and how that was measured."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill import artifact
from distill.evaluation.serving.table import BUSY_CLIENT, lateness
from distill.evaluation.serving.words import in_words, limits_in_words, objective_in_words
from distill.report.blocks import Block, Cell, Code, Facts, Figure, Group, Key, KeyValues, Notice, Section, Table, Text
from distill.report.curves import Curve, curves
from distill.report.factors import Factor, FactorGroup, factors
from distill.report.numbers import DASH, compact, count, fixed, percent, signed, times, usd
from distill.report.page import render_page
from distill.report.text import shorten

_NAME = 60  # characters of a student's or a task's name
_STYLES = (("orange", "disc"), ("green", "triangle"), ("purple", "diamond"), ("gold", "disc"))
_LAST = ("blue", "square")
_PLOTS = (
    ("Answers and the wait for them", "answers a second", "s", "e2e_s", lambda m: m["answers_per_s"]),
    ("Tokens and the time for each", "output tokens a second", "s a token", "tpot_s", lambda m: _rate(m)),
    ("Answers and the wait for the first token", "answers a second", "s", "ttft_s", lambda m: m["answers_per_s"]),
)
Levels = Sequence[tuple[str, dict[str, Any]]]  # the name of a load, and what was measured under it


def write_profile_page(file: Path, result: dict[str, Any], *, student: str, kicker: str) -> None:
    """profile.html from profile.json, whole or not at all."""
    artifact.write_atomic(file, profile_page(result, student=student, kicker=kicker))


def write_compare_page(file: Path, result: dict[str, Any], *, kicker: str) -> None:
    """compare.html from compare.json, whole or not at all."""
    artifact.write_atomic(file, compare_page(result, kicker=kicker))


def profile_page(result: dict[str, Any], *, student: str, kicker: str) -> str:
    """The page of one student under load."""
    sections = []
    for task, found in result["tasks"].items():
        levels = [(level["load"]["name"], level) for level in found["levels"]]
        blocks: list[Block] = [*_notices([("", levels)], found.get("stopped"))]
        blocks += [Text(line) for line in _found_lines(found.get("found"))]
        blocks.append(_curves(_by_shape(levels), f"{task}.csv"))
        blocks += [_tokens_table([("", levels)]), _cost_table([("", levels)], result["price"])]
        blocks += [_latency_table([("", levels)]), *_server_table([("", levels)])]
        sections.append(Section(shorten(task, _NAME), blocks))
    first = next(iter(result["tasks"].values()))
    facts = [_server_facts(result), _price_facts(result["price"]), _client_facts(first.get("client"))]
    sections.append(
        Section(
            "How it was measured",
            [
                Text(_METHOD),
                *_no_energy([level for found in result["tasks"].values() for level in found["levels"]]),
                KeyValues([f for f in facts if f]),
                Code(_json(first["settings"]), "Settings", folded=True),
            ],
        )
    )
    name = shorten(student, _NAME)
    return render_page(f"{name}: what an answer costs", sections, kicker=kicker, lead=_LEAD)


def compare_page(result: dict[str, Any], *, kicker: str) -> str:
    """The page of two students in turns."""
    names = [shorten(c["name"], _NAME) for c in result["contenders"]]
    reference, sections = result["reference"], []
    every: list[tuple[str, Levels]] = []
    for task, found in result["tasks"].items():
        said = [
            Text(f"At {level['load']['name']}: {in_words(who, reference, f)}.")
            for level in found["levels"]
            for who, f in level["factors"].items()
        ]
        if found["objective"] is not None:
            said += [
                Text(f"{line[0].upper()}{line[1:]}.") for line in objective_in_words(found["objective"], reference)
            ]
        series = [
            (
                name,
                [
                    (level["load"]["name"], level["contenders"][name] | {"load": level["load"]})
                    for level in found["levels"]
                ],
            )
            for name in (c["name"] for c in result["contenders"])
        ]
        every += series
        blocks: list[Block] = [
            *_notices(series),
            *said,
            _decomposition(task, found, reference),
            _factor_table(found, reference),
        ]
        blocks += [_curves(series, f"{task}.csv"), _tokens_table(series), _cost_table(series, _priced(result))]
        blocks += _objective_table(found["objective"])
        blocks += [_latency_table(series), *_server_table(series)]
        sections.append(Section(shorten(task, _NAME), blocks))
    sections.append(
        Section(
            "How it was measured",
            [
                Text(
                    "The students answered the same questions in turns: in every round each load was put on each of "
                    "them, in the opposite order of the round before, while the servers of the others had nothing to "
                    f"do. {_METHOD}"
                ),
                Text(
                    "Intervals are at 95 % over questions and rounds, both paired. They speak of these trained "
                    "students on this machine: no training seed was drawn.",
                ),
                *_no_energy([one for _, levels in every for _, one in levels]),
                KeyValues([f for f in (*_contender_facts(result), _client_facts(result["client"])) if f]),
                Code(_json(result["settings"]), "Settings", folded=True),
            ],
        )
    )
    title = f"{', '.join(names[:-1])} against {names[-1]}: what an answer costs"
    return render_page(title, sections, kicker=kicker, lead=_LEAD)


_LEAD = (
    "Seconds are those of the machine, which works on several answers at once, not those a client waits. Unfinished "
    "answers are paid for and wrong."
)
_METHOD = (
    "Before and after the measured requests of a load others keep the server as busy; they are left out. Tokens are "
    "counted from token ids; an answer's seconds are its tokens over the rate at which tokens came in the steady part."
)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _rate(measured: dict[str, Any]) -> float | None:
    return (measured["output_tokens_per_s"] or {}).get("value")


def _decomposition(task: str, found: dict[str, Any], reference: str) -> Figure:
    panels, data = [], []
    for who in next(iter(found["levels"]))["factors"]:
        groups = []
        for level in found["levels"]:
            f = level["factors"][who]
            seconds = f["seconds"]
            parts = [
                ("tokens of an answer", f["token_factor"], False),
                ("seconds of a token", seconds["per_token_factor"], False),
                ("seconds of an answer", seconds["cost_factor"], True),
                ("share of right answers", f["correct_factor"], False),
                ("seconds of a right one", seconds["cost_factor_per_correct"], True),
            ]
            rows = [Factor(label, p["value"], p["low"], p["high"], None, total) for label, p, total in parts if p]
            groups.append(FactorGroup(level["load"]["name"], rows))
            data += [
                {"student": who, "load": level["load"]["name"], "factor": row.label, "value": row.value}
                | {"low": row.low, "high": row.high}
                for row in rows
            ]
        panels.append(
            factors(
                groups,
                title=f"{shorten(who, _NAME)} over {shorten(reference, _NAME)}",
                description=f"How many times dearer an answer of {who} to {task} is than one of {reference}, taken apart.",
                x_label="times",
            )
        )
    return Figure(
        "Where the difference comes from",
        "Tokens of an answer times seconds of a token are the seconds of an answer; over the ratio of right answers "
        "they are those of a right one. Lines are 95 % intervals.",
        panels,
        data,
        f"{task}-factors.csv",
    )


def _factor_table(found: dict[str, Any], reference: str) -> Table:
    groups = []
    others = [u for u in ("usd", "joules") if all(f[u] for one in found["levels"] for f in one["factors"].values())]
    for level in found["levels"]:
        rows = []
        for who, f in level["factors"].items():
            rows.append(
                [
                    shorten(who, _NAME),
                    _times(f["token_factor"]),
                    _times(f["seconds"]["per_token_factor"]),
                    _times(f["seconds"]["cost_factor"]),
                    _times(f["seconds"]["cost_factor_per_correct"]),
                    *(_times(f[unit]["cost_factor_per_correct"]) for unit in others),
                    _points(f["metrics"].get("accuracy")),
                    _per_point(f["metrics"].get("accuracy")),
                ]
            )
        groups.append(Group(rows, title=level["load"]["name"]))
    columns = [
        "",
        Cell("Tokens", "an answer"),
        Cell("Seconds", "a token"),
        Cell("Seconds", "an answer"),
        Cell("Seconds", "a right one"),
        *(Cell("$" if unit == "usd" else "Joules", "a right one") for unit in others),
        Cell("Right answers", "points more"),
        Cell("Seconds more", "a point, 1,000 answers"),
    ]
    return Table(f"Times those of {shorten(reference, _NAME)}", columns, groups)


def _times(part: dict[str, float | None] | None) -> Cell:
    if part is None or part["value"] is None:
        return Cell(DASH)
    return Cell(times(part["value"]), _ends(part, times))


def _ends(part: dict[str, float | None], written: Any) -> str:
    if part["low"] is None and part["high"] is None:
        return ""
    return f"{written(part['low'])} to {written(part['high'])}"


def _points(metric: dict[str, Any] | None) -> Cell:
    if metric is None:
        return Cell(DASH)
    value, low, high = (100 * metric["difference"][name] for name in ("value", "low", "high"))
    return Cell(signed(value), f"{signed(low)} to {signed(high)}")


def _per_point(metric: dict[str, Any] | None) -> Cell:
    found = metric and metric["per_added_point"]["seconds"]
    if not found:
        return Cell(DASH)
    if found["value"] is None:
        return Cell(DASH, found["reason"] or "")
    thousand = lambda value: compact(value and 1000 * value)  # noqa: E731
    return Cell(thousand(found["value"]), _ends(found, thousand) or found["reason"] or "")


def _by_shape(levels: Levels) -> list[tuple[str, Levels]]:
    """Loads that a line may join: those of one shape, from the least to the most."""
    shapes = {"replay": "a recorded trace", "open": "open loop, so many requests a second"}
    shapes["closed"] = "closed loop, so many clients"
    found = []
    for kind, name in shapes.items():
        mine = [one for one in levels if one[1]["load"]["kind"] == kind]
        size = lambda one: one[1]["load"].get("concurrency") or one[1]["load"].get("rate") or 0  # noqa: E731
        found += [(name, sorted(mine, key=size))] if mine else []
    return found


def _styles(series: Sequence[tuple[str, Levels]]) -> list[tuple[str, str, str]]:
    """(name, colour, mark); the last of several is the one that the others are held against."""
    styles = [_STYLES[i % len(_STYLES)] for i in range(len(series) - 1)] + [_LAST]
    return [(name, *style) for (name, _), style in zip(series, styles, strict=True)]


def _curves(series: Sequence[tuple[str, Levels]], file_name: str) -> Figure:
    panels, data = [], []
    styles = _styles(series)
    for title, x_label, unit, key, x_of in _PLOTS:
        drawn = []
        for (_, role, mark), (_, levels) in zip(styles, series, strict=True):
            for part, dashed in (("p50", False), ("p90", True)):
                points = [
                    (x_of(one["measured"]), one["measured"][key][part], _short(one))
                    for _, one in levels
                    if x_of(one["measured"]) and one["measured"][key] and one["measured"][key][part] > 0
                ]
                drawn.append(Curve([(x, y, "" if dashed else at) for x, y, at in points], role, mark, dashed))
        panels.append(
            curves(
                drawn,
                title=title,
                description=f"{title}: {x_label} against seconds, a point for every load.",
                x_label=x_label,
                y_label=f"{unit}, p50 and p90",
            )
        )
    for name, levels in series:
        for load, one in levels:
            m = one["measured"]
            row = {"curve": name, "load": load, "answers_per_s": m["answers_per_s"], "output_tokens_per_s": _rate(m)}
            for key in ("ttft_s", "tpot_s", "e2e_s"):
                row |= {f"{key}_{part}": (m[key] or {}).get(part) for part in ("p50", "p90", "p99")}
            data.append(row)
    legend = [Key(shorten(name, _NAME), role, mark) for name, role, mark in styles if name]
    legend.append(Key("p90", "muted", "line"))
    return Figure(
        "Throughput and latency",
        "Every point is a load, named by its concurrency or its requests a second (/s). Up is slower, right is more.",
        panels,
        data,
        file_name,
        legend,
    )


def _short(level: dict[str, Any]) -> str:
    load = level.get("load") or {}
    if load.get("kind") == "open":
        return f"{load['rate']:.3g}/s"
    return str(level.get("concurrency") or load.get("concurrency") or "")


def _table(caption: str, columns: Sequence[str | Cell], series: Sequence[tuple[str, Levels]], row: Any) -> Table:
    groups = [
        Group([[load, *row(level)] for load, level in levels], title=shorten(name, _NAME) if name else "")
        for name, levels in series
    ]
    return Table(caption, ["", *columns], groups)


def _tokens_table(series: Sequence[tuple[str, Levels]]) -> Table:
    def row(level: dict[str, Any]) -> list[str | Cell]:
        tokens, cost = level["tokens"]["per_answer"], level["measured"]["cost"] or {}
        share = cost.get("correct_share")
        right = Cell(percent(share["value"]), _ends(share, percent)) if share else Cell(DASH)
        return [
            count(level["completed"]),
            fixed(tokens["thinking"]),
            fixed(tokens["answer"]),
            right,
            count(level["unfinished"]),
            count(level["failed"]),
        ]

    columns = ["Answers", Cell("Thinking", "tokens each"), Cell("Answer", "tokens each"), Cell("Right", "%")]
    return _table("Answers", [*columns, "Unfinished", "Failed requests"], series, row)


def _cost_table(series: Sequence[tuple[str, Levels]], price: dict[str, Any] | None) -> Table:
    fixed_too = bool(price and price["answers_per_month"])
    units = {"seconds": compact, "usd": _mille, "joules": compact}
    costs = [level["measured"]["cost"] for _, levels in series for _, level in levels]
    units = {u: written for u, written in units.items() if any(cost and cost["per_answer"][u] for cost in costs)}

    def row(level: dict[str, Any]) -> list[str | Cell]:
        m = level["measured"]
        cost = m["cost"] or {}
        cells: list[str | Cell] = [_part(m["output_tokens_per_s"], compact)]
        for unit, written in units.items():
            for per in ("per_answer", "per_correct"):
                cells.append(_part((cost.get(per) or {}).get(unit), written))
        if fixed_too:
            amortised = cost.get("amortised") or {}
            cells += [_part((amortised.get(per) or {}).get("usd"), _mille) for per in ("per_answer", "per_correct")]
        return cells

    columns: list[str | Cell] = [Cell("Tokens", "a second")]
    for unit in units:
        each = ("1,000 answers", "1,000 right ones") if unit == "usd" else ("an answer", "a right one")
        columns += [Cell("$" if unit == "usd" else unit.capitalize(), one) for one in each]
    if fixed_too:
        columns += [Cell("$, all costs", "1,000 answers"), Cell("$, all costs", "1,000 right ones")]
    return _table("What answers cost, with 95 % intervals", columns, series, row)


def _mille(value: float | None) -> str:
    return DASH if value is None else usd(1000 * value)


def _part(part: dict[str, float | None] | None, written: Any) -> Cell:
    if part is None:
        return Cell(DASH)
    if part["value"] is None:
        return Cell(DASH, f"at least {written(part['low'])}" if part["low"] is not None else "")
    return Cell(written(part["value"]), _ends(part, written))


def _latency_table(series: Sequence[tuple[str, Levels]]) -> Table:
    goodputs = [level["measured"].get("goodput") for _, levels in series for _, level in levels]
    judged = next((goodput["objective"] for goodput in goodputs if goodput), None)

    def row(level: dict[str, Any]) -> list[str | Cell]:
        cells = []
        for key in ("ttft_s", "ttfat_s", "tpot_s", "e2e_s"):
            found = level["measured"][key]
            cells.append(
                Cell(DASH)
                if found is None
                else Cell(_ms(found["p50"]), f"p90 {_ms(found['p90'])}, p99 {_ms(found['p99'])}")
            )
        goodput = level["measured"].get("goodput")
        if goodput:
            cells.append(Cell(percent(goodput["share"]), f"{compact(goodput['answers_per_s'])} answers/s"))
        elif judged:
            cells.append(Cell(DASH))
        return [*cells, percent(level["measured"].get("client_share"))]

    columns = [Cell("First token", "ms"), Cell("First answer token", "ms"), Cell("Each token", "ms")]
    columns += [Cell("Whole answer", "ms"), *([Cell("Within the objective", "%")] if judged else [])]
    columns += [Cell("Clients", "% of their most")]
    within = f"; the objective is {limits_in_words(judged)}" if judged else ""
    return _table(f"Latency: medians{within}", columns, series, row)


def _ms(seconds: float) -> str:
    return fixed(1000 * seconds, 1 if seconds < 0.1 else 0)


def _server_table(series: Sequence[tuple[str, Levels]]) -> list[Table]:
    """What the servers said of themselves, where one does."""
    if not any(level["measured"]["server"] for _, levels in series for _, level in levels):
        return []

    def row(level: dict[str, Any]) -> list[str]:
        server = level["measured"]["server"] or {}
        seconds = [server.get(f"{name}_s_mean") for name in ("queue", "prefill", "decode", "inter_token")]
        use = level["measured"].get("utilisation") or {}
        return [
            *(DASH if s is None else _ms(s) for s in seconds),
            percent((server.get("kv_cache_usage") or {}).get("max")),
            count(server.get("prefix_cache_hit_tokens")),
            count(server.get("preemptions")),
            percent(use.get("mfu")),
            percent(use.get("memory_bandwidth")),
        ]

    columns = [Cell(name, "ms, mean") for name in ("Queue", "Prefill", "Decode", "Each token")]
    columns += [Cell("KV cache", "%, most"), Cell("Prefix hits", "tokens"), "Preemptions"]
    columns += [Cell("MFU", "%"), Cell("Memory", "% of bandwidth")]
    rows = [row(level) for _, levels in series for _, level in levels]
    known = [i for i in range(len(columns)) if any(cells[i] != DASH for cells in rows)]
    return [
        _table(
            "What the server measured itself" if len(series) == 1 else "What the servers measured themselves",
            [columns[i] for i in known],
            series,
            lambda level: [row(level)[i] for i in known],
        )
    ]


def _objective_table(found: dict[str, Any] | None) -> list[Table]:
    if found is None:
        return []
    rows = []
    for name, one in found["contenders"].items():
        m = one["measured"]
        cost = m["cost"] or {}
        rows.append(
            [
                shorten(name, _NAME),
                _part(m["answers_per_s"], compact),
                Cell(
                    ", ".join(compact(rate) for rate in m["rates"]) or DASH, "" if m["limited"] else "none is too high"
                ),
                *(_part((cost.get(per) or {}).get("seconds"), compact) for per in ("per_answer", "per_correct")),
                *(_part((cost.get(per) or {}).get("usd"), _mille) for per in ("per_answer", "per_correct")),
            ]
        )
    limits = limits_in_words(found["objective"])
    columns = ["", Cell("Answers", "a second"), Cell("Rates", "requests/s, each round"), Cell("Seconds", "an answer")]
    columns += [Cell("Seconds", "a right one"), Cell("$", "1,000 answers"), Cell("$", "1,000 right ones")]
    return [Table(f"At the highest rate at which 95 % of the answers keep {limits}", columns, [Group(rows)])]


def _found_lines(found: dict[str, Any] | None) -> list[str]:
    """What the search of a profile came to."""
    if not found:
        return []
    most, lines = found["saturation"], []
    if most["concurrency"] is not None:
        reached = "Saturated by" if most["reached"] else "Not saturated by"
        lines.append(
            f"{reached} {compact(most['output_tokens_per_s'])} tokens a second, "
            f"{compact(most['answers_per_s'])} answers a second, at concurrency {most['concurrency']}."
        )
    if (rate := found["highest_rate"]) and (rate["rate"] or rate["failed_at"]):
        kept = (
            f"{compact(rate['rate'])} requests a second keep it" if rate["rate"] else "no rate that was tried keeps it"
        )
        missed = f"; {compact(rate['failed_at'])} do not" if rate["failed_at"] else ""
        lines.append(f"The objective: {kept}{missed}.")
    ended = found["ended"]
    return [*lines, f"{ended[0].upper()}{ended[1:]}."] if ended else lines


def _notices(series: Sequence[tuple[str, Levels]], stopped: str | None = None) -> list[Notice]:
    items = [f"The server was gone before the end: {stopped}"] if stopped else []
    for name, levels in series:
        who = f"{shorten(name, _NAME)}, " if name else ""
        for load, level in levels:
            if level["failed"]:
                reason = next(iter(level["errors"]), "")
                items.append(f"{who}{load}: {level['failed']} of {level['requests']} requests failed ({reason}).")
            share = level["measured"].get("client_share") or 0
            if share > BUSY_CLIENT:
                items.append(
                    f"{who}{load}: the clients were at {percent(share, 0)} % of what they can do: they may be what was "
                    "measured."
                )
            if late := lateness(level):
                items.append(f"{who}{load}: {late}.")
    return [Notice("Mind this.", items)] if items else []


def _no_energy(levels: Sequence[dict[str, Any]]) -> list[Text]:
    """Why there are no joules, once."""
    energy = [(level["measured"].get("energy") or {}).get("reason") for level in levels]
    return [Text(f"Energy: {reason}.") for reason in dict.fromkeys(energy) if reason]


def _priced(result: dict[str, Any]) -> dict[str, Any] | None:
    prices = [c["price"] for c in result["contenders"]]
    return prices[0] if None not in prices else None


def _price_facts(price: dict[str, Any] | None, title: str = "Price") -> Facts | None:
    if price is None:
        return None
    paid = price["fixed_usd"]
    items = [
        ("hardware", f"{price['hardware']}, {price['devices']} devices" if price["devices"] > 1 else price["hardware"]),
        ("$ an hour", f"{usd(price['usd_per_hour_of_a_device'])}{' (illustrative)' if price['illustrative'] else ''}"),
        ("threads", DASH if price["threads"] is None else str(price["threads"])),
        ("$ a second", usd(price["usd_per_second"])),
    ]
    if price["answers_per_month"]:
        items += [(f"paid once: {name}", usd(value)) for name, value in paid.items()]
        months = f"{price['months']:g} month{'' if price['months'] == 1 else 's'}"
        items.append(("over answers", f"{count(price['answers_per_month'])} a month, {months}"))
    return Facts(title, items)


def _contender_facts(result: dict[str, Any]) -> list[Facts]:
    found = []
    for c in result["contenders"]:
        price = _price_facts(c["price"], shorten(c["name"], _NAME))
        budget = "none" if c["thinking_budget"] is None else f"{count(c['thinking_budget'])} tokens"
        items = [("student", c["student"]), ("thinking budget", budget), *_argument_facts(c)]
        items += price.items if price else ()
        found.append(Facts(shorten(c["name"], _NAME), items))
    return [*found, _server_facts(result)]


def _server_facts(result: dict[str, Any]) -> Facts:
    """What answered, and on what."""
    endpoint = result.get("endpoint") or {}
    items = [("engine", result.get("engine")), ("dtype", result.get("dtype")), *(result.get("machine") or {}).items()]
    items += [("endpoint", endpoint.get("url")), ("model", endpoint.get("model")), *_argument_facts(result)]
    return Facts("Server", [(name, str(value)) for name, value in items if value is not None])


def _argument_facts(served: dict[str, Any]) -> list[tuple[str, str]]:
    return [("arguments", shlex.join(served["arguments"]))] if served.get("arguments") else []


def _client_facts(client: dict[str, Any] | None) -> Facts | None:
    if client is None:
        return None
    m = client["measured"]
    return Facts(
        "The most that the clients reach",
        [
            ("processes", str(client["processes"])),
            ("at concurrency", str(client["concurrency"])),
            ("tokens a second", compact(m["tokens_per_s"])),
            ("answers a second", compact(m["answers_per_s"])),
        ],
    )
