"""What the project holds its kernels to on an H200, whether reached or not, and the GPU suite's answers."""

from typing import Any

from distill.bench.gpu_tables import GIB, mfu, of_section, over
from distill.bench.names import OURS, PRODUCTS

NOT_MEASURED = "not measured"
# What the project holds itself to, whether reached or not.
TO_PRODUCTS = {"7B": 1.10, "0.5B": 1.25}
EXTRA_GIB = 1.5
HALF_IGNORED = 0.55
DIVERGENCE_TO_LOSS = 1.15
MFU, MFU_STEP = 0.5, ("1.5B", 32768)
OWN_ATTENTION, TORCH_ATTENTION = "distill triton", "torch varlen (FA2)"


def gpu_targets(result: dict[str, Any]) -> list[list[str]]:
    """[target, wanted, measured, "met" or "missed" or "not measured"] of every target."""
    losses = of_section(result, "linear_cross_entropy")
    whole = [p for p in losses if p["ignored"] == 0]
    rows = []
    for head, limit in TO_PRODUCTS.items():
        values = [_value(_contenders(p), OURS, PRODUCTS) for p in whole if p["head"] == head]
        rows.append(_target(f"linear cross-entropy over its three products, {head}, worst", values, limit))
    for peer in ("Liger", "Liger, 4096-row chunks", "Cut Cross-Entropy", "Cut Cross-Entropy, exact"):
        values = [_value(_contenders(p), OURS, peer) for p in losses]
        rows.append(_target(f"linear cross-entropy over {peer}, worst of all shapes", values, 1.0))
    extra = [
        (entry["peak_bytes"] - p["gradient_bytes"] - p["accumulator_bytes"]) / GIB
        for p in losses
        if (entry := _contenders(p).get(OURS, {})).get("peak_bytes") is not None and "seconds" in entry
    ]
    rows.append(
        _target("linear cross-entropy, GiB beyond inputs, gradients and fp32 dW, most", extra, EXTRA_GIB, unit="")
    )
    rows.append(
        _target("linear cross-entropy with half the rows ignored over all rows, worst", _half(losses), HALF_IGNORED)
    )
    divergences = [_value(_contenders(p), OURS, "linear_cross_entropy") for p in of_section(result, "topk_divergence")]
    rows.append(_target("top-k divergence over linear cross-entropy, worst", divergences, DIVERGENCE_TO_LOSS))
    for direction in ("forward", "backward"):
        values = [
            _value(p["measured"].get(direction, {}), OWN_ATTENTION, TORCH_ATTENTION)
            for p in of_section(result, "varlen_attention")
        ]
        rows.append(_target(f"own attention over torch's FA2, {direction}, worst", values, 1.0))
    return [*rows, _mfu_target(result)]


def _contenders(piece: dict[str, Any]) -> dict[str, Any]:
    return piece["measured"].get("contenders", {})


def _value(contenders: dict[str, Any], one: str, other: str) -> float | None:
    found = over(contenders, one, other)
    return found["value"] if found else None


def _half(losses: list[dict[str, Any]]) -> list[float]:
    """Time at half the rows ignored over that at none, of each head and row count."""
    seconds = {
        (p["head"], p["tokens"], p["ignored"]): _contenders(p)[OURS]["seconds"]
        for p in losses
        if "seconds" in _contenders(p).get(OURS, {})
    }
    return [
        value / seconds[head, tokens, 0.0]
        for (head, tokens, ignored), value in seconds.items()
        if ignored == 0.5 and (head, tokens, 0.0) in seconds
    ]


def _mfu_target(result: dict[str, Any]) -> list[str]:
    """The best of our contenders: what is chosen, with Liger's layers where it is installed."""
    found = [
        mfu(piece, name)
        for piece in of_section(result, "training_step")
        if (piece["model"], piece["tokens"]) == MFU_STEP
        for name, entry in _contenders(piece).items()
        if name.startswith(OURS) and "seconds" in entry
    ]
    name, wanted = "MFU of a training step, {} at {} tokens, best of ours".format(*MFU_STEP), f"at least {MFU:.0%}"
    if not found:
        return [name, wanted, "-", NOT_MEASURED]
    return [name, wanted, f"{max(found):.1%}", "met" if max(found) >= MFU else "missed"]


def _target(name: str, values: list[float | None], limit: float, unit: str = "x") -> list[str]:
    found = [value for value in values if value is not None]
    wanted = f"at most {limit:g}{unit}" if limit != 1.0 else "below 1x"
    if not found:
        return [name, wanted, "-", NOT_MEASURED]
    worst = max(found)
    met = worst < 1 if limit == 1.0 else worst <= limit
    return [name, wanted, f"{worst:.3g}{unit} ({len(found)} of {len(values)} shapes)", "met" if met else "missed"]
