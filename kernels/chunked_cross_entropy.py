"""Linear cross-entropy and its gradients in one pass over chunks of rows, in plain torch.

For one row with hidden x, label y and weight u, with z = softcap(W x + b), lse = logsumexp(z), p = exp(z - lse):

    loss   = u * [ (1 - s) (lse - z_y) + s (lse - mean z) + c lse^2 ]       s: label smoothing, c: z_loss
    dz     = u * [ (1 + 2 c lse) p - (1 - s) onehot(y) - s / V ] * (1 - (z / softcap)^2)
    dx     = dz @ W          dW += dz^T @ x          db += dz

Two sizes are chosen separately. A chunk is what one matrix product takes: at least as large as dW on a CPU,
since every chunk also costs one pass over dW. Inside it the softmax runs over blocks of a few rows that stay in the cache,
so the float32 logits of a chunk never exist; dz overwrites the logits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_WORKSPACE_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}


class LossOptions(NamedTuple):
    z_loss: float
    label_smoothing: float
    softcap: float | None


class Pass(NamedTuple):
    """Row results in float32 (float64 for float64 inputs), and the gradients of the sum of `losses` asked for.

    d_hidden has the input's dtype; d_weight too if one chunk sufficed, otherwise it was accumulated in float32.
    """

    losses: Tensor
    lse: Tensor
    logprobs: Tensor
    correct: Tensor | None
    d_hidden: Tensor | None
    d_weight: Tensor | None
    d_bias: Tensor | None


def block_bytes(device_type: str) -> int:
    """Bytes of one softmax block in float32: what fits beside others in the L2 of each CPU core, or a GPU's launch."""
    return (1 << 20) * torch.get_num_threads() if device_type == "cpu" else 1 << 28


