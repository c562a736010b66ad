"""`distill bench gpu`: is what the kernels compute right on this GPU, and how fast is it beside peers and limits.

Pieces are measured one by one, the most important first, by a child process that holds the device (gpu_worker.py); this
process keeps the result's file whole after each of them. Killed at any moment, or cut at its budget of time, the same
command goes on where it was; a file made with another GPU, other versions or other sources is refused.

The result:

    kind                     "gpu suite"
    environment              GPU, capability, memory, CUDA, Python, versions, commit, hash of the sources
    settings                 GpuSuiteSettings as given
    sessions[]               one a start: driver, power limit and clocks as found, `measured` ceilings of that session
    pieces                   {key: what is measured (gpu_pieces.py), "session": its index, "measured": {...}}
                             a contender is {"seconds": median, "low", "high": quartiles, "rounds", "peak_bytes"},
                             {"missing": why it cannot be measured here} or {"error": what it raised}
    pending                  keys of the pieces that are not measured yet
    problems                 correctness checks that failed, one line each
"""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from distill import console
from distill.artifact import changes, read_json, require_file_place, write_json
from distill.bench.gpu_pieces import GpuSuiteSettings, Piece, all_pieces
from distill.errors import InputError
from distill.process import child_environment, die_with_parent

KIND = "gpu suite"
PIECE_SECONDS = 120.0  # without a word from the child it has hung
_GRACE_SECONDS = 30.0  # for the piece that is being measured when the budget is spent
_TRIES = 4  # of one piece, whose contenders take the child down one after another


def bench_gpu(settings: GpuSuiteSettings, out: Path, *, commit: str | None = None) -> dict[str, Any]:
    """Measure what `out` does not hold yet, within the budget. Raises InputError."""
    import torch

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "bench gpu: this machine has no CUDA device; `distill bench kernels` measures the CPU, "
            "`distill bench kernels --compile-only` compiles for GPUs"
        )
    require_file_place(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    return _Suite(settings, out, commit).run()


class _Suite:
    """The result so far, its file, and the child that adds to it."""

    def __init__(self, settings: GpuSuiteSettings, out: Path, commit: str | None):
        self.settings, self.out, self.commit = settings, out, commit
        self.crashed: dict[str, dict[str, str]] = {}
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
        if not isinstance(self.result, dict) or self.result.get("kind") != KIND:
            raise InputError(f"{self.out}: exists and was not made by `distill bench gpu`; choose another --out")
        kept = json.loads(json.dumps(self.settings.identity))
        found = {name: self.result["settings"].get(name) for name in kept}
        if differing := changes(found, kept):
            raise InputError(
                f"{self.out}: was started with other settings ({'; '.join(differing)}); choose another --out"
            )

    def _child(self, log: Path, show: Any) -> bool:
        """Run one child to its end. False when there is nothing left to do, or no time to do it."""
        left = self.deadline - time.monotonic()
        spec = {
            "settings": vars(self.settings),
            "done": sorted(self.result["pieces"]) if self.result else [],
            "crashed": self.crashed,
            "seconds": left,
            "commit": self.commit,
        }
        with open(log, "wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", "distill.bench.gpu_worker", json.dumps(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(None, {"HF_HUB_OFFLINE": "1"}),
                preexec_fn=die_with_parent,
                text=True,
            )
        key = contender = lost = None
        did_something = False
        try:
            for message in self._messages(child):
                if message is None:
                    lost = f"no answer for {PIECE_SECONDS:.0f} s"
                    break
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
        finally:
            child.kill()
            code = child.wait()
            child.stdout.close()
        if key is None and code == 0:
            return False
        if time.monotonic() > self.deadline:
            return False  # a piece cut by the budget did nothing wrong
        if key is None:
            if not did_something:
                raise InputError(f"bench gpu: the measuring process ended with exit code {code} ({_tail(log)})")
            return True  # between two pieces
        self._blame(key, contender, lost or f"ended its process with exit code {code} ({_tail(log)})")
        return True

    def _messages(self, child: subprocess.Popen) -> Iterator[dict[str, Any] | None]:
        """What the child says until it ends; None when it has said nothing for too long."""
        lines: queue.Queue[str | None] = queue.Queue()

        def read() -> None:
            for line in child.stdout:
                lines.put(line)
            lines.put(None)

        threading.Thread(target=read, daemon=True).start()
        while True:
            left = self.deadline + _GRACE_SECONDS - time.monotonic()
            try:
                line = lines.get(timeout=max(0.0, min(PIECE_SECONDS, left)))
            except queue.Empty:
                yield None
                return
            if line is None:
                child.wait()
                return
            yield json.loads(line)

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

    def _blame(self, key: str, contender: str | None, reason: str) -> None:
        """The next child measures the piece without that contender; without a culprit the piece is given up."""
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


def _tail(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-600:]


def show_gpu(result: dict[str, Any]) -> None:
    """The result as tables on standard output."""
    from distill.bench.gpu_tables import gpu_tables, gpu_targets

    for title, columns, rows in gpu_tables(result):
        console.table(title, columns, rows)
    console.table("targets", ["target", "wanted", "measured", ""], gpu_targets(result))
    for problem in result["problems"]:
        console.note(f"failed: {problem}")
    if result["pending"]:
        console.note(f"not measured (out of time): {', '.join(result['pending'])}")
