"""Devices the Triton kernels are compiled for, and what one ahead-of-time compilation takes.

Every file with Triton kernels has `compile_cases(target)`, a KernelCase for each kernel and each configuration it may be
launched with there, so that registers, spills and shared memory are known without a GPU. No triton is imported here.
"""

from typing import Any, NamedTuple


class Target(NamedTuple):
    """A GPU architecture."""

    name: str  # as on the command line: sm_90, gfx942
    backend: str  # "cuda" or "hip"
    arch: int | str  # as triton names it: 90, "gfx942"
    warp_size: int
    shared_memory: int  # bytes one block may have
    required: bool  # no spill and no excess of shared memory is accepted


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 166912, False),
        Target("sm_89", "cuda", 89, 32, 101376, False),
        Target("sm_90", "cuda", 90, 32, 232448, True),
        Target("sm_100", "cuda", 100, 32, 232448, True),
        Target("sm_120", "cuda", 120, 32, 101376, False),
        Target("gfx942", "hip", "gfx942", 64, 65536, False),
    )
}


class KernelCase(NamedTuple):
    """One kernel in one configuration: what triton.compile takes."""

    name: str  # unique, with the configuration in it: "flash_forward bf16 D=128 window"
    kernel: Any  # the @triton.jit function
    signature: dict[str, str]  # argument -> "*bf16", "i32", "fp32", "constexpr", "tensordesc<bf16[128,64]>"
    constants: dict[str, Any]  # of the constexpr arguments
    aligned: tuple[str, ...]  # arguments that are divisible by 16
    num_warps: int
    num_stages: int
    uses_tensor_cores: bool
