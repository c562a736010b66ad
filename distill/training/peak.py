"""The rate a device could reach: from the hardware table for a known GPU, measured for anything else."""

import time
from statistics import median

import torch

from distill.flops import hardware_table

# What torch calls a device, and its row in hardware.yaml.
_GPU_ROWS = {"H200": "h200-sxm", "H100": "h100-sxm", "A100-SXM4-80GB": "a100-sxm-80gb", "NVIDIA L4": "l4"}


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """(FLOP/s, where the number is from) for matrix products on `device` in `dtype`."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        row = next((row for part, row in _GPU_ROWS.items() if part in name), None)
        if row is not None and dtype is torch.bfloat16:
            return hardware_table()[row].peak_bf16_tflops * 1e12, f"hardware.yaml: {row}"
    return _measured(device, dtype), f"measured: 1024 x 1024 x 1024 {str(dtype).removeprefix('torch.')} products"


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    """Median rate of a square matrix product, at the current number of threads."""
    a, b = (torch.randn(1024, 1024, device=device).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return 2 * 1024**3 / median(seconds[3:])
