"""What each benchmark's result says on the page of `distill bench report`: plots, tables, targets."""

from collections.abc import Sequence
from typing import Any

from distill.bench.evaluation import (
    EvaluationBenchSettings,
    evaluation_tables,
    evaluation_targets,
    journal_text,
)
from distill.bench.gap import GapSettings
from distill.bench.gap_tables import gap_groups, gap_tables
from distill.bench.gpu import KIND
from distill.bench.gpu_pieces import GpuSuiteSettings
from distill.bench.gpu_tables import gpu_tables, of_section
from distill.bench.gpu_targets import gpu_targets
from distill.bench.kernels import KernelBenchSettings, kernel_tables, kernel_targets
from distill.bench.names import OURS, in_order
from distill.bench.packing import PackingBenchSettings, packing_tables, packing_targets
from distill.bench.plots import Bar, bar_chart, factor_chart
from distill.bench.report_page import Page
from distill.bench.serving import ServingBenchSettings, serving_tables, serving_targets
from distill.bench.spread import shown
from distill.bench.traces import TracesBenchSettings, traces_table, traces_targets
from distill.bench.training import TrainingBenchSettings
from distill.bench.training_memory import TrainingMemorySettings, growth_text, memory_rows
from distill.report.factors import FactorGroup

_GIB = 1 << 30
_FIRST_TOKENS = GpuSuiteSettings().tokens[0]  # what is plotted
_FLAGS = {  # settings that have a flag of another name
    "requests": "requests",
    "concurrencies": "concurrency",
}


def _made_by(page: Page, name: str, command: str, where: str) -> None:
    page.add(f"`{command}` ([{name}.json](../bench/results/{name}.json)). {where}")


def _machine(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    return (
        f"{found['processor']}, {found['cores']} cores, load {found['load_before']:.1f} before the run; "
        f"Python {found['python']}, {versions}."
    )


def _command(base: str, found: dict[str, Any], defaults: dict[str, Any], flags: Sequence[str]) -> str:
    """The command that has these settings: flags whose value is not the default."""
    parts = [base]
    for name in flags:
        value = found.get(name)
        if value is None or value == defaults.get(name):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"--{_FLAGS.get(name, name).replace('_', '-')} {text}")
    return " ".join(parts)


def _targets(page: Page, rows: list[list[str]]) -> None:
    if rows:
        page.table(["target", "wanted", "measured", ""], rows, "targets")


def kernels_section(page: Page, name: str, result: dict[str, Any]) -> None:
    defaults = KernelBenchSettings().model_dump(mode="json")
    flags = ("rows", "hidden", "vocabulary", "ignored", "rounds", "threads")
    threads = result["settings"]["threads"]
    where = f"{threads} threads. {_machine(result['machine'])}"
    _made_by(page, name, _command("distill bench kernels", result["settings"], defaults, flags), where)
    groups = []
    for section, values in result["sections"].items():
        measured = {n: c["measured"] for n, c in values["contenders"].items() if "measured" in c}
        bars = [_time_bar(n, measured[n]) for n in in_order(measured)]
        groups.append((section, bars))
    page.plot(
        name, "time of each contender, forward and backward", bar_chart(groups, "ms, forward + backward (quartiles)")
    )
    for title, columns, rows in kernel_tables(result):
        page.table(columns, rows, title)
    _targets(page, kernel_targets(result))


def _time_bar(name: str, entry: dict[str, Any]) -> Bar:
    milliseconds, low, high = (entry[key] * 1e3 for key in ("seconds", "low", "high"))
    return Bar(name, milliseconds, low, high, f"{milliseconds:.3g} ms", name.startswith(OURS))


def _rate_bar(name: str, entry: dict[str, Any], flops: float) -> Bar:
    rate, low, high = (flops / entry[key] / 1e12 for key in ("seconds", "high", "low"))
    return Bar(name, rate, low, high, f"{rate:.3g}", name.startswith(OURS))


