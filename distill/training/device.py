"""The device that a training runs on: in which precision, and with how much memory."""

import os
from pathlib import Path

import torch

from distill.errors import InputError
from distill.process import peak_rss_bytes
from distill.training.settings import Precision


def this_device() -> torch.device:
    """The kind of device that is here: a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def require_gpu_to_offload(cpu_offload: bool) -> None:
    """Raise InputError for CPU offload without a GPU."""
    if cpu_offload and this_device().type == "cpu":
        raise InputError("cpu_offload keeps a GPU's weights in the CPU's memory; there is no GPU here, so leave it out")


def resolve_precision(precision: Precision, device: torch.device, hidden: int) -> torch.dtype:
    """The dtype of matrix products. `auto` is bf16 on a GPU, and on CPUs that have it for students at least 256 wide:
    below, casts cost more than the products save."""
    if precision == "auto":
        pays = device.type == "cuda" or (torch.cpu._is_avx512_bf16_supported() and hidden >= 256)
        precision = "bf16" if pays else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def device_bytes(device: torch.device) -> int:
    """Memory of the GPU; or of the machine, or of the container this runs in where that is less."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        has = min(has, int(text)) if text.isdecimal() else has
    return has


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: of tensors on a GPU, of this whole process on a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_rss_bytes()
