"""What a running study shows: on a terminal a table of its cells, elsewhere a line for each stage that ends."""

import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from rich.live import Live
from rich.table import Table
from rich.text import Text

from distill import console
from distill.study.jobs import State
from distill.study.stages import Stage

_MARKS = {"waiting": "·", "running": "▸", "done": "✓", "failed": "✗"}
_STYLES = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red"}
_LINES_BESIDE = 6  # of a terminal: title, head, the sum and room to breathe


class Watched:
    """A context manager; `tell` may be called from any thread."""

    def __init__(self, stages: Sequence[Stage]):
        self._stages = list(stages)
        self._states: dict[str, State | Literal["waiting"]] = {one.name: "waiting" for one in stages}
        self._began: dict[str, float] = {}
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._live = Live(
            get_renderable=self._table, console=console.err, refresh_per_second=2, transient=True, redirect_stdout=False
        )

    def __enter__(self) -> "Watched":
        self._start = time.monotonic()
        if console.err.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live.is_started:
            self._live.stop()

    def tell(self, name: str, state: State, reason: str) -> None:
        with self._lock:
            self._states[name] = state
            ended = sum(one in ("done", "failed") for one in self._states.values())
        if state == "running":
            self._began[name] = time.monotonic()
        elif state == "failed":
            console.note(f"{name}: {reason}")
        elif not console.err.is_terminal:
            took = time.monotonic() - self._began[name]
            console.note(f"{name}: done in {took:.0f} s ({ended} of {len(self._states)})")

    def _table(self) -> Table:
        with self._lock:
            states = dict(self._states)
        counts = Counter(states.values())
        took = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - self._start))
        said = ", ".join(f"{counts[state]} {state}" for state in _MARKS if counts[state])
        view = Table(title=f"study · {took} · {said}", title_justify="left", box=None, pad_edge=False)
        for column in ("", "trained", "asked"):
            view.add_column(column, no_wrap=True)
        rows = self._rows(states)
        room = max(3, console.err.height - _LINES_BESIDE)
        urgent, unseen = {"failed": 0, "running": 1, "waiting": 2, "done": 3}, len(rows) - room
        if unseen > 0:  # what happens now is shown before what is over
            rows = sorted(rows, key=lambda row: min(urgent[s] for group in row[1:] for s in group))[:room]
        for name, *groups in rows:
            view.add_row(name, *(_marks(group) for group in groups))
        if unseen > 0:
            view.add_row(Text(f"and {unseen} more", "dim"))
        return view

    def _rows(self, states: dict[str, str]) -> list[tuple[str, list[str], list[str]]]:
        """(what, states of its trainings, states of what is asked) of every cell, and of what belongs to none."""
        rows: dict[str, tuple[str, list[str], list[str]]] = {}
        shared = {name for one in self._stages if one.name.startswith("serve ") for name in one.after}
        for one in self._stages:
            kind, _, what = one.name.partition(" ")
            if one.name in shared:  # shown with every arm whose students it trains
                continue
            name = one.cell or (what if kind == "ask" else one.name)
            row = rows.setdefault(name, (name, [], []))
            if kind == "serve":
                # What is not among the stages was there before: a launch only has what is left.
                row[1].extend(states.get(training, "done") for training in one.after)
            row[1 if kind in ("train", "traces") else 2].append(states[one.name])
        return list(rows.values())


def _marks(states: list[str]) -> Text:
    text = Text()
    for state in states:
        text.append(_MARKS[state], _STYLES[state])
    return text
