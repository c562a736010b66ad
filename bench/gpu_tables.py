"""The GPU suite's result as tables, for the terminal and for docs/benchmarks.md."""

import re
from collections.abc import Callable, Iterable
from typing import Any

from distill.bench.names import OURS, PRODUCTS, in_order
from distill.bench.spread import ratio, shown

Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows
GIB = 1 << 30
_NUMBERS = re.compile(r"(\d+)|(\D+)")


def of_section(result: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """Its pieces by their keys, numbers as numbers: in one order, however the suite was cut and its file written."""
    keys = sorted(result["pieces"], key=lambda key: [(not n, int(n or 0), s) for n, s in _NUMBERS.findall(key)])
    return [result["pieces"][key] for key in keys if result["pieces"][key]["section"] == section]


def over(contenders: dict[str, Any], one: str, other: str) -> dict[str, Any] | None:
    """Time of one over another's, round by round; None where either was not measured, or not in the same rounds."""
    if not all("rounds" in contenders.get(name, {}) and "apart" not in contenders[name] for name in (one, other)):
        return None
    return ratio(contenders[one]["rounds"], contenders[other]["rounds"])


def gpu_tables(result: dict[str, Any]) -> list[Table]:
    """Every table there is something for."""
    makers = (_environment, _correctness, _losses, _divergences, _attentions, _training, _tuning)
    return [table for maker in makers for table in maker(result) if table[2]]


def _environment(result: dict[str, Any]) -> list[Table]:
    found = result["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    facts = [
        ["GPU", f"{found['gpu']}, {found['multiprocessors']} SMs, {found['memory_gib']} GiB, CUDA {found['cuda']}"],
        ["versions", f"Python {found['python']}, {versions}"],
        ["sources", found["sources"]],
    ]
    for number, session in enumerate(result["sessions"], start=1):
        as_found = ", ".join(f"{name} {value}" for name, value in session.items() if name != "measured" and value)
        m = session["measured"]
        rates = f"{m['matmul_flops'] / 1e12:,.0f} TFLOP/s bf16, {m['copy_bytes_per_second'] / 1e12:.2f} TB/s copy"
        facts.append([f"session {number}", f"{rates}{'; ' if as_found else ''}{as_found}"])
    return [("GPU suite", ["", "measured on"], facts)]


def _correctness(result: dict[str, Any]) -> list[Table]:
    kernels: dict[str, list[dict[str, Any]]] = {}
    for piece in of_section(result, "correctness"):
        kernels.setdefault(piece["kernel"], []).append(piece)
    rows = []
    for kernel, checks in kernels.items():
        results = [check["measured"] for check in checks]
        worst = [
            (r["errors"][name] / error, f"{name} of {check['case']}")
            for check, r in zip(checks, results, strict=True)
            for name, error in r.get("plain_errors", {}).items()
            # A scalar's own error can be near 0 by luck, and so can what float32 loses.
            if error > 1e-5 and name != "out"
        ]
        value, where = max(worst, default=(None, "-"))
        missing = sum(r["passed"] is None for r in results)
        failed = [check["case"] for check, r in zip(checks, results, strict=True) if r["passed"] is False]
        passed = len(results) - missing - len(failed)
        rows.append(
            [
                kernel,
                str(passed),
                "; ".join(failed) or "0",
                str(missing),
                "-" if value is None else f"{value:.2f}x ({where})",
            ]
        )
    columns = ["kernel", "checks passed", "failed", "not possible here", "worst error over the plain path's"]
    return [("correctness against float64", columns, rows)]


def _grid(
    title: str, pieces: list[dict[str, Any]], names: Callable[[dict], str], cell: Callable[[dict, str], str | None]
) -> list[Table]:
    """Contenders in rows, pieces in columns. `cell`: what stands for a contender that was measured."""
    if not pieces:
        return []
    found = [piece["measured"].get("contenders", {}) for piece in pieces]
    rows = []
    for name in in_order(name for part in found for name in part):
        cells = []
        for piece, part in zip(pieces, found, strict=True):
            entry = part.get(name, {"missing": "-"})
            cells.append(cell(piece, name) if "seconds" in entry else entry.get("missing") or entry["error"])
        rows.append([name, *_once(cells)])
    return [(title, ["", *(names(piece) for piece in pieces)], rows)]


def _once(cells: list[str]) -> list[str]:
    """One reason for all columns is said once."""
    is_reason = len(set(cells)) == 1 and not cells[0][:1].isdigit()
    return [cells[0], *[""] * (len(cells) - 1)] if is_reason else cells


def _sorted_values(pieces: Iterable[dict[str, Any]], key: str) -> list[Any]:
    return sorted({piece[key] for piece in pieces})


def _losses(result: dict[str, Any]) -> list[Table]:
    pieces = of_section(result, "linear_cross_entropy")
    tables = []
    for tokens in _sorted_values(pieces, "tokens"):
        for ignored in _sorted_values(pieces, "ignored"):
            chosen = [p for p in pieces if p["tokens"] == tokens and p["ignored"] == ignored]
            title = (
                f"linear cross-entropy, forward + backward, {tokens} tokens, {ignored:.0%} ignored: "
                "ms (quartiles), time over the three products, GiB beyond inputs and gradients"
            )
            tables += _grid(title, chosen, lambda piece: piece["head"], _loss_cell)
    return tables


def _milliseconds(entry: dict[str, Any]) -> str:
    return f"{entry['seconds'] * 1e3:.2f} ({entry['low'] * 1e3:.2f}-{entry['high'] * 1e3:.2f})"


def _loss_cell(piece: dict[str, Any], name: str) -> str:
    contenders = piece["measured"]["contenders"]
    entry = contenders[name]
    parts = [_milliseconds(entry)]
    to_products = over(contenders, name, PRODUCTS)
    if name != PRODUCTS and to_products is not None:
        parts.append(f"{to_products['value']:.2f}x")
    if name != PRODUCTS and entry["peak_bytes"] is not None:
        parts.append(f"{(entry['peak_bytes'] - piece['gradient_bytes']) / GIB:.2f}")
    return ", ".join(parts)


def _divergences(result: dict[str, Any]) -> list[Table]:
    pieces = of_section(result, "topk_divergence")
    if not pieces:
        return []

    def cell(piece: dict[str, Any], name: str) -> str:
        contenders = piece["measured"]["contenders"]
        to_loss = over(contenders, name, "linear_cross_entropy")
        return _milliseconds(contenders[name]) + (f", {to_loss['value']:.2f}x" if to_loss is not None else "")

    title = (
        f"divergence from a teacher's top {pieces[0]['teacher_entries']}, forward + backward, "
        f"{pieces[0]['tokens']} tokens: ms (quartiles), time over linear_cross_entropy"
    )
    return _grid(title, pieces, lambda piece: piece["head"], cell)


def _attentions(result: dict[str, Any]) -> list[Table]:
    pieces = of_section(result, "varlen_attention")
    tables = []
    for pattern in dict.fromkeys(piece["lengths"] for piece in pieces):
        columns = []
        for piece in (p for p in pieces if p["lengths"] == pattern):
            for direction in ("forward", "backward"):
                contenders = piece["measured"].get(direction, {})
                columns.append({**piece, "direction": direction, "measured": {"contenders": contenders}})
        about = columns[0]
        title = (
            f"attention, {about['tokens']} tokens in {about['documents']} documents ({pattern}, longest "
            f"{about['longest']}): TFLOP/s of the visible pairs"
        )
        tables += _grid(title, columns, lambda c: f"head size {c['head_dim']}, {c['direction']}", _attention_cell)
    return tables


def _attention_cell(column: dict[str, Any], name: str) -> str:
    entry = column["measured"]["contenders"][name]
    flops = column[f"{column['direction']}_flops"]
    rates = (flops / entry[key] / 1e12 for key in ("seconds", "high", "low"))
    return "{:.3g} ({:.3g}-{:.3g})".format(*rates)


def _training(result: dict[str, Any]) -> list[Table]:
    def cell(piece: dict[str, Any], name: str) -> str:
        entry = piece["measured"]["contenders"][name]
        parts = [f"{piece['tokens'] / entry['seconds']:,.0f} tok/s", f"MFU {mfu(piece, name):.1%}"]
        if entry["peak_bytes"] is not None:
            parts.append(f"{(entry['peak_bytes'] + piece['measured']['held_bytes']) / GIB:.1f} GiB")
        to_ours = over(piece["measured"]["contenders"], name, OURS)
        if name != OURS and to_ours is not None:
            parts.append(f"time {shown(to_ours)} of distill's")
        return ", ".join(parts)

    title = "one packed training step: tokens/s, MFU of the documents' FLOPs, peak memory"
    pieces = of_section(result, "training_step")
    return _grid(title, pieces, lambda piece: f"{piece['model']}, {piece['tokens']} tokens", cell)


def mfu(piece: dict[str, Any], name: str) -> float:
    measured = piece["measured"]
    return piece["flops"] / measured["contenders"][name]["seconds"] / measured["peak_flops"]


def _tuning(result: dict[str, Any]) -> list[Table]:
    tables = []
    for piece in of_section(result, "tuning"):
        entries = piece["measured"]["contenders"]
        rows = [
            [name, _milliseconds(entry), f"{piece['flops'] / entry['seconds'] / 1e12:.3g}"]
            if "seconds" in entry
            else [name, entry["error"], ""]
            for name, entry in sorted(entries.items(), key=lambda item: item[1].get("seconds", float("inf")))
        ]
        tables.append(
            (f"configurations: {piece['what']}", ["", "ms (quartiles)", "TFLOP/s of the forward products"], rows)
        )
    return tables
