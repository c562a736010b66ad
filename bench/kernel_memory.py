"""What one contender takes in memory above its inputs, measured in a child process that runs nothing else.

The child runs the contender on inputs of a few rows, so that libraries have loaded what they load, and then once on the
real ones: the answer is the peak resident set during that call less what was resident before it.
"""

import json
import sys
from typing import Any

from distill.bench.memory_child import high_water, measure_in_child, reset_peak

_WARM = {"rows": 8, "vocabulary": 512, "tokens": 16, "mean_length": 8.0}


def measure_extra_bytes(section: str, contender: str, settings: Any) -> int:
    """Peak bytes above the inputs, results included. Raises InputError when the child fails."""
    spec = {"section": section, "contender": contender, "settings": settings.model_dump(mode="json")}
    what = f"{contender} in {section}"
    return measure_in_child("distill.bench.kernel_memory", spec, what, threads=settings.threads)


def main() -> None:
    import torch

    from distill.bench.kernels import KernelBenchSettings, contenders

    spec = json.loads(sys.argv[1])
    settings = KernelBenchSettings(**spec["settings"])
    torch.set_num_threads(settings.threads)
    section, name = spec["section"], spec["contender"]
    small = {key: min(value, getattr(settings, key)) for key, value in _WARM.items()}
    contenders(section, settings.model_copy(update=small)).calls[name]()
    call = contenders(section, settings).calls[name]
    reset_peak()
    before = high_water()
    call()
    print(high_water() - before)


if __name__ == "__main__":
    main()
