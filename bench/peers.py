"""Who is measured beside our kernels, and why one cannot be measured here.

A peer is used as its own documentation says, at its defaults; a variant that is better in some respect has a line of
its own. Nothing is imported before `load`, so a package that is missing is a reason in the result and not an error.

    loss_peers.py        fn(hidden[N,H], weight[V,H], labels[N]) -> mean loss over the labels that are not -100
    divergence_peers.py  fn(hidden[N,H], weight[V,H], teacher_ids[N,K], teacher_logprobs[N,K]) -> mean forward KL
    attention_peers.py   make(documents) -> fn(q[T,Hq,D], k[T,Hk,D], v[T,Hk,D]) -> out[T,Hq,D]
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

LARGE_CHUNK = 4096  # rows after which, on a GPU, a chunk's passes over the weight cost less than its arithmetic


class Peer(NamedTuple):
    """`load()` returns the function to measure. `missing(device type)` says why it cannot be, or None."""

    load: Callable[[], Callable[..., Any]]
    package: str | None = None  # module that must be installed
    devices: tuple[str, ...] = ("cpu", "cuda")
    needs: Callable[[], str | None] | None = None  # any other reason
    is_same_function: bool = True  # as the others of its table, so that results can be compared

    def missing(self, device_type: str) -> str | None:
        if device_type not in self.devices:
            return f"runs on {' and '.join(self.devices)}, not on {device_type}"
        if self.package is not None and find_spec(self.package) is None:
            return f"{self.package.replace('_', '-')} is not installed"
        return self.needs() if self.needs is not None else None