def compiled_section(page: Page, name: str, result: dict[str, Any]) -> None:
    versions = ", ".join(f"{package} {result['versions'][package]}" for package in ("triton", "torch"))
    command = f"distill bench kernels --compile-only --targets {','.join(result['targets'])}"
    _made_by(page, name, command, f"Compiled, not run: {versions}.")
    rows = []
    for target, values in result["targets"].items():
        kernels = values["kernels"]
        rows.append(
            [
                target,
                len(kernels),
                _most(kernels, "registers"),
                sum(bool(k["spill_bytes"]) for k in kernels),
                f"{_most(kernels, 'shared_memory'):,} of {_most(kernels, 'shared_memory_limit'):,}",
                sum(bool(k["tensor_cores"]) for k in kernels),
                sum(k["problem"] is not None for k in kernels),
            ]
        )
    columns = ["target", "kernels", "most registers", "that spill", "most shared memory, bytes"]
    page.table([*columns, "with tensor-core instructions", "problems"], rows)
    for problem in result["problems"]:
        page.add(f"- {problem}")


def _most(kernels: list[dict[str, Any]], key: str) -> int:
    return max((kernel[key] for kernel in kernels if kernel[key] is not None), default=0)


def gpu_section(page: Page, name: str, result: dict[str, Any]) -> None:
    if result["kind"] != KIND:
        raise KeyError("kind")
    about, *tables = gpu_tables(result)
    _made_by(page, name, f"distill bench gpu --out {name}.json", "")
    page.table(about[1], about[2])
    _targets(page, gpu_targets(result))
    groups = []
    losses = of_section(result, "linear_cross_entropy")
    for piece in losses:
        if piece["tokens"] != _FIRST_TOKENS or piece["ignored"]:
            continue
        contenders = piece["measured"].get("contenders", {})
        bars = [_time_bar(n, contenders[n]) for n in in_order(contenders) if "seconds" in contenders[n]]
        groups.append((f"{piece['head']}, {piece['tokens']} tokens", bars))
    if any(bars for _, bars in groups):
        page.plot(
            f"{name}-loss",
            "time of linear cross-entropy by head and contender",
            bar_chart(groups, "linear cross-entropy, ms, forward + backward (quartiles)"),
        )
    groups = []
    for piece in of_section(result, "varlen_attention"):
        for direction in ("forward", "backward"):
            contenders = piece["measured"].get(direction, {})
            bars = [
                _rate_bar(n, contenders[n], piece[f"{direction}_flops"])
                for n in in_order(contenders)
                if "seconds" in contenders[n]
            ]
            groups.append((f"{piece['lengths']}, head size {piece['head_dim']}, {direction}", bars))
    if any(bars for _, bars in groups):
        page.plot(
            f"{name}-attention",
            "rate of attention by document lengths and contender",
            bar_chart(groups, "attention, TFLOP/s of the visible pairs (quartiles)"),
        )
    for title, columns, rows in tables:
        page.table(columns, rows, title)
    for problem in result["problems"]:
        page.add(f"- failed: {problem}")
    if result["pending"]:
        page.add(f"Not measured (out of time): {', '.join(result['pending'])}.")


def packing_section(page: Page, name: str, result: dict[str, Any]) -> None:
    settings = result["settings"]
    defaults = PackingBenchSettings().model_dump(mode="json")
    flags = ("documents", "row_tokens", "data", "rounds")
    _made_by(page, name, _command("distill bench packing", settings, defaults, flags), _machine(result["machine"]))
    for title, columns, rows in packing_tables(result):
        page.table(columns, rows, title)
    _targets(page, packing_targets(result))


def training_section(page: Page, name: str, result: dict[str, Any]) -> None:
    settings, work = result["settings"], result["workload"]
    defaults = TrainingBenchSettings().model_dump(mode="json")
    flags = ("data", "steps", "pairs", "row_tokens", "threads")
    where = (
        f"{work['documents']:,} documents of {work['mean_tokens']:.0f} tokens on average, "
        f"{work['parameters'] / 1e6:.1f}M parameters, {settings['row_tokens']} tokens a step, {settings['threads']} "
        f"threads. {_machine(result['machine'])}"
    )
    _made_by(page, name, _command("distill bench training", settings, defaults, flags), where)
    bars, rows = [], []
    for contender, values in result["contenders"].items():
        m = values["measured"]
        rate, rounds = m["supervised_tokens_per_second"], m["rounds"]
        is_ours = not contender.startswith("trl")
        bars.append(Bar(contender, rate, min(rounds), max(rounds), f"{rate:,.0f}", is_ours))
        over = result["measured"]["ratios"].get(contender)
        rows.append(
            [
                f"`{contender}`",
                f"{rate:,.0f}",
                f"{m['seconds_per_step']:.2f}",
                f"{m['mfu']:.1%}",
                f"{m['peak_rss_bytes'] / _GIB:.2f}",
                " / ".join("-" if v is None else f"{v / _GIB:.2f}" for v in _growth(m["rss_bytes"])),
                shown(over["supervised_tokens_per_second"]) if over else "",
            ]
        )
    page.plot(
        name, "supervised tokens per second of each trainer", bar_chart([("", bars)], "supervised tokens/s (range)")
    )
    columns = ["contender", "supervised tokens/s", "s/step", "MFU", "peak GiB", "GiB after step 1 / 10 / last"]
    page.table([*columns, "`packed` over it, supervised tokens/s"], rows)
    agreement = [
        [f"`{contender}`", f"{a['loss']:.7f}", f"{a['gradient_norm']:.6f}", f"{a['supervised_tokens']:,}"]
        for contender, a in result["agreement"].items()
    ]
    page.table(["first step, fp32", "loss", "gradient norm", "supervised tokens"], agreement, "the same work")


