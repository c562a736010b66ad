"""The training half of `distill bench gap`: both arms train packed, in turns, and every turn is a window of energy."""

from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from distill import console
from distill.bench.gap import ARMS, GapSettings
from distill.bench.spread import ratio
from distill.bench.turns import Contender
from distill.errors import InputError
from distill.packing.arms import Arm
from distill.packing.plan import Batch, Step, plan
from distill.packing.source import TraceSet
from distill.serve import EnergyMeter
from distill.training.device import resolve_precision, this_device
from distill.training.peak import peak_flops
from distill.training.prepare import make_ready
from distill.training.settings import TrainSettings

WARMUP_STEPS = 3
STEPS_WITH_STUDENTS_GIVEN = 40
ENERGY_TURN_S = 2.0  # the counters move in steps of up to 0.1 s


def measure_training(
    settings: GapSettings, traces: Path, trace_set: TraceSet, folder: Path, meter: EnergyMeter
) -> tuple[dict[str, Any], dict[str, Path]]:
    """("training" of the result, folder of each arm's student): trained here unless students were given."""
    trainings = {arm: _Training(settings, arm, trace_set) for arm in ARMS}
    given = settings.ift is not None
    peaks, rounds, energies = [], [], []
    with console.progress() as bar:
        task = bar.add_task("training both arms in turns", total=sum(len(t.steps) for t in trainings.values()))
        specs = {arm: t.spec(traces, folder / arm) for arm, t in trainings.items()}
        children = {arm: Contender(arm, spec, folder, settings.threads) for arm, spec in specs.items()}
        with children["ift"], children["reasoning"]:
            quickest = float("inf")
            for child in children.values():  # each alone: its set-up must not disturb the other's steps
                child.first_step()
                warm = child.turn(WARMUP_STEPS - 1)
                quickest = min([quickest, *(record["seconds"] for record in warm)])
            turn_steps = settings.turn_steps
            if meter.reason is None and warm:
                turn_steps = max(turn_steps, ceil(ENERGY_TURN_S / quickest))
            while not all(child.finished for child in children.values()):
                order = ARMS if len(rounds) % 2 == 0 else ARMS[::-1]
                records, energy = {}, {}
                for arm in order:
                    with meter.window() as window:
                        records[arm] = children[arm].turn(turn_steps)
                    energy[arm] = window.energy
                    bar.advance(task, len(records[arm]))
                if all(records.values()):
                    rounds.append(records)
                    energies.append(energy)
                peaks.append(_peak(trainings["ift"].shape.hidden))
    if not rounds:
        raise InputError(f"--steps: {len(trainings['ift'].steps)} steps leave nothing to time after {WARMUP_STEPS}")
    result = _result(trainings, rounds, energies, median(peaks))
    return result, {"ift": settings.ift, "reasoning": settings.reasoning} if given else {a: folder / a for a in ARMS}