def chunk_rows(rows: int, weight: Tensor, workspace_bytes: int | None) -> int:
    """Rows of one chunk such that its logits fit the workspace (one row at least), chunks being of equal size."""
    vocabulary, width = weight.shape
    if workspace_bytes is None:
        workspace_bytes = DEFAULT_WORKSPACE_BYTES.get(weight.device.type, 1 << 30)
        if weight.device.type == "cpu":  # fewer rows would cost more in passes over dW than they save
            workspace_bytes = max(workspace_bytes, vocabulary * width * 4)
    limit = max(1, workspace_bytes // (vocabulary * weight.dtype.itemsize))
    chunks = max(1, -(-rows // limit))
    return max(1, -(-rows // chunks))


def chunked_pass(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weights: Tensor | None,
    options: LossOptions,
    *,
    need_d_hidden: bool = False,
    need_d_weight: bool = False,
    need_d_bias: bool = False,
    need_correct: bool = False,
    workspace_bytes: int | None = None,
) -> Pass:
    """One pass over hidden[n,H] (no ignored rows among labels[n]) with weight[V,H] of the same dtype."""
    device, dtype = hidden.device, hidden.dtype
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    stats_dtype = torch.promote_types(dtype, torch.float32)
    losses, lse, logprobs = torch.empty(3, rows, dtype=stats_dtype, device=device)
    correct = torch.empty(rows, dtype=torch.bool, device=device) if need_correct else None
    d_hidden = torch.empty_like(hidden) if need_d_hidden else None
    d_weight = None
    d_bias = torch.zeros(vocabulary, dtype=stats_dtype, device=device) if need_d_bias else None
    part = torch.empty_like(weight) if need_d_weight else None
    need_gradient = need_d_hidden or need_d_weight or need_d_bias

    step = chunk_rows(rows, weight, workspace_bytes)
    block = max(1, min(step, block_bytes(device.type) // (vocabulary * stats_dtype.itemsize)))
    logits_buffer = torch.empty(step, vocabulary, dtype=dtype, device=device)
    softmax = _RowSoftmax(options, block, vocabulary, stats_dtype, dtype, device, need_gradient, d_bias)

    with torch.autocast(device.type, enabled=False):
        for start in range(0, rows, step):
            end = min(start + step, rows)
            x = hidden[start:end]
            logits = logits_buffer[: end - start]
            torch.mm(x, weight.t(), out=logits) if bias is None else torch.addmm(bias, x, weight.t(), out=logits)
            for low in range(start, end, block):
                high = min(low + block, end)
                where = slice(low, high)
                softmax(
                    logits[low - start : high - start],
                    labels[where],
                    None if row_weights is None else row_weights[where],
                    losses[where],
                    lse[where],
                    logprobs[where],
                    None if correct is None else correct[where],
                )
            if d_hidden is not None:
                torch.mm(logits, weight, out=d_hidden[start:end])
            if need_d_weight:
                # A CPU's product of bfloat16 matrices comes out as bfloat16, so each chunk's part is rounded once.
                part = torch.mm(logits.t(), x, out=part)
                if step >= rows:
                    d_weight = part
                else:
                    first = d_weight is None
                    d_weight = torch.empty_like(weight, dtype=stats_dtype) if first else d_weight
                    _accumulate(d_weight, part, first)
    if need_d_weight and d_weight is None:  # there were no rows
        d_weight = torch.zeros_like(weight)
    return Pass(losses, lse, logprobs, correct, d_hidden, d_weight, d_bias)


def _accumulate(total: Tensor, part: Tensor, first: bool) -> None:
    """total += part (= part if first) in pieces: torch converts a mixed-dtype operand as a whole beforehand."""
    rows = max(1, block_bytes(total.device.type) // (total.shape[1] * total.dtype.itemsize))
    for total_block, part_block in zip(total.split(rows), part.split(rows), strict=True):
        total_block.copy_(part_block) if first else total_block.add_(part_block)


class _RowSoftmax:
    """Losses of a block of rows, whose logits[r,V] it replaces by dz; its two float32 buffers are reused."""

    def __init__(
        self,
        options: LossOptions,
        block: int,
        vocabulary: int,
        stats_dtype: torch.dtype,
        logits_dtype: torch.dtype,
        device: torch.device,
        need_gradient: bool,
        d_bias: Tensor | None,
    ) -> None:
        self.options = options
        self.need_gradient = need_gradient
        self.d_bias = d_bias
        # Only a plain softmax lets exp() write dz straight into the logits.
        self.is_plain = options == LossOptions(0.0, 0.0, None) and d_bias is None
        self.wide = torch.empty(block, vocabulary, dtype=stats_dtype, device=device)
        self.wide_logits = None if logits_dtype == stats_dtype else torch.empty_like(self.wide)

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        row_weights: Tensor | None,
        losses: Tensor,
        lse: Tensor,
        logprobs: Tensor,
        correct: Tensor | None,
    ) -> None:
        z_loss, smoothing, softcap = self.options
        rows, vocabulary = logits.shape
        column = labels[:, None]

        z = logits if self.wide_logits is None else self.wide_logits[:rows].copy_(logits)
        if softcap is not None:
            z.div_(softcap).tanh_().mul_(softcap)
        logp = torch.log_softmax(z, 1, out=self.wide[:rows])
        logp_label = logp.gather(1, column)
        logprobs.copy_(logp_label[:, 0])
        torch.sub(z.gather(1, column)[:, 0], logprobs, out=lse)
        torch.neg(logprobs, out=losses)
        if smoothing:
            losses.mul_(1 - smoothing).add_(lse - z.mean(1), alpha=smoothing)
        if z_loss:
            losses.addcmul_(lse, lse, value=z_loss)
        if row_weights is not None:
            losses.mul_(row_weights)
        if correct is not None:
            torch.eq(logp.argmax(1), labels, out=correct)
        if not self.need_gradient:
            return

        if self.is_plain and row_weights is None:
            torch.exp(logp, out=logits)
            logits.scatter_(1, column, logp_label.expm1_().to(logits.dtype))  # p - 1 without cancellation
            return
        dz = logp.exp_()
        at_label = logp_label.expm1_()
        if z_loss:
            # (1 + a) p - 1 = (p - 1) + a p
            factor = (2 * z_loss * lse)[:, None]
            at_label.addcmul_(at_label + 1, factor)
            dz.addcmul_(dz, factor)
        if smoothing:
            at_label.add_(smoothing - smoothing / vocabulary)
            dz.sub_(smoothing / vocabulary)
        dz.scatter_(1, column, at_label)
        if softcap is not None:
            dz.mul_(z.div_(softcap).square_().neg_().add_(1))
        if row_weights is not None:
            dz.mul_(row_weights[:, None])
        if self.d_bias is not None:
            self.d_bias.add_(dz.sum(0))
        logits.copy_(dz)
