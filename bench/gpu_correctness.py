"""Checks of every kernel against float64, on the device that is then measured, with fresh inputs.

A check compares with the reference of the same file in float64 by |out - exact| / |exact|, and asks for at most twice
the error that the reference itself has in the inputs' dtype. More than 2^31 logits do not fit the reference: there
rows and columns are sampled, and wrong offsets give errors near 1.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from distill.bench import cases
from distill.bench.documents import Documents
from distill.bench.gpu_pieces import Context, GpuSuiteSettings, Piece
from distill.bench.loss_peers import IGNORE, only_backend
from distill.bench.rounds import attempt

BOUND = 2.0
FLOOR = 2e-6  # float32 sums in another order
# What is not among the teacher's entries is one less their sum: digits are lost where little is left.
TAIL_FLOOR = 2e-4
SAMPLED_BOUND = 0.05  # logits in bf16 alone lose 1e-2
_SAMPLES = 256
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}

LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "mean": {"reduction": "mean"},
    "small workspace": {"reduction": "sum", "workspace_bytes": 1 << 22},
    "bias": {"bias": True, "reduction": "sum"},
    "token weights": {"token_weights": True},
    "z-loss": {"z_loss": 1e-3, "reduction": "sum"},
    "label smoothing": {"label_smoothing": 0.1, "reduction": "sum"},
    "softcap": {"softcap": 15.0, "reduction": "sum"},
    "everything": {
        "bias": True,
        "token_weights": True,
        "z_loss": 1e-3,
        "label_smoothing": 0.1,
        "softcap": 15.0,
        "reduction": "sum",
    },
}
DIVERGENCE_OPTIONS: dict[str, dict[str, Any]] = {
    "forward KL": {"divergence": "forward_kl"},
    "reverse KL": {"divergence": "reverse_kl"},
    "JSD": {"divergence": "jsd", "beta": 0.3},
    "temperature": {"divergence": "forward_kl", "temperature": 2.0, "reduction": "sum"},
    "with cross-entropy": {"divergence": "forward_kl", "labels": True, "ce_weight": 0.5, "reduction": "sum"},
    "everything": {
        "divergence": "jsd",
        "temperature": 0.7,
        "labels": True,
        "ce_weight": 0.3,
        "bias": True,
        "softcap": 15.0,
        "token_weights": True,
    },
}
ATTENTION_OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 100},
    "softcap": {"softcap": 20.0},
    "deterministic": {"deterministic": True},
    "window and softcap": {"window": 33, "softcap": 20.0, "scale": 0.2},
}
_PLAIN_ONLY = {"workspace_bytes", "deterministic"}  # the references have no such arguments
_BACKENDS = ("anchored", "rows")  # of the linear losses; one of them is chosen
_IMPLEMENTATIONS = (None, "triton")  # what is chosen, and our own


def correctness_pieces(settings: GpuSuiteSettings) -> list[Piece]:
    pieces = [_loss_piece(None, option, dtype) for option, dtype in _covering(LOSS_OPTIONS)]
    pieces += [_loss_piece(backend, option, "bf16") for backend in _BACKENDS for option in ("plain", "everything")]
    pieces.append(_large_loss_piece())
    pieces += [_divergence_piece(option, dtype) for option, dtype in _covering(DIVERGENCE_OPTIONS)]
    for implementation in _IMPLEMENTATIONS:
        for head_dim in settings.exact_head_dims:
            pieces.append(_attention_piece(implementation, "plain", "bf16", head_dim, (14, 2)))
        first = settings.exact_head_dims[0]
        for option in list(ATTENTION_OPTIONS)[1:]:
            pieces.append(_attention_piece(implementation, option, "bf16", first, (4, 2)))
        for dtype in ("fp16", "fp32"):
            pieces.append(_attention_piece(implementation, "plain", dtype, first, (4, 4)))
    pieces.append(_isolation_piece(settings.exact_head_dims[0]))
    return pieces


def _covering(options: dict[str, Any]) -> list[tuple[str, str]]:
    """Every option in bf16, the first and the last in the other dtypes."""
    names = list(options)
    return [(name, "bf16") for name in names] + [(n, d) for d in ("fp16", "fp32") for n in (names[0], names[-1])]


def _piece(kernel: str, about: str, run: Callable[[Context], dict[str, Any]]) -> Piece:
    def guarded(context: Context) -> dict[str, Any]:
        if kernel in context.crashed:
            return {"passed": False, "error": context.crashed[kernel]}
        context.announce(kernel)
        result, failed = attempt(context.clock, lambda: run(context))
        return {"passed": False, "error": failed} if failed is not None else result

    about_it = {"section": "correctness", "kernel": kernel, "case": about}
    return Piece(f"correctness/{kernel}/{about}", about_it, guarded, is_check=True)


def _judge(
    found: dict[str, Tensor], plain: dict[str, Tensor], exact: dict[str, Tensor], floor: float = FLOOR
) -> dict[str, Any]:
    """Errors by name, ours and the plain path's, and whether all are within the bound."""
    ours = {name: cases.relative_error(found[name], exact[name]) for name in exact}
    theirs = {name: cases.relative_error(plain[name], exact[name]) for name in exact}
    # One number's own error can be near 0 by luck: a scalar is held to what the rows behind it lose.
    row_error = max((theirs[name] for name in exact if exact[name].ndim), default=0.0)
    allowed = {name: BOUND * (theirs[name] if exact[name].ndim else row_error) + floor for name in exact}
    passed = all(ours[name] <= allowed[name] for name in exact)
    return {"passed": passed, "errors": ours, "plain_errors": theirs}


