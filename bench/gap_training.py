"""The training half of `distill bench gap`: both arms train packed, in turns."""

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from distill import console
from distill.bench.gap import GapSettings
from distill.bench.spread import ratio
from distill.bench.turns import Contender
from distill.errors import InputError
from distill.packing.arms import Arm
from distill.packing.plan import Batch, Step, plan
from distill.packing.source import TraceSet
from distill.training.device import resolve_precision, this_device
from distill.training.peak import peak_flops
from distill.training.prepare import make_ready
from distill.training.settings import TrainSettings

ARMS = ("ift", "reasoning")
WARMUP_STEPS = 3
STEPS_WITH_STUDENTS_GIVEN = 40


def measure_training(
    settings: GapSettings, traces: Path, trace_set: TraceSet, folder: Path
) -> tuple[dict[str, Any], dict[str, Path]]:
    """("training" of the result, folder of each arm's student): trained here unless students were given."""
    trainings = {arm: _Training(settings, arm, trace_set) for arm in ARMS}
    given = settings.ift is not None
    peaks, rounds = [], []
    with console.progress() as bar:
        task = bar.add_task("training both arms in turns", total=sum(len(t.steps) for t in trainings.values()))
        specs = {arm: t.spec(traces, folder / arm) for arm, t in trainings.items()}
        children = {arm: Contender(arm, spec, folder, settings.threads) for arm, spec in specs.items()}
        with children["ift"], children["reasoning"]:
            for child in children.values():  # each alone: its set-up must not disturb the other's steps
                child.first_step()
                child.turn(WARMUP_STEPS - 1)
            while not all(child.finished for child in children.values()):
                order = ARMS if len(rounds) % 2 == 0 else ARMS[::-1]
                rounds.append({arm: children[arm].turn(settings.turn_steps) for arm in order})
                peaks.append(_peak(trainings["ift"].shape.hidden))
                bar.advance(task, sum(len(records) for records in rounds[-1].values()))
    rounds = [r for r in rounds if all(r[arm] for arm in ARMS)]
    if not rounds:
        raise InputError(f"--steps: {len(trainings['ift'].steps)} steps leave nothing to time after {WARMUP_STEPS}")
    result = _result(trainings, rounds, median(peaks))
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


def _result(trainings: dict[str, _Training], rounds: list[dict[str, Any]], peak: float) -> dict[str, Any]:
    result: dict[str, Any] = {}
    tokens: dict[str, list[float]] = {arm: [] for arm in ARMS}  # per example, by round
    cost: dict[str, list[float]] = {arm: [] for arm in ARMS}  # seconds per example, by round
    for arm, training in trainings.items():
        whole = training.counts(training.steps)
        cursor = WARMUP_STEPS
        for records in (r[arm] for r in rounds):
            of_round = training.counts(training.steps[cursor : cursor + len(records)])
            cursor += len(records)
            tokens[arm].append(of_round["tokens"] / of_round["examples"])
            cost[arm].append(sum(r["seconds"] for r in records) / of_round["examples"])
        timed = training.counts(training.steps[WARMUP_STEPS:cursor])
        records = [record for r in rounds for record in r[arm]]
        seconds = sum(record["seconds"] for record in records)
        result[arm] = {
            "steps": len(training.steps),
            "examples": whole["examples"],
            "tokens_per_example": whole["tokens"] / whole["examples"],
            "supervised_tokens_per_example": whole["supervised_tokens"] / whole["examples"],
            "flops_per_example": whole["flops"] / whole["examples"],
            "measured": {
                "seconds_per_step": seconds / len(records),
                "seconds_per_example": seconds / timed["examples"],
                "tokens_per_second": timed["tokens"] / seconds,
                "supervised_tokens_per_second": timed["supervised_tokens"] / seconds,
                "mfu": timed["flops"] / seconds / peak,
                "peak_rss_bytes": records[-1]["peak_rss_bytes"],
            },
        }
    ift, reasoning = result["ift"], result["reasoning"]
    modelled = {
        "tokens": reasoning["tokens_per_example"] / ift["tokens_per_example"],
        "cost": reasoning["flops_per_example"] / ift["flops_per_example"],
    }
    result["factor"] = factor(modelled, tokens, cost)
    return result


def factor(
    modelled: dict[str, float], tokens: dict[str, list[float]], cost: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """Modelled and measured factors, reasoning over IFT; `tokens` and `cost` by arm and round, in the same unit."""
    per_token = {arm: [c / t for c, t in zip(cost[arm], tokens[arm], strict=True)] for arm in ARMS}
    return {
        "modelled": {**modelled, "per_token": modelled["cost"] / modelled["tokens"]},
        "measured": {
            "tokens": ratio(tokens["reasoning"], tokens["ift"]),
            "per_token": ratio(per_token["reasoning"], per_token["ift"]),
            "cost": ratio(cost["reasoning"], cost["ift"]),
        },
    }
