"""`distill bench gpu`: is what the kernels compute right on this GPU, and how fast is it beside peers and limits.

Pieces are measured one by one, the most important first, by a child process that holds the device (gpu_child.py); this
process keeps the result's file whole after each of them. Killed at any moment, or cut at its budget of time, the same
command goes on where it was; a file made with another GPU, other versions or other sources is refused.

The result:

    kind                     "gpu suite"
    environment              GPU, capability, memory, CUDA, Python, versions, hash of the sources
    settings                 GpuSuiteSettings as given
    sessions[]               one a start: commit, driver, power limit and clocks as found, `measured` ceilings then
    pieces                   {key: what is measured (gpu_pieces.py), "session": its index, "measured": {...}}
                             a contender is {"seconds": median, "low", "high": quartiles, "rounds", "peak_bytes"},
                             {"missing": why it cannot be measured here} or {"error": what it raised}
    pending                  keys of the pieces that are not measured yet
    problems                 correctness checks that failed, one line each
"""

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill import console
from distill.artifact import changes, read_json, require_file_place, write_json
from distill.bench.gpu_child import SILENCE_SECONDS, Child
from distill.bench.gpu_pieces import GpuSuiteSettings, Piece, all_pieces
from distill.errors import InputError

KIND = "gpu suite"
_TRIES = 4  # of one piece, whose contenders take the child down one after another
_STRIKES = 2  # processes a contender may take down in one section before the rest of this session is without it


def bench_gpu(settings: GpuSuiteSettings, out: Path, *, commit: str | None = None) -> dict[str, Any]:
    """Measure what `out` does not hold yet, within the budget. Raises InputError."""
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "bench gpu: this machine has no CUDA device; `distill bench kernels` measures the CPU, "
            "`distill bench kernels --compile-only` compiles for GPUs"
        )
    require_file_place(out)
    return _Suite(settings, out, commit).run()


