"""How the attention kernels are compiled and launched: rows a step takes, warps and stages, by device, dtype and head."""

from typing import Any, NamedTuple

import torch

HEAD_SIZES = (64, 96, 128, 256)  # what the configurations are made for; others up to the last one are padded
DTYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
DELTA_ROWS = 32


class Blocks(NamedTuple):
    """Queries and keys one step of a program takes, and how it is compiled."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


class Configuration(NamedTuple):
    """Of the forward kernel, of the one for dk and dv, and of the one for dq."""

    forward: Blocks
    d_keys: Blocks
    d_queries: Blocks


# By family of architectures, by bytes of an element, by columns of a head as padded. On Hopper the limit is registers:
# both sums of the kernel for dk and dv live in them, 128 a thread for 128 keys of 128 columns. On Blackwell they lie in
# tensor memory. "small" is for 99 KiB of shared memory and for whatever is not known. fp32 has no tensor cores. Chosen
# to compile without spills where that is required; not yet by timing.
_FP32 = {
    64: Configuration(Blocks(64, 32, 4, 2), Blocks(32, 32, 8, 2), Blocks(32, 32, 8, 2)),
    128: Configuration(Blocks(32, 32, 8, 2), Blocks(16, 16, 8, 2), Blocks(32, 32, 4, 2)),
    256: Configuration(Blocks(32, 16, 8, 2), Blocks(16, 16, 8, 1), Blocks(16, 16, 4, 2)),
}
_CONFIGURATIONS = {
    "hopper": {
        2: {
            64: Configuration(Blocks(128, 64, 4, 3), Blocks(64, 128, 8, 3), Blocks(128, 64, 8, 3)),
            128: Configuration(Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 3), Blocks(128, 64, 8, 3)),
            256: Configuration(Blocks(128, 64, 8, 2), Blocks(16, 64, 8, 3), Blocks(128, 32, 8, 2)),
        },
        4: _FP32,
    },
    "blackwell": {
        2: {
            64: Configuration(Blocks(128, 64, 4, 3), Blocks(64, 128, 8, 3), Blocks(128, 64, 4, 3)),
            128: Configuration(Blocks(128, 64, 8, 3), Blocks(32, 128, 8, 3), Blocks(128, 64, 8, 3)),
            256: Configuration(Blocks(128, 32, 8, 2), Blocks(16, 64, 8, 2), Blocks(64, 64, 8, 2)),
        },
        4: _FP32,
    },
    "ampere": {
        2: {
            64: Configuration(Blocks(128, 64, 8, 3), Blocks(64, 64, 8, 2), Blocks(128, 64, 8, 2)),
            128: Configuration(Blocks(128, 64, 8, 2), Blocks(32, 64, 8, 2), Blocks(64, 64, 8, 2)),
            256: Configuration(Blocks(64, 32, 8, 2), Blocks(16, 32, 8, 2), Blocks(32, 32, 8, 2)),
        },
        4: _FP32,
    },
    "small": {
        2: {
            64: Configuration(Blocks(128, 64, 4, 2), Blocks(32, 64, 4, 2), Blocks(64, 64, 4, 2)),
            128: Configuration(Blocks(64, 64, 4, 2), Blocks(32, 64, 8, 2), Blocks(64, 32, 4, 2)),
            256: Configuration(Blocks(64, 32, 8, 2), Blocks(16, 32, 8, 2), Blocks(32, 16, 8, 2)),
        },
        4: _FP32,
    },
}
# The derivative of a softcap takes registers that the kernel for dk and dv has not left there.
_HOPPER_D_KEYS_WITH_SOFTCAP = {64: Blocks(32, 128, 8, 3), 128: Blocks(32, 64, 8, 3)}
_FAMILIES = {80: "ampere", 90: "hopper", 100: "blackwell", 103: "blackwell"}


def padded_head(head_dim: int) -> int:
    """Columns a kernel holds of a head: tensor cores take 16 at least, Triton takes powers of two."""
    return max(16, 1 << (head_dim - 1).bit_length())


def configuration(arch: int | str | None, head_dim: int, dtype: torch.dtype, has_softcap: bool) -> Configuration:
    """What the kernels are launched with on an architecture, named as in targets.py (90, "gfx942"; None: unknown)."""
    family, columns = _FAMILIES.get(arch, "small"), max(64, padded_head(head_dim))
    chosen = _CONFIGURATIONS[family][dtype.itemsize][columns]
    if has_softcap and family == "hopper" and dtype.itemsize == 2:
        return chosen._replace(d_keys=_HOPPER_D_KEYS_WITH_SOFTCAP.get(columns, chosen.d_keys))
    return chosen


def delta_constants(head_dim: int) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head(head_dim),
        "BLOCK_M": DELTA_ROWS,
        "num_warps": 4,
        "num_stages": 1,
    }


def block_constants(head_dim: int, tile: int, blocks: Blocks, window: int, softcap: float) -> dict[str, Any]:
    return {
        "HEAD_DIM": head_dim,
        "BLOCK_D": padded_head(head_dim),
        "TILE": tile,
        "BLOCK_M": blocks.queries,
        "BLOCK_N": blocks.keys,
        "HAS_WINDOW": window > 0,
        "HAS_SOFTCAP": softcap > 0,
        "num_warps": blocks.num_warps,
        "num_stages": blocks.num_stages,
    }