def _gradients(out: Tensor, wrt: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(out, tuple(wrt.values()), upstream.to(out.dtype))
    return {"out": out.detach()} | {f"d_{name}": grad for name, grad in zip(wrt, grads, strict=True)}


def _leaves(dtype: torch.dtype, **tensors: Tensor | None) -> dict[str, Tensor]:
    return {name: x.detach().to(dtype).requires_grad_() for name, x in tensors.items() if x is not None}


def _row_loss_check(
    context: Context,
    dtype: torch.dtype,
    options: dict[str, Any],
    case: cases.LossCase | cases.TeacherCase,
    function: Callable[..., Any],
    reference: Callable[..., Any],
) -> dict[str, Any]:
    """A linear loss with one set of options: True stands for a random tensor of that name."""
    options = {"reduction": "none"} | options
    rows, vocabulary = case.hidden.shape[0], case.weight.shape[0]
    make = torch.Generator(context.device).manual_seed(context.settings.seed + 7)
    normal = lambda *shape: torch.randn(*shape, generator=make, device=context.device)  # noqa: E731
    bias = normal(vocabulary).to(dtype) if options.pop("bias", False) else None
    if options.get("token_weights"):
        options["token_weights"] = normal(rows).abs()
    if options.get("labels"):
        options["labels"] = case[2][:, 0].contiguous()
    upstream = normal(rows) if options["reduction"] == "none" else normal(1).squeeze(0)

    def results(call: Callable[..., Any], precision: torch.dtype, **more: Any) -> dict[str, Tensor]:
        leaves = _leaves(precision, hidden=case.hidden, weight=case.weight, bias=bias)
        given = {n: v for n, v in options.items() if call is function or n not in _PLAIN_ONLY}
        inputs = [x.to(precision) if x.is_floating_point() and precision == torch.float64 else x for x in case[2:]]
        given |= {"bias": leaves.get("bias")} if bias is not None else {}
        out = call(leaves["hidden"], leaves["weight"], *inputs, **given, **more)
        out, stats = out if isinstance(out, tuple) else (out, None)
        found = _gradients(out, leaves, upstream)
        if stats is not None:
            found |= {"lse": stats[0], "logprobs": stats[1]}
        return found

    has_stats = isinstance(case, cases.LossCase)
    found = results(function, dtype, **({"return_stats": True} if has_stats else {}))
    floor = FLOOR if has_stats else TAIL_FLOOR
    return _judge(found, results(reference, dtype), results(reference, torch.float64), floor)


def _loss_piece(backend: str | None, option: str, dtype_name: str) -> Piece:
    def run(context: Context) -> dict[str, Any]:
        from distill.kernels import linear_cross_entropy, reference
        from distill.kernels.logits_backends import unsupported_backend

        dtype, shape = _DTYPES[dtype_name], context.settings.exact_loss
        if backend is not None and (reason := unsupported_backend(backend, context.device.type, dtype, shape[1])):
            return {"passed": None, "missing": reason}
        case = cases.loss_case(*shape, 0.3, dtype, context.device, context.settings.seed)
        options = LOSS_OPTIONS[option]
        with nullcontext() if backend is None else only_backend(backend):
            return _row_loss_check(context, dtype, options, case, linear_cross_entropy, reference.linear_cross_entropy)

    kernel = "linear_cross_entropy" + (f" ({backend})" if backend else "")
    return _piece(kernel, f"{option}, {dtype_name}", run)


def _divergence_piece(option: str, dtype_name: str) -> Piece:
    def run(context: Context) -> dict[str, Any]:
        from distill.kernels import linear_topk_divergence, reference

        dtype = _DTYPES[dtype_name]
        rows, hidden, vocabulary = context.settings.exact_loss
        shape = (max(1, rows // 4), hidden, vocabulary)  # the reference goes row by row
        entries = context.settings.teacher_entries
        case = cases.teacher_case(*shape, entries, dtype, context.device, context.settings.seed)
        options = DIVERGENCE_OPTIONS[option]
        return _row_loss_check(context, dtype, options, case, linear_topk_divergence, reference.linear_topk_divergence)

    return _piece("linear_topk_divergence", f"{option}, {dtype_name}", run)


def _large_loss_piece() -> Piece:
    def run(context: Context) -> dict[str, Any]:
        from distill.kernels import linear_cross_entropy

        settings = context.settings
        hidden, vocabulary = settings.exact_large
        rows = settings.exact_large_logits // vocabulary + 3
        case = cases.loss_case(rows, hidden, vocabulary, 0.0, torch.bfloat16, context.device, settings.seed)
        with torch.no_grad():
            case.labels[1::10] = IGNORE
        loss, stats = linear_cross_entropy(*case, return_stats=True)
        d_hidden, d_weight = torch.autograd.grad(loss, (case.hidden, case.weight))

        x, weight = case.hidden.detach().double(), case.weight.detach().double()
        kept = case.labels != IGNORE
        label = case.labels.where(kept, 0)
        samples = torch.linspace(0, rows - 1, min(rows, _SAMPLES), device=context.device).long()
        columns = torch.linspace(0, vocabulary - 1, min(vocabulary, _SAMPLES), device=context.device).long()
        lse = torch.cat([(part @ weight.T).logsumexp(1) for part in x.split(1024)])
        logits = x[samples] @ weight.T
        probs = (logits - lse[samples, None]).exp_()
        probs[torch.arange(len(samples), device=context.device), label[samples]] -= 1
        exact_d_hidden = probs.mul_(kept[samples, None]) @ weight / kept.sum()
        at_columns = (x @ weight[columns].T - lse[:, None]).exp_()
        at_columns -= (label[:, None] == columns).double()
        exact_d_weight = at_columns.mul_(kept[:, None]).T @ x / kept.sum()
        exact = {
            "lse": lse.where(kept, 0.0),
            "loss": (lse - (x * weight[label]).sum(1))[kept].mean(),
            "d_hidden": exact_d_hidden,
            "d_weight": exact_d_weight,
        }
        found = {"lse": stats.lse, "loss": loss, "d_hidden": d_hidden[samples], "d_weight": d_weight[columns]}
        errors = {name: cases.relative_error(found[name].detach(), exact[name]) for name in exact}
        return {"passed": all(e <= SAMPLED_BOUND for e in errors.values()), "errors": errors}

    return _piece("linear_cross_entropy", "more than 2^31 logits, bf16, sampled", run)


def _attention_piece(
    implementation: str | None, option: str, dtype_name: str, head_dim: int, heads: tuple[int, int]
) -> Piece:
    def run(context: Context) -> dict[str, Any]:
        from distill.kernels import reference, varlen_attention

        if reason := _unsupported(implementation, context.device.type, _DTYPES[dtype_name], head_dim, option):
            return {"passed": None, "missing": reason}
        dtype = _DTYPES[dtype_name]
        lengths = list(context.settings.exact_lengths)
        case = cases.attention_case(lengths, *heads, head_dim, dtype, context.device, context.settings.seed)
        bounds, longest = case.documents.cu_seqlens, case.documents.longest
        options = ATTENTION_OPTIONS[option]

        def results(call: Callable[..., Tensor], precision: torch.dtype) -> dict[str, Tensor]:
            leaves = _leaves(precision, q=case.q, k=case.k, v=case.v)
            return _gradients(call(*leaves.values()), leaves, case.upstream)

        def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            given = {name: value for name, value in options.items() if name not in _PLAIN_ONLY}
            return reference.varlen_attention(q, k, v, bounds, **given)

        def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return varlen_attention(q, k, v, bounds, longest, implementation=implementation, **options)

        return _judge(results(ours, dtype), results(plain, dtype), results(plain, torch.float64))

    kernel = f"varlen_attention ({implementation or 'chosen'})"
    return _piece(kernel, f"{option}, {dtype_name}, head size {head_dim}, heads {heads[0]}/{heads[1]}", run)


def _unsupported(
    implementation: str | None, device_type: str, dtype: torch.dtype, head_dim: int, option: str
) -> str | None:
    from distill.kernels.attention import IMPLEMENTATIONS, unsupported_attention

    if implementation is None:
        return None
    if implementation not in IMPLEMENTATIONS:
        return "there is no such implementation"
    options = {k: v for k, v in ATTENTION_OPTIONS[option].items() if k in ("softcap", "deterministic")}
    return unsupported_attention(implementation, device_type, dtype, head_dim, **options)


def _isolation_piece(head_dim: int) -> Piece:
    """What is not a number in one document must not be seen in another, forward or backward."""

    def run(context: Context) -> dict[str, Any]:
        from distill.kernels import varlen_attention

        if reason := _unsupported("triton", context.device.type, torch.bfloat16, head_dim, "plain"):
            return {"passed": None, "missing": reason}
        lengths = [65, 130, 64]
        case = cases.attention_case(lengths, 4, 2, head_dim, torch.bfloat16, context.device, context.settings.seed)
        documents = Documents.of(lengths, context.device)
        with torch.no_grad():
            for x in case[:3]:
                x[65:195] = float("nan")
        out = varlen_attention(*case[:3], documents.cu_seqlens, documents.longest, implementation="triton")
        grads = torch.autograd.grad(out, case[:3], case.upstream)
        clean = torch.ones(sum(lengths), dtype=torch.bool, device=context.device)
        clean[65:195] = False
        return {"passed": all(bool(x[clean].isfinite().all()) for x in (out, *grads))}

    return _piece("varlen_attention (triton)", "NaN in one document", run)