def training_memory_section(page: Page, name: str, result: dict[str, Any]) -> None:
    settings = result["settings"]
    defaults = TrainingMemorySettings().model_dump(mode="json")
    where = f"Student `{settings['student']}`, float32, {settings['threads']} threads. {_machine(result['machine'])}"
    _made_by(page, name, _command("distill bench training --memory", settings, defaults, ("threads",)), where)
    page.add(
        "One packed row, forward and backward: the peak over what was resident before, without weights and gradients, with "
        "freed tensors given back at once. " + growth_text(result)
    )
    columns, rows = memory_rows(result)
    page.table(columns, rows)


def _growth(rss: dict[str, Any]) -> list[Any]:
    return [rss["start"], rss["step_10"], rss["end"]]


def gap_section(page: Page, name: str, result: dict[str, Any]) -> None:
    settings = result["settings"]
    flags = ("student", "tasks", "steps", "batch", "row_tokens", "requests", "rounds", "max_tokens", "concurrencies")
    base = "distill bench gap TRACES" + (" --ift IFT --reasoning REASONING" if settings["ift"] else "")
    defaults = GapSettings().model_dump(mode="json")
    where = f"{settings['threads']} threads. {_machine(result['machine'])}"
    _made_by(page, name, _command(base, settings, defaults, flags), where)
    groups = [
        FactorGroup(f"per {title}" + (f": {group.title}" if group.title else ""), group.factors)
        for title, of_title in gap_groups(result)
        for group in of_title
    ]
    alternative = "factors of tokens, seconds per token and cost, reasoning over IFT, measured beside modelled"
    page.plot(name, alternative, factor_chart(groups, "reasoning over IFT, times; disc: measured, ring: FLOPs"))
    for title, columns, rows in gap_tables(result):
        page.table(columns, rows, title)
    reasons = dict.fromkeys(result[half]["no_energy"] for half in ("training", "inference"))
    page.add("".join(f"Energy: {reason}." for reason in reasons if reason))


def evaluation_section(page: Page, name: str, result: dict[str, Any]) -> None:
    defaults = EvaluationBenchSettings().model_dump(mode="json")
    flags = ("models", "questions", "tokens", "rounds", "threads", "checkers", "answers", "grading_rounds", "workers")
    command = _command("distill bench evaluation", result["settings"], defaults, flags)
    _made_by(page, name, command, _machine(result["machine"]))
    for title, columns, rows in evaluation_tables(result):
        if rows:
            page.table(columns, rows, title)
    page.add(journal_text(result))
    _targets(page, evaluation_targets(result))


def serving_section(page: Page, name: str, result: dict[str, Any]) -> None:
    defaults = ServingBenchSettings().model_dump(mode="json")
    flags = ("models", "concurrencies", "tokens", "seconds", "rounds", "threads")
    command = _command("distill bench serving", result["settings"], defaults, flags)
    _made_by(page, name, command, _machine(result["machine"]))
    for title, columns, rows in serving_tables(result):
        if rows:
            page.table(columns, rows, title)
    _targets(page, serving_targets(result))


def traces_section(page: Page, name: str, result: dict[str, Any]) -> None:
    defaults = TracesBenchSettings().model_dump(mode="json")
    flags = ("models", "questions", "tokens", "sequences", "concurrency", "rounds", "threads", "kv_cache_gib")
    command = _command("distill bench traces", result["settings"], defaults, flags)
    _made_by(page, name, command, _machine(result["machine"]))
    columns, rows = traces_table(result)
    page.table(columns, rows, "output tokens/s")
    _targets(page, traces_targets(result))
