"""What one contender takes in memory above its inputs, measured in a child process that runs nothing else.

The child runs the contender on inputs of a few rows, so that libraries have loaded what they load, and then once on the
real ones: the answer is the peak resident set during that call less what was resident before it.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from distill.bench.contender import peak_rss_bytes
from distill.errors import InputError
from distill.process import child_environment, die_with_parent

_WARM = {"rows": 8, "vocabulary": 512, "tokens": 16, "mean_length": 8.0}


def measure_extra_bytes(section: str, contender: str, settings: Any) -> int:
    """Peak bytes above the inputs, results included. Raises InputError when the child fails."""
    spec = json.dumps({"section": section, "contender": contender, "settings": settings.model_dump(mode="json")})
    done = subprocess.run(
        [sys.executable, "-m", "distill.bench.kernel_memory", spec],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=child_environment(settings.threads),
        preexec_fn=die_with_parent,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        tail = " | ".join(lines[-3:])
        raise InputError(f"bench: {contender} in {section} ended with exit code {done.returncode} ({tail})")
    return int(done.stdout.split()[-1])


def reset_peak() -> None:
    """Let the peak be what is resident now, where the system can: then what making the inputs took does not hide
    what comes after."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def high_water() -> int:
    """Peak resident set in bytes since the last reset."""
    if sys.platform != "linux":
        return peak_rss_bytes()
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) * 1024


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
