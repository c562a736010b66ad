"""`distill bench kernels`: the public functions of distill.kernels on this CPU, beside what torch has.

Contenders take turns in one process, and ratios are taken within a round (rounds.py, spread.py). What a contender takes
in memory above its inputs is measured in a process of its own (kernel_memory.py). Errors are against float64.

The result:

    machine, settings        what it ran on, KernelBenchSettings as given
    sections
      linear_cross_entropy   forward and backward of one head: hidden, weight, labels -> mean loss, both gradients
      topk_divergence        the same from a teacher's top k, forward KL
      varlen_attention       forward and backward over packed documents
        shape                what the section's numbers are for
        contenders           {name: {"errors": {tensor: relative, against float64}, "measured": {"seconds": median,
                             "low", "high": quartiles, "extra_bytes"}}, or {"missing": why not, or what it raised}}
        measured
          ratios             {contender: that one over distill, seconds; value with a 95 % interval over rounds}
"""

from typing import Any, Literal, NamedTuple

from pydantic import Field

from distill import console
from distill.bench.names import OURS, PRODUCTS, in_order
from distill.bench.spread import ratio, shown
from distill.settings import Settings

Section = Literal["linear_cross_entropy", "topk_divergence", "varlen_attention"]
SECTIONS: tuple[Section, ...] = ("linear_cross_entropy", "topk_divergence", "varlen_attention")
_RESULTS = {
    "linear_cross_entropy": ("loss", "d_hidden", "d_weight"),
    "topk_divergence": ("loss", "d_hidden", "d_weight"),
    "varlen_attention": ("out", "d_q", "d_k", "d_v"),
}
_SECONDS = 3600.0  # no limit but the number of rounds


class KernelBenchSettings(Settings):
    """The defaults are a small student's: a head of 256 x 32000, documents as long as GSM8K's traces."""

    rows: int = Field(2048, ge=1)
    hidden: int = Field(256, ge=1)
    vocabulary: int = Field(32000, ge=64)
    ignored: float = Field(0.3, ge=0, lt=1, description="share of rows that are not supervised")
    teacher_entries: int = Field(20, ge=1, description="K of the teacher's top k")
    tokens: int = Field(4096, ge=1, description="of the packed documents")
    mean_length: float = Field(234.0, gt=0, description="of their log-normal lengths")
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(4, ge=1)
    head_dim: int = Field(64, ge=8)
    dtype: Literal["bf16", "fp32"] = "bf16"
    rounds: int = Field(8, ge=2)
    threads: int = Field(2, ge=1)
    seed: int = 0
    sections: tuple[Section, ...] = SECTIONS


def bench_kernels(settings: KernelBenchSettings) -> dict[str, Any]:
    """Run the benchmark; the result is described at the top of this file. Raises InputError."""
    import torch

    from distill.bench.machine import machine

    about = machine()
    torch.set_num_threads(settings.threads)
    sections = {}
    with console.progress("{task.fields[now]}") as bar:
        task = bar.add_task("kernels", total=len(settings.sections), now="")
        for section in settings.sections:
            bar.update(task, now=section)
            sections[section] = _measure(section, settings)
            bar.advance(task)
    return {"machine": about, "settings": settings.model_dump(mode="json"), "sections": sections}


class Contenders(NamedTuple):
    case: Any  # the inputs
    calls: dict[str, Any]  # each returns the section's results, but for the bare products
    missing: dict[str, str]  # why one cannot be measured
    others: set[str]  # those that compute something else


def contenders(section: Section, settings: KernelBenchSettings) -> Contenders:
    """Inputs, and everybody to be measured on them."""
    import torch

    from distill.bench import cases
    from distill.bench.attention_peers import attentions
    from distill.bench.divergence_peers import DIVERGENCES
    from distill.bench.documents import document_lengths
    from distill.bench.loss_peers import LOSSES

    device, dtype = torch.device("cpu"), {"bf16": torch.bfloat16, "fp32": torch.float32}[settings.dtype]
    head = (settings.hidden, settings.vocabulary)
    calls: dict[str, Any] = {}
    if section == "varlen_attention":
        generator = torch.Generator().manual_seed(settings.seed)
        lengths = document_lengths(settings.tokens, settings.mean_length, 0.5, generator)
        shape = (settings.heads, settings.kv_heads, settings.head_dim)
        case = cases.attention_case(lengths, *shape, dtype, device, settings.seed)
        table = attentions()
        adapt = lambda make: cases.attention_both(make(case.documents), case)  # noqa: E731
    elif section == "topk_divergence":
        case = cases.teacher_case(settings.rows, *head, settings.teacher_entries, dtype, device, settings.seed)
        table = DIVERGENCES
        adapt = lambda function: cases.loss_and_gradients(function, case)  # noqa: E731
    else:
        case = cases.loss_case(settings.rows, *head, settings.ignored, dtype, device, settings.seed)
        table = LOSSES
        adapt = lambda function: cases.loss_and_gradients(function, case)  # noqa: E731
    missing = {}
    for name, peer in table.items():
        if "cpu" not in peer.devices:
            continue  # of the GPU suite
        if reason := peer.missing("cpu"):
            missing[name] = reason
        else:
            calls[name] = adapt(peer.load())
    if section == "linear_cross_entropy":
        calls[PRODUCTS] = cases.bare_products(case)
    others = {PRODUCTS, *(name for name, peer in table.items() if not peer.is_same_function)}
    return Contenders(case, calls, missing, others)