class _Training:
    """One arm's settings and plan, which says what every step trains on."""

    def __init__(self, settings: GapSettings, arm: str, trace_set: TraceSet):
        self.settings = TrainSettings(
            student=settings.origin,
            arm=arm,
            seed=settings.seed,
            row_tokens=settings.row_tokens,
            batch=settings.batch,
            warmup_steps=10,
            final_learning_rate_ratio=0.0,
        )
        ready = make_ready(self.settings, trace_set, weights=False)
        self.steps, self.shape, self.documents = ready.steps, ready.origin.shape, ready.rendered.documents
        wanted = settings.steps or (STEPS_WITH_STUDENTS_GIVEN if settings.ift else len(self.steps))
        if wanted != len(self.steps):
            self._cut(wanted)

    def _cut(self, wanted: int) -> None:
        """Plan exactly `wanted` steps, by way of the tokens that they hold."""
        lengths = np.array([d.length for d in self.documents])
        batch = Batch(self.settings.batch_unit, self.settings.batch, self.settings.row_tokens)
        epochs = -(-wanted // len(self.steps)) + 1
        steps = plan(Arm.parse(self.settings.arm), lengths, batch=batch, epochs=epochs, seed=self.settings.seed)[
            :wanted
        ]
        tokens = sum(int(lengths[row].sum()) for step in steps for row in step.rows)
        self.settings = self.settings.model_copy(update={"tokens": tokens})
        self.steps = steps

    def spec(self, traces: Path, out: Path) -> dict[str, Any]:
        values = self.settings.model_dump(mode="json")
        return {"trainer": "distill", "settings": values, "traces": str(traces), "out": str(out)}

    def counts(self, steps: list[Step]) -> dict[str, float]:
        documents = [self.documents[r] for step in steps for row in step.rows for r in row]
        lengths, supervised = [d.length for d in documents], sum(d.supervised for d in documents)
        return {
            "examples": len(documents),
            "tokens": sum(lengths),
            "supervised_tokens": supervised,
            "flops": self.shape.training_flops(lengths, supervised),
        }


def _peak(hidden: int) -> float:
    device = this_device()
    return peak_flops(device, resolve_precision("auto", device, hidden))[0]


def _result(
    trainings: dict[str, _Training], rounds: list[dict[str, Any]], energies: list[dict[str, Any]], peak: float
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    of_rounds = {arm: _of_rounds(training, arm, rounds, energies) for arm, training in trainings.items()}
    for arm, training in trainings.items():
        whole, records = training.counts(training.steps), [record for r in rounds for record in r[arm]]
        timed = {name: sum(r[name] for r in of_rounds[arm]) for name in (*whole, "seconds")}
        metered = [r for r in of_rounds[arm] if r["joules"] is not None]
        result[arm] = {
            "steps": len(training.steps),
            "examples": whole["examples"],
            "tokens_per_example": whole["tokens"] / whole["examples"],
            "supervised_tokens_per_example": whole["supervised_tokens"] / whole["examples"],
            "flops_per_example": whole["flops"] / whole["examples"],
            "measured": {
                "seconds_per_step": timed["seconds"] / len(records),
                "seconds_per_example": timed["seconds"] / timed["examples"],
                "tokens_per_second": timed["tokens"] / timed["seconds"],
                "supervised_tokens_per_second": timed["supervised_tokens"] / timed["seconds"],
                "mfu": timed["flops"] / timed["seconds"] / peak,
                "peak_memory_bytes": records[-1]["peak_device_bytes"] or records[-1]["peak_rss_bytes"],
                "joules_per_example": sum(r["joules"] for r in metered) / sum(r["examples"] for r in metered)
                if metered
                else None,
            },
        }
    reasons = [energy["reason"] for both in energies for energy in both.values() if "reason" in energy]
    no_energy = result["ift"]["measured"]["joules_per_example"] is None
    result["no_energy"] = reasons[0] if no_energy else None
    ift, reasoning = result["ift"], result["reasoning"]
    tokens = reasoning["tokens_per_example"] / ift["tokens_per_example"]
    cost = reasoning["flops_per_example"] / ift["flops_per_example"]
    result["factor"] = {
        "modelled": {"tokens": tokens, "per_token": cost / tokens, "cost": cost},
        "measured": _factors(of_rounds, "seconds"),
        "joules": None if no_energy else _factors(of_rounds, "joules"),
    }
    return result


def _of_rounds(
    training: _Training, arm: str, rounds: list[dict[str, Any]], energies: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What the steps of every round trained on, their seconds, and joules where they are known of both arms."""
    found, cursor = [], WARMUP_STEPS
    for records, energy in zip((r[arm] for r in rounds), energies, strict=True):
        counts = training.counts(training.steps[cursor : cursor + len(records)])
        cursor += len(records)
        metered = all("joules" in of_arm for of_arm in energy.values())  # the last turn may be too short
        seconds = sum(record["seconds"] for record in records)
        found.append({**counts, "seconds": seconds, "joules": energy[arm]["joules"] if metered else None})
    return found


def _factors(of_rounds: dict[str, list[dict[str, Any]]], unit: str) -> dict[str, dict[str, Any]]:
    """Reasoning over IFT, of an example: its tokens, `unit` per token, `unit`."""
    both = zip(of_rounds["reasoning"], of_rounds["ift"], strict=True)
    used = [pair for pair in both if all(r[unit] is not None for r in pair)]

    def over(what: str, per: str) -> dict[str, Any]:
        return ratio(*([r[what] / r[per] for r in arm] for arm in zip(*used, strict=True)))

    return {"tokens": over("tokens", "examples"), "per_token": over(unit, "tokens"), "cost": over(unit, "examples")}
