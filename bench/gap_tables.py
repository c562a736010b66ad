"""What a result of `distill bench gap` says: tables, and factors to be drawn."""

from typing import Any

from distill.bench.gap import ARMS
from distill.bench.spread import shown
from distill.report.factors import Factor, FactorGroup

PER = ("training example", "answer", "correct answer")  # what a factor is of
NONE = "-"
Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def gap_tables(result: dict[str, Any]) -> list[Table]:
    """What training took, what answers took, what reading the question and writing the answer took, and the factors."""
    levels = result["inference"]["levels"]
    tables = (_training(result["training"]), _answering(levels), _phases(levels), _factors(result))
    return [_without_empty(*table) for table in tables]


def gap_groups(result: dict[str, Any]) -> list[tuple[str, list[FactorGroup]]]:
    """(one of PER, factors to be drawn) for each that has any."""
    levels = result["inference"]["levels"]
    found = {
        PER[0]: [("", result["training"]["factor"])],
        PER[1]: [(_level(level), level["per_answer"]) for level in levels],
        PER[2]: [(_level(level), level["per_correct"]) for level in levels if level["per_correct"]],
    }
    return [(per, [_group(*named) for named in groups]) for per, groups in found.items() if groups]


def _group(title: str, factor: dict[str, Any]) -> FactorGroup:
    limits = lambda found: [found[key] for key in ("value", "low", "high")]  # noqa: E731
    modelled, measured, joules = factor["modelled"], factor["measured"], factor["joules"]
    names = (("tokens", "tokens"), ("per_token", "seconds per token"), ("cost", "cost"))
    drawn = [Factor(label, *limits(measured[n]), modelled[n], emphasis=n == "cost") for n, label in names]
    if joules:
        names = (("per_token", "joules per token"), ("cost", "cost in joules"))
        drawn += [Factor(label, *limits(joules[n]), emphasis=n == "cost") for n, label in names]
    return FactorGroup(title, drawn)


def _training(training: dict[str, Any]) -> Table:
    columns = ["training", "tok/example", "ms/example", "s/step", "tok/s", "supervised tok/s", "MFU", "peak GiB"]
    rows = []
    for arm in ARMS:
        found, m = training[arm], training[arm]["measured"]
        rows.append(
            [
                arm,
                f"{found['tokens_per_example']:.1f}",
                f"{m['seconds_per_example'] * 1e3:.2f}",
                f"{m['seconds_per_step']:.3f}",
                f"{m['tokens_per_second']:,.0f}",
                f"{m['supervised_tokens_per_second']:,.0f}",
                f"{m['mfu']:.1%}",
                f"{m['peak_memory_bytes'] / (1 << 30):.2f}",
                _number(m["joules_per_example"]),
            ]
        )
    return "packed training", [*columns, "J/example"], rows


def _answering(levels: list[dict[str, Any]]) -> Table:
    columns = ["answering", "correct", "unfinished", "tok/answer", "tok/s", "ms/answer", "ms/correct answer"]
    rows = []
    for level in levels:
        for arm in ARMS:
            found, m = level[arm], level[arm]["measured"]
            rows.append(
                [
                    f"{arm}, {_level(level)}",
                    f"{found['correct']} of {found['answers']}",
                    f"{found['unfinished']}",
                    f"{found['output_tokens']:.1f}",
                    f"{m['output_tokens_per_s']['value']:,.0f}",
                    *(_within(m[per]["seconds"], 1e3) for per in ("per_answer", "per_correct")),
                    *(_within(m[per]["joules"]) for per in ("per_answer", "per_correct")),
                    f"{m['mfu']:.2%}",
                    NONE if m["mfu_by_server"] is None else f"{m['mfu_by_server']:.2%}",
                ]
            )
    return "answers through vLLM", [*columns, "J/answer", "J/correct answer", "MFU", "MFU by vLLM"], rows


def _phases(levels: list[dict[str, Any]]) -> Table:
    columns = ["of an answer", "prompt tok", "prefill MFLOP", "decode MFLOP", "TTFT ms", "prefill ms", "decode ms"]
    rows = []
    for level in levels:
        for arm in ARMS:
            found, m = level[arm], level[arm]["measured"]
            flops = [f"{found['modelled'][key] / 1e6:,.3g}" for key in ("prefill_flops", "decode_flops")]
            seconds = [_number(m[key], 1e3) for key in ("ttft_s", "prefill_s", "decode_s")]
            rows.append([f"{arm}, {_level(level)}", f"{found['prompt_tokens']:.1f}", *flops, *seconds])
        both = [level["prefill"], level["decode"]]
        modelled = [NONE if part["modelled"] is None else f"{part['modelled']:.3g}x" for part in both]
        measured = [shown(part["measured"]) for part in both]
        rows.append([f"reasoning over IFT, {_level(level)}", "", *modelled, "", *measured])
    return "reading the question and writing the answer", columns, rows


def _factors(result: dict[str, Any]) -> Table:
    columns = ["reasoning over IFT", "tokens", "per token, modelled", "per token, measured", "cost, modelled"]
    rows = [_factor(PER[0], result["training"]["factor"])]
    for name, key in zip(PER[1:], ("per_answer", "per_correct"), strict=True):
        rows += [_factor(f"{name}, {_level(level)}", level[key]) for level in result["inference"]["levels"]]
    title = "cost factor = token factor x per-token factor"
    return title, [*columns, "cost, measured", "per token, joules", "cost, joules"], rows


def _factor(name: str, factor: dict[str, Any] | None) -> list[str]:
    if factor is None:  # an arm without a correct answer
        return [name, *[NONE] * 7]
    modelled, measured, joules = factor["modelled"], factor["measured"], factor["joules"]
    return [
        name,
        shown(measured["tokens"]),
        f"{modelled['per_token']:.3g}x",
        shown(measured["per_token"]),
        f"{modelled['cost']:.3g}x",
        shown(measured["cost"]),
        *(shown(joules[name]) if joules else NONE for name in ("per_token", "cost")),
    ]


def _level(level: dict[str, Any]) -> str:
    return f"{level['task']}, {level['concurrency']} client{'s' if level['concurrency'] > 1 else ''}"


def _without_empty(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Without the columns that nobody has a value for."""
    kept = [place for place in range(len(columns)) if any(row[place] != NONE for row in rows)]
    return title, [columns[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _number(value: float | None, scale: float = 1.0) -> str:
    return NONE if value is None else f"{value * scale:.3g}"


def _within(found: dict[str, Any] | None, scale: float = 1.0) -> str:
    """{value, low, high} in a cell."""
    if found is None or found["value"] is None:
        return NONE
    text = _number(found["value"], scale)
    if found["low"] is None or found["high"] is None:
        return text
    return f"{text} ({_number(found['low'], scale)}-{_number(found['high'], scale)})"
