"""Child processes, in an environment where they neither fight for cores nor import our folders by bare names; and what
this process has taken."""

import ctypes
import os
import resource
import signal
import sys
from collections.abc import Mapping


def child_environment(threads: int | None = None, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every child process.

    PYTHONSAFEPATH keeps the working directory off sys.path (a bare `kernels` would shadow the library of that name).
    Passive waiting keeps two children on the same cores from spinning against each other: two jobs of two threads
    give 58 % of one job's throughput without it and 103 % with it. Tokenizers run on rayon's threads, as many as all else.
    """
    env = dict(os.environ)
    env.update(
        PYTHONSAFEPATH="1",
        OMP_WAIT_POLICY="passive",
        GOMP_SPINCOUNT="0",
        DO_NOT_TRACK="1",
        VLLM_NO_USAGE_STATS="1",
    )
    if threads is not None:
        env["OMP_NUM_THREADS"] = env["RAYON_NUM_THREADS"] = str(threads)
    env.update(extra or {})
    return env


def distill_command(*arguments: str) -> list[str]:
    """The argument vector that runs `distill ...` in this interpreter."""
    return [sys.executable, "-m", "distill", *arguments]


def die_with_parent() -> None:
    """For preexec_fn: ask the kernel to send SIGTERM to the child when its parent dies, however it dies (Linux)."""
    PR_SET_PDEATHSIG = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far (Linux counts in KiB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
