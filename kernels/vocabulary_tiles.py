"""How a product with the vocabulary is cut into tiles on each architecture, launched, and compiled without a device.

The kernels of vocabulary_gemm.py and vocabulary_gradient.py are persistent: as many programs as the device holds at once
walk over the tiles, and the loads of the next tile are in flight during the epilogue of this one. Tiles are walked in
groups of row blocks, so that the tiles in flight at one time share their rows of x and of W in the L2 cache.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .targets import KernelCase, Target
from .vocabulary_rows import gain, inverse, kernel_case


class Config(NamedTuple):
    """How the product is cut."""

    rows: int  # of x in a tile
    columns: int  # of the vocabulary in a tile
    depth: int  # of H in one step
    group: int  # row blocks walked together
    warps: int
    stages: int  # steps whose loads are in flight
    programs: int  # on one multiprocessor
    descriptors: bool  # loads and stores by TMA where the tensors allow it


# For rows that do not begin at multiples of 16 bytes: each element has a load and, in registers, a pointer of its own.
ODD_ROWS = Config(64, 128, 32, 8, 8, 3, 1, False)

# By architecture, the first is the one used.
# sm_90: the largest tile whose accumulator fits the registers of two warp groups: it needs the least L2 traffic per FLOP.
#   Its epilogue hides under nothing but loads, which costs the more the smaller H is; two programs of half the size on a
#   multiprocessor hide it under each other's products and need a third more L2 traffic.
# sm_100: the accumulator lies in tensor memory; the epilogue of a larger tile would not fit the registers.
# gfx942: splitting a product goes through its 64 KiB of shared memory.
# other: what fits the 99 KiB of shared memory of sm_86, sm_89 and sm_120.
CONFIGS = {
    "sm_80": (Config(128, 256, 32, 8, 8, 4, 1, False), Config(128, 128, 32, 8, 4, 4, 2, False)),
    "sm_90": (Config(128, 256, 64, 16, 8, 4, 1, True), Config(128, 128, 64, 16, 4, 3, 2, True)),
    "sm_100": (Config(128, 128, 64, 16, 4, 3, 2, True),),
    "gfx942": (Config(64, 128, 32, 8, 4, 2, 1, False),),
    "other": (Config(128, 128, 32, 8, 8, 3, 1, False),),
}


class Product(NamedTuple):
    """x @ weight.T as the kernels take it; a tensor that TMA moves is a descriptor."""

    config: Config
    programs: int
    x: Tensor | TensorDescriptor
    weight: Tensor | TensorDescriptor
    out: Tensor | TensorDescriptor | None
    scalars: tuple[int | float, ...]
    constants: dict[str, Any]


def tiled_product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    softcap: float | None,
    temperature: float,
    config: Config | None,
) -> Product:
    """Checks the tensors, chooses a configuration unless one is given, and cuts the work."""
    for name, matrix in (("x", x), ("weight", weight), ("out", out)):
        if matrix is not None:
            check_matrix(name, matrix)
    n, width = x.shape
    vocabulary = weight.shape[0]
    if x.dtype != torch.bfloat16 or width == 0:
        raise ValueError(f"x: got {x.dtype} {tuple(x.shape)}, takes bfloat16 [n, H] with H > 0")
    if weight.dtype != x.dtype or weight.shape[1] != width or vocabulary == 0:
        raise ValueError(f"weight: got {weight.dtype} {tuple(weight.shape)}, takes {x.dtype} [V, {width}] with V > 0")
    if bias is not None and (bias.shape != (vocabulary,) or not bias.is_contiguous()):
        raise ValueError(f"bias: got shape {tuple(bias.shape)}, takes contiguous ({vocabulary},)")
    if out is not None and (out.dtype != x.dtype or out.shape != (n, vocabulary)):
        raise ValueError(f"out: got {out.dtype} {tuple(out.shape)}, takes {x.dtype} ({n}, {vocabulary})")

    fits = all(map(_fits_descriptor, (x, weight, out)))
    config = config or (CONFIGS[_architecture(x.device)][0] if fits else ODD_ROWS)
    config = config._replace(descriptors=config.descriptors and fits)
    tiles = triton.cdiv(n, config.rows) * triton.cdiv(vocabulary, config.columns)
    out_stride = 0 if out is None else out.stride(0)
    scalars = (
        n, vocabulary, width, x.stride(0), weight.stride(0), out_stride, gain(softcap, temperature), inverse(softcap)
    )  # fmt: skip
    constants = _constants(config, softcap is not None, bias is not None, width % config.depth == 0)
    constants |= {"num_warps": config.warps, "num_stages": config.stages}
    programs = min(tiles, config.programs * _multiprocessors(x.device))
    if not config.descriptors:
        return Product(config, programs, x, weight, out, scalars, constants)
    x = TensorDescriptor.from_tensor(x, [config.rows, config.depth])
    weight = TensorDescriptor.from_tensor(weight, [config.columns, config.depth])
    if out is not None:
        out = TensorDescriptor.from_tensor(out, [config.rows, config.columns // 2])
    return Product(config, programs, x, weight, out, scalars, constants)


def _constants(config: Config, softcap: bool, bias: bool, even: bool) -> dict[str, Any]:
    """The constexpr arguments that both products share."""
    return {
        "SOFTCAP": softcap,
        "BIAS": bias,
        "TMA": config.descriptors,
        "EVEN": even,
        "ROWS": config.rows,
        "COLUMNS": config.columns,
        "DEPTH": config.depth,
        "GROUP": config.group,
    }


def check_matrix(name: str, matrix: Tensor) -> None:
    if matrix.ndim != 2 or (matrix.shape[1] > 1 and matrix.stride(1) != 1):
        found = f"shape {tuple(matrix.shape)} with strides {matrix.stride()}"
        raise ValueError(f"{name}: got {found}, takes a matrix with adjacent elements in a row")


def _fits_descriptor(matrix: Tensor | None) -> bool:
    """Whether TMA can move tiles of this matrix: its rows begin at multiples of 16 bytes."""
    if matrix is None:
        return True
    row_bytes = matrix.stride(0) * matrix.element_size()
    return (
        matrix.shape[0] > 0
        and matrix.stride(0) >= matrix.shape[1]
        and row_bytes % 16 == 0
        and matrix.data_ptr() % 16 == 0
    )


@cache
def _architecture(device: torch.device) -> str:
    """A key of CONFIGS."""
    if device.type != "cuda":
        return "other"
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}.get((major, minor), "other")


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 1


def product_cases(
    label: str,
    kernel: Any,
    target: Target,
    covering: tuple[set[str], ...],
    optional: dict[str, tuple[str, ...]],
    constants: dict[str, Any] | None = None,
) -> list[KernelCase]:
    """A kernel in each configuration of the architecture and for odd rows, with each set of options of `covering`.

    optional: by option, the arguments that are None without it.
    """
    cases = []
    configs = [(config, False) for config in CONFIGS.get(target.name, CONFIGS["other"])]
    for config, odd in (*configs, (ODD_ROWS, True)):
        loads = "tma" if config.descriptors else "odd rows" if odd else "pointers"
        types = dict.fromkeys(("x", "weight", "out", "bias_ptr"), "*bf16")
        if config.descriptors:
            types["x"] = f"tensordesc<bf16[{config.rows},{config.depth}]>"
            types["weight"] = f"tensordesc<bf16[{config.columns},{config.depth}]>"
            types["out"] = f"tensordesc<bf16[{config.rows},{config.columns // 2}]>"
        for options in covering:
            case = option_case(
                f"{label} {config.rows}x{config.columns}x{config.depth} {loads}",
                kernel,
                options,
                optional,
                _constants(config, "SOFTCAP" in options, "BIAS" in options, not odd) | (constants or {}),
                types,
                config.warps,
                config.stages,
                uses_tensor_cores=True,
            )
            if odd:
                case = case._replace(aligned=tuple(name for name in case.aligned if not name.endswith("stride")))
            cases.append(case)
    return cases


def option_case(
    label: str,
    kernel: Any,
    options: set[str],
    optional: dict[str, tuple[str, ...]],
    constants: dict[str, Any],
    types: dict[str, str],
    warps: int,
    stages: int,
    *,
    uses_tensor_cores: bool,
) -> KernelCase:
    """One set of options; `optional` as for product_cases."""
    constants = constants | {option: option in options for option in optional}
    constants |= {name: None for option, names in optional.items() if option not in options for name in names}
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    types = {name: kind for name, kind in (_TYPES | types).items() if name in kernel.arg_names}
    types = {name: kind for name, kind in types.items() if name not in constants}
    aligned = tuple(name for name, kind in types.items() if kind[0] == "*" or name.endswith("stride"))
    name = " ".join([label, *sorted(option.lower() for option in options)])
    return kernel_case(name, kernel, types, constants, aligned, warps, stages, uses_tensor_cores)


# What an argument is unless a case says otherwise.
_TYPES = (
    {f"{name}_ptr": "*fp32" for name in ("anchor", "used_anchor", "sum", "max", "score", "sums", "mean")}
    | {f"{name}_ptr": "*fp32" for name in ("lse", "factor", "uniform")}
    | {"best_ptr": "*i32", "flag_ptr": "*i32", "argmax_ptr": "*i64"}
    | dict.fromkeys(("n", "vocabulary", "width", "tiles"), "i32")
    | dict.fromkeys(("x_stride", "weight_stride", "out_stride"), "i32")
    | dict.fromkeys(("gain", "inv_softcap", "inv_temperature", "max_distance"), "fp32")
)
