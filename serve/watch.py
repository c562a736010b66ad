"""What a vLLM server says of itself while something happens: its histograms and counters, and its gauges on the way."""

import threading
from typing import Any, Self

from distill.serve.endpoint import Endpoint
from distill.serve.metrics import ENGINES, between, scrape

GAUGES = {
    "kv_cache_usage": "kv_cache_usage_perc",  # share of the cache's blocks, 0 to 1
    "running": "num_requests_running",
    "waiting": "num_requests_waiting",
}
EVERY_S = 1.0  # a page takes the server a millisecond or two


class Watch:
    """`found`, after the block: what `metrics.between` has, and {mean, max} of each gauge; None where there is no page."""

    found: dict[str, Any] | None = None

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self._pages: list[dict[str, float]] = []
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._before = scrape(self.endpoint)
        self._thread = threading.Thread(target=self._look, daemon=True)
        if self._before is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._before is None:
            return
        self._thread.join()
        found = between(self._before, scrape(self.endpoint))
        if found is not None:
            self.found = found | {name: self._gauge(of) for name, of in GAUGES.items()}

    def _look(self) -> None:
        while not self._end.wait(EVERY_S):
            page = scrape(self.endpoint)
            if page is not None:
                self._pages.append(page)

    def _gauge(self, name: str) -> dict[str, float] | None:
        values = [page[name] for page in self._pages if name in page]
        if name.endswith("_perc"):  # of each engine's own cache
            values = [page[name] / max(page.get(ENGINES, 1), 1) for page in self._pages if name in page]
        return {"mean": sum(values) / len(values), "max": max(values)} if values else None