def _measure(section: Section, settings: KernelBenchSettings) -> dict[str, Any]:
    import torch

    from distill.bench.kernel_memory import measure_extra_bytes
    from distill.bench.rounds import Clock, take_turns

    extra = {}
    case, calls, missing, others = contenders(section, settings)
    for name in calls:
        extra[name] = measure_extra_bytes(section, name, settings)
    exact = _exact(section, case)
    errors = {name: _errors(section, call, exact) for name, call in calls.items() if name not in others}
    times = take_turns(calls, Clock(torch.device("cpu")), rounds=(settings.rounds, settings.rounds), seconds=_SECONDS)
    found: dict[str, Any] = {name: {"missing": reason} for name, reason in missing.items()}
    for name, measured in times.items():
        if "error" in measured:
            found[name] = {"missing": measured["error"]}
            continue
        values = {key: measured[key] for key in ("seconds", "low", "high")} | {"extra_bytes": extra[name]}
        found[name] = {"errors": errors.get(name), "measured": values}
    ratios = {
        name: ratio(measured["rounds"], times[OURS]["rounds"])
        for name, measured in times.items()
        if name != OURS and "error" not in measured and "error" not in times[OURS]
    }
    return {"shape": _shape(section, settings, case), "contenders": found, "measured": {"ratios": ratios}}


def _exact(section: Section, case: Any) -> tuple[Any, ...]:
    from distill.bench import cases
    from distill.bench.divergence_peers import eager_divergence
    from distill.kernels import reference

    if section == "varlen_attention":
        return cases.exact_attention(case)
    if section == "linear_cross_entropy":
        return cases.exact_row_loss(reference.linear_cross_entropy, case, case.kept)
    # The reference proper goes row by row; a test holds the two against each other.
    return cases.exact_row_loss(eager_divergence, case, case.hidden.shape[0])


def _errors(section: Section, call: Any, exact: tuple[Any, ...]) -> dict[str, float]:
    from distill.bench.cases import relative_error

    return {
        name: relative_error(found, expected)
        for name, found, expected in zip(_RESULTS[section], call(), exact, strict=True)
    }


def _shape(section: Section, settings: KernelBenchSettings, case: Any) -> dict[str, Any]:
    if section == "varlen_attention":
        keys = ("tokens", "heads", "kv_heads", "head_dim", "dtype")
        more = {"documents": len(case.documents.lengths), "longest": case.documents.longest}
    else:
        keys = ("rows", "hidden", "vocabulary", "dtype")
        is_teacher = section == "topk_divergence"
        more = {"teacher_entries": settings.teacher_entries} if is_teacher else {"supervised": case.kept}
    return {key: getattr(settings, key) for key in keys} | more


def kernel_tables(result: dict[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """(title, columns, rows) of every section."""
    tables = []
    for section, values in result["sections"].items():
        names = _RESULTS[section]
        rows = []
        for name in in_order(values["contenders"]):
            contender = values["contenders"][name]
            if "missing" in contender:
                rows.append([name, contender["missing"], *[""] * (len(names) + 2)])
                continue
            m, errors = contender["measured"], contender["errors"]
            over = values["measured"]["ratios"].get(name)
            rows.append(
                [
                    name,
                    f"{m['seconds'] * 1e3:.1f} ({m['low'] * 1e3:.1f}-{m['high'] * 1e3:.1f})",
                    shown(over) if over else "",
                    f"{m['extra_bytes'] / (1 << 20):,.0f}",
                    *(f"{errors[n]:.1e}" if errors else "" for n in names),
                ]
            )
        shape = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in sorted(values["shape"].items()))
        columns = ["forward + backward", "ms (quartiles)", "time over ours", "extra MiB"]
        tables.append((f"{section}: {shape}", [*columns, *(f"error of {n}" for n in names)], rows))
    return tables


def kernel_targets(result: dict[str, Any]) -> list[list[str]]:
    """[target, wanted, measured, "met" or "missed"] of linear cross-entropy; they are for the default shape."""
    default = KernelBenchSettings().model_dump(mode="json")
    if any(result["settings"][name] != default[name] for name in ("rows", "hidden", "vocabulary", "ignored", "dtype")):
        return []
    section = result["sections"].get("linear_cross_entropy", {"contenders": {}, "measured": {"ratios": {}}})
    contenders, ratios = section["contenders"], section["measured"]["ratios"]
    rows = []
    for peer, wanted in (("eager", 1.5), ("torch chunked", 5.0), ("torch chunked, accurate", 5.0)):
        if peer in ratios and ratios[peer]["value"] is not None:
            met = ratios[peer]["value"] >= wanted
            name = f"linear cross-entropy: time of {peer} over ours"
            rows.append([name, f"at least {wanted:g}x", shown(ratios[peer]), "met" if met else "missed"])
    ours, eager = (contenders.get(name, {}).get("measured") for name in (OURS, "eager"))
    if ours and eager:
        share = ours["extra_bytes"] / max(1, eager["extra_bytes"])
        name = "linear cross-entropy: extra memory, ours over eager"
        rows.append([name, "below 0.5x", f"{share:.2f}x", "met" if share < 0.5 else "missed"])
    return rows


def show_kernels(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    for title, columns, rows in kernel_tables(result):
        console.table(title, columns, rows)
    if targets := kernel_targets(result):
        console.table("targets", ["target", "wanted", "measured", ""], targets)