class _Suite:
    """The result so far, its file, and the child that adds to it."""

    def __init__(self, settings: GpuSuiteSettings, out: Path, commit: str | None):
        self.settings, self.out, self.commit = settings, out, commit
        self.crashed: dict[str, dict[str, str]] = {}
        self.strikes: dict[tuple[str, str], list[str]] = {}  # (section, contender): how, once for each
        self.result = read_json(out) if out.exists() else None
        if self.result is not None:
            self._require_ours()
            # Pieces of one result have the same inputs, whenever they are measured.
            self.settings = replace(settings, seed=self.result["settings"]["seed"])
        self.pieces: dict[str, Piece] = {piece.key: piece for piece in all_pieces(self.settings)}
        self.deadline = time.monotonic() + settings.budget_seconds
        self.had_session = False

    def run(self) -> dict[str, Any]:
        with (
            tempfile.TemporaryDirectory(prefix="distill-bench-") as name,
            console.progress("{task.fields[now]}") as bar,
        ):
            done = len(self.result["pieces"]) if self.result else 0
            task = bar.add_task("GPU suite", total=len(self.pieces), completed=done, now="starting")
            while self._pending() and time.monotonic() < self.deadline:
                if not self._child(Path(name) / "worker.log", lambda now: bar.update(task, **now)):
                    break
        if self.result is None:
            raise InputError("bench gpu: the budget was spent before the first measurement; give it more seconds")
        return self.result

    def _pending(self) -> list[str]:
        done = self.result["pieces"] if self.result else {}
        return [key for key in self.pieces if key not in done]

    def _require_ours(self) -> None:
        parts = {"kind", "environment", "settings", "sessions", "pieces", "problems"}
        if not isinstance(self.result, dict) or self.result.get("kind") != KIND or parts - self.result.keys():
            raise InputError(f"{self.out}: exists and was not made by `distill bench gpu`; choose another --out")
        kept = json.loads(json.dumps(self.settings.identity))
        found = {name: self.result["settings"].get(name) for name in kept}
        if differing := changes(found, kept):
            raise InputError(
                f"{self.out}: was started with other settings ({'; '.join(differing)}); choose another --out"
            )

    def _child(self, log: Path, show: Callable[[dict[str, Any]], None]) -> bool:
        """Run one child to its end. False when there is nothing left to do, or no time to do it."""
        spec = {
            "settings": vars(self.settings),
            "done": sorted(self.result["pieces"]) if self.result else [],
            "crashed": {key: found for key in self._pending() if (found := self._without(key))},
            "deadline": self.deadline,
            "commit": self.commit,
        }
        child = Child(spec, log)
        key = contender = lost = None
        did_something = may_end = False
        try:
            for message in child.messages():
                if "environment" in message:
                    self._begin(message)
                elif "start" in message:
                    key, contender = message["start"], None
                    show({"now": key})
                elif "contender" in message:
                    contender = message["contender"]
                elif "done" in message:
                    self._keep(key, message["value"])
                    show({"advance": 1})
                    key, did_something = None, True
                elif "lost" in message:
                    lost = message["lost"]
                    break
            may_end = lost is None and not child.has_hung
        finally:
            code = child.end(kill=not may_end)
        if time.monotonic() > self.deadline or (key is None and code == 0):
            return False  # a piece cut by the budget did nothing wrong
        if child.has_hung:
            how = f"gave no answer for {SILENCE_SECONDS:.0f} s"
        else:
            how = lost or f"ended its process with exit code {code} ({child.last_words()})"
        if key is not None:
            self._blame(key, contender, how, strikes=_STRIKES if child.has_hung else 1)
        elif not did_something:
            raise InputError(f"bench gpu: the measuring process {how.replace(' its process', '')}")
        return True

    def _without(self, key: str) -> dict[str, str]:
        """{contender: why it is not measured in this piece}: it took the process down here, or too often elsewhere."""
        section = self.pieces[key].about["section"]
        out = {
            contender: f"not tried again: {reasons[0]}"
            for (place, contender), reasons in self.strikes.items()
            if place == section and len(reasons) >= _STRIKES
        }
        return out | self.crashed.get(key, {})

    def _begin(self, message: dict[str, Any]) -> None:
        found = message["environment"]
        if self.result is None:
            self.result = {
                "kind": KIND,
                "environment": found,
                "settings": json.loads(json.dumps(vars(self.settings))),
                "sessions": [],
                "pieces": {},
                "problems": [],
            }
        elif differing := changes(self.result["environment"], found):
            raise InputError(
                f"{self.out}: holds measurements made with something else ({'; '.join(differing)}); "
                "choose another --out or delete it"
            )
        if not self.had_session:  # a child started in another's place belongs to the same session
            self.result["sessions"].append(message["session"])
            self.had_session = True
        self._write()

    def _keep(self, key: str, value: dict[str, Any]) -> None:
        piece = self.pieces[key]
        self.result["pieces"][key] = {
            **piece.about,
            "session": len(self.result["sessions"]) - 1,
            "measured": value,
        }
        if piece.is_check and value["passed"] is False:
            self.result["problems"].append(f"{key}: {value.get('error') or _exceeded(value)}")
        self._write()

    def _write(self) -> None:
        self.result["pending"] = self._pending()
        write_json(self.out, self.result)

    def _blame(self, key: str, contender: str | None, reason: str, *, strikes: int) -> None:
        """The next child measures the piece without that contender; without a culprit the piece is given up."""
        if contender is not None:
            place = (self.pieces[key].about["section"], contender)
            self.strikes.setdefault(place, []).extend([f"{reason} in {key}"] * strikes)
        crashed = self.crashed.setdefault(key, {})
        console.note(f"{key}: {contender or 'the piece'} {reason}")
        if contender is None or contender in crashed or len(crashed) >= _TRIES:
            is_check = self.pieces[key].is_check
            self._keep(key, {"error": reason, "contenders": {}} | ({"passed": False} if is_check else {}))
        else:
            crashed[contender] = reason


def _exceeded(value: dict[str, Any]) -> str:
    errors = ", ".join(f"{name} {error:.1e}" for name, error in value.get("errors", {}).items())
    plain = ", ".join(f"{name} {error:.1e}" for name, error in value.get("plain_errors", {}).items())
    return f"error against float64 {errors or 'unknown'}" + (f"; plain path {plain}" if plain else "")


def show_gpu(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    from distill.bench.gpu_tables import gpu_tables
    from distill.bench.gpu_targets import gpu_targets

    for title, columns, rows in gpu_tables(result):
        console.table(title, columns, rows)
    console.table("targets", ["target", "wanted", "measured", ""], gpu_targets(result))
    for problem in result["problems"]:
        console.note(f"failed: {problem}")
    if result["pending"]:
        console.note(f"not measured (out of time): {', '.join(result['pending'])}")
